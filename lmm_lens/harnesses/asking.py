"""A lens that is asked questions under interventions: answers, losses of given answers, and what the edits did.

What a harness's own model class does around `generate`, without the harness.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InterventionError, LensError
from ..hooks.results import Report
from ..interventions import from_json
from ..interventions.base import Intervention
from ..lens import Lens
from ..prompts.prompt import Prompt
from .options import Asked


@dataclass(frozen=True)
class Answer:
    """What was said, and what was done to have it said.

    Attributes:
        text: the answer.
        n_tokens: of the prompt, without padding, and of the answer.
        reports: what each intervention did in the batch that the question was part of.
        n_rows: questions in that batch.
        seconds: that the batch took, a question.
    """

    text: str
    n_tokens: tuple[int, int]
    reports: tuple[Report, ...]
    n_rows: int
    seconds: float = 0.0

    def edits(self) -> list[dict[str, Any]]:
        """The reports as JSON values, for a log."""
        return [
            {
                "intervention": report.intervention,
                "edits": report.n_edits,
                "moved": sum(report.moved.values()),
                "questions": self.n_rows,
            }
            for report in self.reports
        ]


@dataclass(frozen=True)
class Loss:
    """A given answer, as the model finds it.

    Attributes:
        loss: the mean negative log-likelihood of its tokens, in nats.
        greedy: whether each of them is the most likely one.
        answer: its text, and what the interventions did.
    """

    loss: float
    greedy: bool
    answer: Answer


@dataclass(frozen=True, eq=False)
class Asker:
    """A lens and what is done in it.

    Attributes:
        lens: it; with a processor.
        interventions: edits, in order.
    """

    lens: Lens
    interventions: tuple[Intervention, ...] = ()

    def answers(self, prompt: Prompt, asked: Asked) -> list[Answer]:
        """The answers to a batch of questions.

        Raises:
            LensError: whatever `Lens.generate` refuses.
        """
        options = dict(asked.options)
        if asked.stops:
            options["stopping_criteria"] = [_Stops(self.lens.adapter.tokenizer, asked)]
        began = time.perf_counter()
        done = self.lens.generate(prompt, self.interventions, **options)
        ends, seconds = self._ends(), (time.perf_counter() - began) / prompt.n_rows
        return [
            Answer(asked.cut(text).strip(), (n_tokens, _length(tokens, ends)), done.reports, prompt.n_rows, seconds)
            for text, n_tokens, tokens in zip(
                done.text, prompt.mask("all").sum(1).tolist(), done.tokens.tolist(), strict=True
            )
        ]

    def loss(self, prompt: Prompt, answer: str) -> Loss:
        """How likely an answer is, token by token as it would be generated, so that edits act as they do there.

        Args:
            prompt: one question.
            answer: with the space before it, if the answer is to begin with one.

        Raises:
            LensError: several questions, or an answer without tokens.
        """
        if prompt.n_rows != 1:
            raise LensError(f"losses are of one question at a time, given a batch of {prompt.n_rows}")
        ids = self._tokens_behind(prompt, answer)
        if not ids:
            raise LensError(f"the answer {answer!r} has no tokens, so it has no likelihood")
        began = time.perf_counter()
        done = self.lens.generate(
            prompt,
            self.interventions,
            max_new_tokens=len(ids),
            min_new_tokens=None,
            eos_token_id=[],
            logits=True,
            logits_processor=[_Says(ids)],
        )
        assert done.logits is not None
        logits = done.logits[0].float().cpu()
        wanted = torch.tensor(ids)
        each = -logits.log_softmax(-1)[torch.arange(len(ids)), wanted]
        n_tokens = (int(prompt.mask("all").sum()), len(ids))
        said = Answer(answer, n_tokens, done.reports, 1, time.perf_counter() - began)
        return Loss(float(each.mean()), bool((logits.argmax(-1) == wanted).all()), said)

    def _tokens_behind(self, prompt: Prompt, answer: str) -> list[int]:
        """An answer's tokens where it goes on from the prompt's last words."""
        tokenizer = self.lens.adapter.tokenizer
        own = prompt.inputs["input_ids"][0].tolist()
        last = int(prompt.mask("last")[0].int().argmax())
        special = self.lens.adapter.special_ids
        first = last
        while first > 0 and own[first - 1] not in special and last - first < 15:
            first -= 1
        tail = tokenizer.decode(own[first : last + 1])
        before = tokenizer(tail, add_special_tokens=False)["input_ids"]
        whole = tokenizer(tail + answer, add_special_tokens=False)["input_ids"]
        if whole[: len(before)] == before:
            return list(whole[len(before) :])
        return list(tokenizer(answer, add_special_tokens=False)["input_ids"])

    def _ends(self) -> frozenset[int]:
        config = getattr(self.lens.model, "generation_config", None)
        found = (getattr(config, name, None) for name in ("eos_token_id", "pad_token_id"))
        listed = [each if isinstance(each, list) else [each] for each in found if each is not None]
        return frozenset(int(each) for row in listed for each in row)


class _Stops:
    """Ends a row whose answer holds a text that ends it. transformers' own way does not know every tokenizer."""

    def __init__(self, tokenizer: Any, asked: Asked) -> None:
        self.tokenizer, self.asked, self.n_new = tokenizer, asked, 0
        self.most = max(map(len, asked.stops)) + 8  # tokens that can hold the end of a stop that was just completed

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        self.n_new += 1
        ends = self.tokenizer.batch_decode(input_ids[:, -min(self.n_new, self.most) :], skip_special_tokens=True)
        return torch.tensor([self.asked.cut(end) != end for end in ends], device=input_ids.device)


class _Says:
    """Has the model say given tokens, one a step."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = iter(ids)

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "batch vocab"]) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, next(self.ids)] = 0
        return forced


def _length(tokens: Sequence[int], ends: frozenset[int]) -> int:
    """How many tokens an answer has, its end not counted."""
    return next((index for index, token in enumerate(tokens) if token in ends), len(tokens))


def interventions_of(path: str | None) -> tuple[Intervention, ...]:
    """The interventions of a file that `lmm_lens.interventions.to_json` wrote; none for None.

    Args:
        path: the file; "var.json#1f3a" is refused unless the SHA-256 of the file begins like that.

    Raises:
        InterventionError: there is no such file, it is another one, or it holds something else.
    """
    if path is None:
        return ()
    name, _, promised = str(path).partition("#")
    try:
        content = Path(name).read_bytes()
    except OSError as error:
        raise InterventionError(
            f"the interventions {name!r} cannot be read: {error.strerror}\n"
            "  write them with lmm_lens.interventions.to_json([VAR(...), ...])"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if not digest.startswith(promised):
        raise InterventionError(
            f"the interventions {name!r} were changed: expected SHA-256 {promised}, found {digest[: len(promised)]}\n"
            f"  answers that a harness has cached are of other ones; this file is {name}#{digest[:12]}"
        )
    return tuple(from_json(content.decode("utf-8")))
