"""What a model says at the last prompt token, kept small, and the metrics that are made of it.

Of each forward four numbers are kept, so that one sweep answers for every metric: the logits of the right and of the
wrong answer, the log of the sum of all exponentials, and the token that the model says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ScoreError, unknown
from .contrast import AnswerLike, answer_token

if TYPE_CHECKING:
    from ..lens import Lens
    from .own import OwnAnswer

RIGHT, WRONG, NEITHER = 1, -1, 0


class Goal(NamedTuple):
    """What one prompt is about.

    Attributes:
        right: token ids that count as the right answer, the one whose logit is taken first.
        wrong: token ids of the answer it is set against; empty without one.
        is_yes: 1 where the right answer is yes, 0 where it is no, -1 elsewhere.
    """

    right: tuple[int, ...]
    wrong: tuple[int, ...] = ()
    is_yes: int = -1


def goal_of(lens: Lens, clean: Float[Tensor, " vocab"], answer: tuple[AnswerLike, AnswerLike | None] | None) -> Goal:
    """The goal of (right, wrong) answers given as token ids or texts of one token; the model's own answer for None."""
    if answer is None:
        return Goal((int(clean.argmax()),))
    right, wrong = answer
    ids = [(answer_token(lens, each, len(clean)),) if each is not None else () for each in (right, wrong)]
    if ids[0] == ids[1]:
        raise ScoreError(f"the right and the wrong answer are both {right!r}, so no logit difference tells them apart")
    return Goal(ids[0], ids[1], _is_yes(right))


def goal_of_texts(lens: Lens, clean: Float[Tensor, " vocab"], right: str, wrong: str | None) -> Goal:
    """The goal of a data set's answers, in whichever form the model says them.

    An answer is known by its first token, with or without a space before it, as it is written or with a capital: models
    differ in this, and data sets do not say. Every form counts as the answer; its logit is that of the form which the
    clean run finds likeliest. A form with which both answers begin, as "tent" and "tiger" do without a space where
    " tent" and " tiger" are tokens, counts for neither, if the clean run says the right one in another.

    Raises:
        ScoreError: the two answers begin with the same token as the model says them, or one of them has no token of
            its own.
    """
    forms = [forms_of(lens, right), forms_of(lens, wrong) if wrong is not None else ()]
    shared = set(forms[0]) & set(forms[1])
    ranked = [tuple(sorted(each, key=lambda token: -float(clean[token]))) for each in forms]
    telling = [tuple(token for token in each if token not in shared) for each in ranked]
    if shared and (ranked[0][0] in shared or not all(telling)):
        raise ScoreError(
            f"the answers {right!r} and {wrong!r} begin with the same token {sorted(shared)}, so the first token does "
            "not tell them apart\n"
            "  give answers that differ in their first token, or metric='log_prob' without a wrong one"
        )
    return Goal(telling[0], telling[1], _is_yes(right))


def forms_of(lens: Lens, text: str) -> tuple[int, ...]:
    """The first tokens of an answer in its forms; ScoreError where the model has none for it."""
    tokenizer = lens.adapter.tokenizer
    if tokenizer is None:
        raise ScoreError(f"the answer {text!r} is text, but this lens has no processor to read it: give token ids")
    found: dict[int, None] = {}
    for form in (text, text.capitalize(), f" {text}", f" {text.capitalize()}"):
        ids = tokenizer(form, add_special_tokens=False)["input_ids"]
        # a lone space or word boundary is no answer
        ids = [token for token in ids if tokenizer.decode([token]).strip()]
        if ids and ids[0] != tokenizer.unk_token_id:
            found.setdefault(ids[0])
    if not found:
        raise ScoreError(f"{text!r} is no token of this model: its tokenizer reads it as {tokenizer.unk_token!r}")
    return tuple(found)


def _is_yes(answer: object) -> int:
    return {"yes": 1, "no": 0}.get(answer.strip().casefold(), -1) if isinstance(answer, str) else -1


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What was said in many forwards, on the CPU.

    Attributes:
        logits: Float[..., 2], fp64, of the right and of the wrong answer; NaN without a wrong one.
        log_sum: Float[...], fp64, the log of the sum of exponentials of all logits.
        said: Int[...], the likeliest token.
        marks: Int[...], `RIGHT`, `WRONG` or `NEITHER`: which of the two answers that token is.
        own: Float[...], fp64, what a function of the user's made of all logits; None without one.
    """

    logits: Float[Tensor, "*forward 2"]
    log_sum: Float[Tensor, "*forward"]
    said: Int[Tensor, "*forward"]
    marks: Int[Tensor, "*forward"]
    own: Float[Tensor, "*forward"] | None = None

    @classmethod
    def of(cls, logits: Float[Tensor, "forward vocab"], goal: Goal, own_metric: OwnAnswer | None = None) -> Outcomes:
        """What logits say of a goal; the first of them are those of the plain forward."""
        own = logits.double()
        said = own.argmax(-1)
        marks = torch.full_like(said, NEITHER)
        for tokens, mark in ((goal.right, RIGHT), (goal.wrong, WRONG)):
            if tokens:
                marks[torch.isin(said, torch.tensor(tokens, device=said.device))] = mark
        right = own[:, goal.right[0]]
        wrong = own[:, goal.wrong[0]] if goal.wrong else torch.full_like(right, torch.nan)
        pair, total = torch.stack([right, wrong], -1), own.logsumexp(-1)
        mine = None if own_metric is None else own_metric(own, goal).cpu()
        return cls(pair.cpu(), total.cpu(), said.int().cpu(), marks.to(torch.int8).cpu(), mine)

    def tensors(self) -> dict[str, Tensor]:
        """As parts of a run hold them."""
        named = {"logits": self.logits, "log_sum": self.log_sum, "said": self.said, "marks": self.marks}
        return named if self.own is None else {**named, "own": self.own}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Outcomes:
        """What `tensors` gave."""
        logits, log_sum, said, marks = (tensors[name] for name in ("logits", "log_sum", "said", "marks"))
        return cls(logits, log_sum, said, marks, tensors.get("own"))

    def __getitem__(self, index: Any) -> Outcomes:
        own = None if self.own is None else self.own[index]
        return Outcomes(self.logits[index], self.log_sum[index], self.said[index], self.marks[index], own)


class AnswerMetric(NamedTuple):
    """One number of a forward.

    Attributes:
        meaning: with its unit.
        of: computes it, Float[...].
        needs_wrong: whether it takes a wrong answer.
    """

    meaning: str
    of: Callable[[Outcomes], Tensor]
    needs_wrong: bool = False


ANSWER_METRICS: dict[str, AnswerMetric] = {
    "logit_difference": AnswerMetric(
        "logit of the right answer minus that of the wrong one, in logits",
        lambda o: o.logits[..., 0] - o.logits[..., 1],
        needs_wrong=True,
    ),
    "log_prob": AnswerMetric(
        "log-probability of the right answer's first token, in nats", lambda o: o.logits[..., 0] - o.log_sum
    ),
    "probability": AnswerMetric(
        "probability of the right answer's first token", lambda o: (o.logits[..., 0] - o.log_sum).exp()
    ),
    "accuracy": AnswerMetric(
        "whether the likeliest first token is the right answer's, 0 or 1", lambda o: (o.marks == RIGHT).double()
    ),
}


def answer_metric(name: str) -> AnswerMetric:
    """A metric; ScoreError that lists them for a name that is none."""
    if name not in ANSWER_METRICS:
        raise ScoreError(unknown("metric", name, ANSWER_METRICS))
    return ANSWER_METRICS[name]


def yes_no_counts(outcomes: Outcomes, is_yes: Int[Tensor, " prompt"]) -> Float[Tensor, "prompt *unit 4"]:
    """Per prompt 0 or 1 for: yes said and right, yes said and wrong, yes right but not said, yes said at all."""
    marks = outcomes.marks
    positive = (is_yes == 1).reshape(-1, *[1] * (marks.ndim - 1))
    says_yes = torch.where(positive, marks == RIGHT, marks == WRONG)
    return torch.stack([says_yes & positive, says_yes & ~positive, positive & ~says_yes, says_yes], -1).double()


def yes_no_scores(counts: Float[Tensor, "*any 4"], n: int) -> dict[str, Float[Tensor, "*any"]]:
    """Precision, recall, F1 (yes is the positive class) and yes-ratio from summed counts of n prompts.

    Where nothing was said or is to be found, 0 / 0 counts as 0, as in scikit-learn.
    """
    hit, false, missed, yes = counts.unbind(-1)
    precision, recall = (hit / (hit + other).clamp_min(1e-300) for other in (false, missed))
    f1 = 2 * hit / (2 * hit + false + missed).clamp_min(1e-300)
    return {"precision": precision, "recall": recall, "f1": f1, "yes_ratio": yes / n}


YES_NO = ("precision", "recall", "f1", "yes_ratio")
"""Statistics of a whole data set of yes/no questions."""


def answers_at(
    answers: Sequence[tuple[AnswerLike, AnswerLike | None]] | None, index: int
) -> tuple[AnswerLike, AnswerLike | None] | None:
    """The answers of a prompt row; ScoreError where there are too few, or one is no pair."""
    if answers is None:
        return None
    if index >= len(answers):
        raise ScoreError(
            f"{len(answers)} answers were given, but there are more prompt rows: give one (right, wrong) a row"
        )
    pair = answers[index]
    if isinstance(pair, (str, int)):
        return pair, None
    if len(pair) != 2:
        raise ScoreError(f"the answers of row {index} are (right, wrong), given {pair!r}")
    return pair[0], pair[1]
