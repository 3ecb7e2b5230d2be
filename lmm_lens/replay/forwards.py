"""The logits of many changed forwards of one prompt: replayed where that is exact, else one forward each.

Which it is, is found out and never assumed: the recording has to repeat the plain forward, and the first replays of a
sweep are compared with the model itself, hooks and all. What fails is computed one forward each, and said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..interventions.base import Intervention
from ..lens.plan import PlannedRun
from ..prompts.prompt import Prompt
from .batches import Batches
from .change import Change
from .check import UnfitError, agree
from .engine import Replay
from .recording import Recording, record, why_not
from .variants import Edit, Variant
from .ways import Way
from .window import Window

if TYPE_CHECKING:
    from ..lens import Lens

PASSES_PER_JOB = 32  # on a server: what a lost connection can cost


class Forwards:
    """Changed forwards.

    Args:
        lens: the model.
        batches: how large they may be.

    Attributes:
        reason: why forwards were computed one by one, the last time they were. What is true of one prompt is not held
            against the next, so that a sweep that is continued computes each prompt as one that was not interrupted.
    """

    def __init__(self, lens: Lens, batches: Batches) -> None:
        self.lens, self.batches = lens, batches
        self._never = self.reason = why_not(lens)
        self._is_checked = False
        self._prompt: Prompt | None = None
        self._recording: Recording | None = None  # of that prompt, if there can be one
        self._each: _Each | None = None

    def clean(self, prompt: Prompt) -> Float[Tensor, "batch vocab"]:
        """The plain forward's logits at each row's last prompt token."""
        recording = self._record(prompt)
        return self.lens.run(prompt, logits="last").logits[:, 0] if recording is None else recording.logits

    def changed(self, prompt: Prompt, row: int, changes: Sequence[Change]) -> tuple[Float[Tensor, "change vocab"], Way]:
        """The logits of one prompt row under each change, at its last token, and how they were computed.

        Args:
            prompt: the prompt.
            row: which row of its batch.
            changes: of that row.
        """
        try:
            return self.replayed(prompt, row, changes)
        except UnfitError as why:
            self.reason = str(why)
        return self._one_by_one(prompt, [change.intervention for change in changes])[:, row], Way.EACH

    def replayed(
        self, prompt: Prompt, row: int, changes: Sequence[Change], tokens: Int[Tensor, " token"] | None = None
    ) -> tuple[Float[Tensor, "change token"], Way]:
        """As `changed`, by a replay or not at all.

        Args:
            prompt, row, changes: as in `changed`.
            tokens: the logits of these alone; None for all of the vocabulary.

        Raises:
            UnfitError: a replay is not what the model computes.
        """
        recording = self._record(prompt)
        if recording is None:
            raise UnfitError(self.reason)
        variants = [change.variant for change in changes]
        replay = Replay(recording, row)
        windows = [replay.window(variant) for variant in variants]
        n_queries = max(window.stop - window.start for window in windows)
        # a change that changes nothing, in the same rows, must give the plain forward
        rows = torch.stack([variant.rows for variant in variants]).any(0)
        every = [Variant((Edit(0, "resid_pre", rows, recording.calls[0].hidden[row]),)), *variants]
        try:
            for attempt in self.batches.attempts(least=n_queries):
                with attempt:
                    logits = replay.logits(every, attempt.rows)
        except (TypeError, IndexError, KeyError, AttributeError, RuntimeError) as error:
            raise UnfitError(f"its layers cannot be run by themselves ({type(error).__name__}: {error})") from error
        if bool(logits.isnan().any()):  # a forward of the model says where they come from
            raise UnfitError("a replay has NaN logits")
        if not agree(logits[0], recording.logits[row]):
            raise UnfitError("its layers, run by themselves, do not repeat the plain forward")
        logits, clean = logits[1:], recording.logits[row]
        if not self._is_checked:
            strongest = int((logits - clean).abs().amax(1).argmax())
            self._check(prompt, row, changes[strongest], logits[strongest], tokens)
        way = _way(windows, n_queries)
        return (logits if tokens is None else logits[:, tokens.to(logits.device)]), way

    def _check(
        self,
        prompt: Prompt,
        row: int,
        change: Change,
        logits: Float[Tensor, " vocab"],
        tokens: Int[Tensor, " token"] | None,
    ) -> None:
        """Compare a replayed change with a forward of the model itself; UnfitError where they differ."""
        own = self.lens.run(prompt, [change.intervention], logits="last").logits[row, 0]
        own = own.to(logits.device, logits.dtype)
        same = agree(logits, own)
        if tokens is not None:  # what is wanted of them are differences, whose scale is a smaller one
            same = same and agree(logits[tokens].diff(), own[tokens].diff())
        if not same:
            raise UnfitError("a replayed change differs from the model's own forward")
        self._is_checked = True

    def _record(self, prompt: Prompt) -> Recording | None:
        if self._never:
            return None
        if self._prompt is not prompt:
            self._prompt = self._recording = None  # before the next one takes its memory
            try:
                self._recording = record(self.lens, prompt)
            except UnfitError as why:
                self.reason = str(why)
            self._prompt = prompt
        return self._recording

    def _one_by_one(self, prompt: Prompt, interventions: Sequence[Intervention]) -> Float[Tensor, "change batch vocab"]:
        if self._each is None or not self._each.is_of(prompt, interventions):
            plan = [PlannedRun(prompt, [intervention]) for intervention in interventions]
            jobs = (plan[start : start + PASSES_PER_JOB] for start in range(0, len(plan), PASSES_PER_JOB))
            runs = (run.logits[:, 0].cpu() for job in jobs for run in self.lens.run_all(job))
            self._each = _Each(prompt, tuple(interventions), torch.stack(list(runs)))
        return self._each.logits


@dataclass(frozen=True, eq=False)
class _Each:
    """All rows of a batch, computed one change at a time: a sweep asks for them row by row."""

    prompt: Prompt
    interventions: tuple[Intervention, ...]
    logits: Float[Tensor, "change batch vocab"]

    def is_of(self, prompt: Prompt, interventions: Sequence[Intervention]) -> bool:
        """Whether it is what these very interventions give on this very prompt."""
        return prompt is self.prompt and [*map(id, interventions)] == [*map(id, self.interventions)]


def _way(windows: Sequence[Window], n_queries: int) -> Way:
    """How these windows, none longer than that, are computed."""
    if n_queries == 1:
        return Way.SINGLE
    whole = any(window.start == window.first and window.stop - window.first > 1 for window in windows)
    return Way.RESUMED if whole else Way.REUSED
