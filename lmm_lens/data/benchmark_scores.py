"""The published scores of yes/no and paired benchmarks: POPE's, MME's and MMVP's."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..errors import ScoreError
from .from_mme import COGNITION, PERCEPTION
from .tally import Tally, ratio


@dataclass(frozen=True)
class BinaryScores:
    """Scores of yes/no questions, all in 0..1; yes is the positive class.

    Attributes:
        accuracy: right answers of all questions.
        precision: of what was said yes to, how much is yes; NaN where nothing was.
        recall: of what is yes, how much was said yes to; NaN where nothing is.
        f1: 2 TP / (2 TP + FP + FN); NaN where nothing is yes nor said to be.
        yes_ratio: how much of all questions was said yes to.
        n: questions.
        n_unanswered: questions that were answered with neither; see `binary_scores`.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    n: int
    n_unanswered: int
    tally: Tally = field(repr=False, compare=False)


def binary_scores(said: Sequence[str | None], labels: Sequence[str]) -> BinaryScores:
    """POPE's scores (arXiv:2305.10355).

    An answer that is neither yes nor no is wrong here: it lowers accuracy, and recall where the label is yes. POPE's
    own rule has no such answer, it takes all of them for yes (`yes_no(text, rule="pope")`); MME's script counts them
    as wrong in the accuracy, and leaves them out of its precision and recall.

    Args:
        said: "yes", "no" or None for each question, as `yes_no` gives.
        labels: "yes" or "no" for each.

    Raises:
        ScoreError: there is something else among them, not one answer a question, or no question.
    """
    import numpy as np

    _check_said(said, labels)
    counts = np.array([_confusion(answer, label) for answer, label in zip(said, labels, strict=True)], float)
    tally = Tally(counts, _binary)
    return BinaryScores(
        **tally.scores(), n=len(labels), n_unanswered=sum(answer is None for answer in said), tally=tally
    )


def _confusion(said: str | None, label: str) -> tuple[bool, bool, bool, bool, bool]:
    """Whether it is a true positive, a false positive, a missed yes, a true negative; and that it is a question."""
    positive, yes = said == "yes", label == "yes"
    return positive and yes, positive and not yes, yes and not positive, said == label == "no", True


def _binary(sums: Any) -> dict[str, Any]:
    tp, fp, fn, tn, n = (sums[..., i] for i in range(5))
    return {
        "accuracy": ratio(tp + tn, n),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "yes_ratio": ratio(tp + fp, n),
    }


@dataclass(frozen=True)
class SubtaskScores:
    """One subtask of MME.

    Attributes:
        acc: questions answered rightly, in percent.
        acc_plus: pictures with both questions answered rightly, in percent.
        n_images: pictures, with two questions each.
        n_unanswered: questions answered with neither yes nor no, which count as wrong.
    """

    acc: float
    acc_plus: float
    n_images: int
    n_unanswered: int

    @property
    def score(self) -> float:
        """acc + acc_plus, 0..200."""
        return self.acc + self.acc_plus


@dataclass(frozen=True)
class MMEScores:
    """Scores of MME.

    Attributes:
        subtasks: name to its scores.
        total: the sum of the subtasks' scores, 0..200 for each of them.
        perception, cognition: the sums of the ten and of the four subtasks, 0..2000 and 0..800; None if some are
            missing, as a sum of fewer cannot be compared.
    """

    subtasks: Mapping[str, SubtaskScores]
    total: float
    perception: float | None
    cognition: float | None
    tally: Tally = field(repr=False, compare=False)

    @property
    def n_unanswered(self) -> int:
        """Questions of all subtasks that were answered with neither yes nor no."""
        return sum(each.n_unanswered for each in self.subtasks.values())


def mme_scores(
    said: Sequence[str | None],
    labels: Sequence[str],
    groups: Sequence[Hashable],
    subtasks: Sequence[str],
) -> MMEScores:
    """MME's scores (arXiv:2306.13394): of each subtask acc + acc+, in percent, and their sums.

    As in its script, an answer that is neither yes nor no is wrong.

    Args:
        said: "yes", "no" or None for each question, as `yes_no` gives.
        labels: "yes" or "no" for each.
        groups: the picture of each question (`Sample.group`); each has two.
        subtasks: the subtask of each question (`Sample.category`).

    Raises:
        ScoreError: as in `binary_scores`, or a picture with other than two questions.
    """
    import numpy as np

    _check_said(said, labels)
    _check_lengths(labels=labels, groups=groups, subtasks=subtasks)
    right = [answer == label for answer, label in zip(said, labels, strict=True)]
    pairs = _pairs(right, list(zip(subtasks, groups, strict=True)), "picture", "MME's pictures have two")
    names = list(dict.fromkeys(subtasks))
    strata = np.array([names.index(subtask) for subtask, _ in pairs])
    counts = np.zeros((len(pairs), 3 * len(names)))  # of each subtask: right answers, pictures all right, pictures
    for row, (stratum, answers) in enumerate(zip(strata, pairs.values(), strict=True)):
        counts[row, 3 * stratum : 3 * stratum + 3] = sum(answers), all(answers), 1
    tally = Tally(counts, partial(_mme, names=tuple(names)), strata)
    scores = tally.scores()
    return MMEScores(
        subtasks={
            name: SubtaskScores(
                acc=scores[f"{name} acc"],
                acc_plus=scores[f"{name} acc_plus"],
                n_images=int((strata == i).sum()),
                n_unanswered=sum(a is None for a, s in zip(said, subtasks, strict=True) if s == name),
            )
            for i, name in enumerate(names)
        },
        total=scores["total"],
        perception=scores.get("perception"),
        cognition=scores.get("cognition"),
        tally=tally,
    )


def _mme(sums: Any, names: tuple[str, ...]) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for i, name in enumerate(names):
        right, both, images = (sums[..., 3 * i + j] for j in range(3))
        scores[f"{name} acc"] = 100 * ratio(right, 2 * images)
        scores[f"{name} acc_plus"] = 100 * ratio(both, images)
    parts = {"total": names, "perception": PERCEPTION, "cognition": COGNITION}
    for part, members in parts.items():
        if set(members) <= set(names):
            scores[part] = sum(scores[f"{name} {which}"] for name in members for which in ("acc", "acc_plus"))
    return scores


@dataclass(frozen=True)
class PairScores:
    """Scores of questions in pairs, in 0..1.

    Attributes:
        pair_accuracy: pairs with both questions right.
        accuracy: questions that are right.
        n_pairs: pairs.
    """

    pair_accuracy: float
    accuracy: float
    n_pairs: int
    tally: Tally = field(repr=False, compare=False)


def mmvp_scores(right: Sequence[bool], groups: Sequence[Hashable]) -> PairScores:
    """MMVP's score (arXiv:2401.06209): a pair counts if both of its questions are answered rightly.

    Args:
        right: whether each question was, as by `letter(text, question) == sample.answer`.
        groups: the pair of each question (`Sample.group`).

    Raises:
        ScoreError: not one pair a question, none at all, or a pair with other than two questions.
    """
    import numpy as np

    _check_lengths(right=right, groups=groups)
    pairs = _pairs([bool(each) for each in right], groups, "pair", "a pair has two")
    tally = Tally(np.array([(sum(both), all(both), 1) for both in pairs.values()], float), _paired)
    return PairScores(**tally.scores(), n_pairs=len(pairs), tally=tally)


def _paired(sums: Any) -> dict[str, Any]:
    right, both, pairs = (sums[..., i] for i in range(3))
    return {"pair_accuracy": ratio(both, pairs), "accuracy": ratio(right, 2 * pairs)}


def _pairs(right: Sequence[bool], groups: Sequence[Hashable], what: str, expected: str) -> dict[Any, list[bool]]:
    """What was right, by group."""
    pairs: dict[Any, list[bool]] = {}
    for each, group in zip(right, groups, strict=True):
        pairs.setdefault(group, []).append(each)
    for group, answers in pairs.items():
        if len(answers) != 2:
            shown = "/".join(map(str, group)) if isinstance(group, tuple) else group
            raise ScoreError(
                f"{what} {shown} has {len(answers)} questions: {expected}\n  score whole data sets, or whole {what}s"
            )
    return pairs


def _check_said(said: Sequence[str | None], labels: Sequence[str]) -> None:
    _check_lengths(said=said, labels=labels)
    for given, valid, what in ((said, ("yes", "no", None), "said"), (labels, ("yes", "no"), "labels")):
        for each in given:
            if each not in valid:
                raise ScoreError(
                    f"{what} must be {', '.join(map(repr, valid))}, given {each!r}\n  mark answers with yes_no first"
                )


def _check_lengths(**columns: Sequence[Any]) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        raise ScoreError(f"expected one of each for every question and at least one question, given {lengths}")
