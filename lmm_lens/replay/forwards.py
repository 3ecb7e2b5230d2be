"""The logits of many changed forwards of one prompt: replayed where that is exact, else one forward each.

Which it is, is found out and never assumed: the recording has to repeat the plain forward, and the first replays of a
sweep are compared with the model itself, hooks and all. What fails is computed one forward each, and said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..interventions.base import Intervention
from ..lens.plan import PlannedRun
from ..prompts.prompt import Prompt
from .batches import Batches
from .check import agree
from .engine import Replay
from .recording import Recording, UnfitError, record, why_not
from .variants import Edit, Variant

if TYPE_CHECKING:
    from ..lens import Lens

EACH, RESUMED, REUSED, SINGLE = range(4)
WAYS = (
    "one forward each",
    "resumed from the residual stream of the first changed layer",
    "the rows from the first changed one on; keys and values before them are reused",
    "single rows, all in one batch; keys and values before them are reused",
)
"""How changed forwards were computed; all of them exactly."""

PASSES_PER_JOB = 32  # on a server: what a lost connection can cost


class Forwards:
    """Changed forwards.

    Args:
        lens: the model.
        batches: how large they may be.

    Attributes:
        reason: why forwards were computed one by one, the last time they were. What is true of one prompt is not held
            against the next, so that a sweep that is continued computes each prompt as one that was not interrupted.
        way: how the last replays were computed, one of `WAYS`.
    """

    def __init__(self, lens: Lens, batches: Batches) -> None:
        self.lens, self.batches = lens, batches
        self._never = self.reason = why_not(lens)
        self._is_checked, self.way = False, EACH
        self._recorded: tuple[Prompt, Recording | None] | None = None
        self._each: tuple[Prompt, Tensor] | None = None  # all rows of a batch, computed one change at a time

    def clean(self, prompt: Prompt) -> Float[Tensor, "batch vocab"]:
        """The plain forward's logits at each row's last prompt token."""
        recording = self._record(prompt)
        return self.lens.run(prompt, logits="last").logits[:, 0] if recording is None else recording.logits

    def changed(
        self,
        prompt: Prompt,
        row: int,
        n: int,
        variants: Callable[[Recording, int], Sequence[Variant]],
        intervention: Callable[[int], Intervention],
    ) -> tuple[Float[Tensor, "n vocab"], int]:
        """The logits of one prompt row under each of n changes, and which of `WAYS` they were computed in.

        Args:
            prompt: the prompt.
            row: which row of its batch.
            n: number of changes.
            variants: all of them for a replay; may raise UnfitError.
            intervention: one of them for a forward.
        """
        if self._record(prompt) is not None:
            try:
                logits = self.replayed(
                    prompt,
                    row,
                    variants,
                    lambda index: self.lens.run(prompt, [intervention(index)], logits="last").logits[row, 0],
                    lambda logits: logits,
                )
                return logits, self.way
            except UnfitError as why:
                self.reason = str(why)
        return self._one_by_one(prompt, n, intervention)[:, row], EACH

    def _record(self, prompt: Prompt) -> Recording | None:
        if self._never:
            return None
        if self._recorded is None or self._recorded[0] is not prompt:
            self._recorded = None  # before the next one takes its memory
            try:
                self._recorded = prompt, record(self.lens, prompt)
            except UnfitError as why:
                self.reason, self._recorded = str(why), (prompt, None)
        return self._recorded[1]

    def replayed(
        self,
        prompt: Prompt,
        row: int,
        variants: Callable[[Recording, int], Sequence[Variant]],
        forward: Callable[[int], Tensor],
        reduce: Callable[[Float[Tensor, "n vocab"]], Tensor],
    ) -> Float[Tensor, " n *any"]:
        """What is made of the logits of one prompt row under each of its variants; sets `way`.

        Args:
            prompt, row, variants: as in `changed`.
            forward: one change by a forward of the model, reduced.
            reduce: what is wanted of the logits, row by row.

        Raises:
            UnfitError: a replay is not what the model computes.
        """
        recording = self._record(prompt)
        if recording is None:
            raise UnfitError(self.reason)
        changes = variants(recording, row)
        replay = Replay(recording, row)
        windows = [replay.window(variant) for variant in changes]
        n_queries = max(window.stop - window.start for window in windows)
        # a change that changes nothing, in the same rows, must give the plain forward
        rows = torch.stack([edit.rows for variant in changes for edit in variant.edits]).any(0)
        every = [Variant((Edit(0, "resid_pre", rows, recording.calls[0].hidden[row]),)), *changes]
        try:
            logits = self.batches.run(lambda most: replay.logits(every, most), least=n_queries)
        except (TypeError, IndexError, KeyError, AttributeError, RuntimeError) as error:
            raise UnfitError(f"its layers cannot be run by themselves ({type(error).__name__}: {error})") from error
        if bool(logits.isnan().any()):  # a forward of the model says where they come from
            raise UnfitError("a replay has NaN logits")
        if not agree(logits[0], recording.logits[row]):
            raise UnfitError("its layers, run by themselves, do not repeat the plain forward")
        found = reduce(logits[1:])
        if not self._is_checked:
            # the strongest change, by a forward of the model itself
            index = int((logits[1:] - recording.logits[row]).abs().amax(1).argmax())
            if not agree(found[index].to(logits.dtype), forward(index).to(logits.device, logits.dtype)):
                raise UnfitError("a replayed change differs from the model's own forward")
            self._is_checked = True
        whole = any(window.start == window.first and window.stop - window.first > 1 for window in windows)
        self.way = SINGLE if n_queries == 1 else RESUMED if whole else REUSED
        return found

    def _one_by_one(self, prompt: Prompt, n: int, intervention: Callable[[int], Intervention]) -> Tensor:
        """Float[n, batch, vocab]."""
        if self._each is None or self._each[0] is not prompt:
            plan = [PlannedRun(prompt, [intervention(index)]) for index in range(n)]
            jobs = (plan[start : start + PASSES_PER_JOB] for start in range(0, n, PASSES_PER_JOB))
            runs = (run.logits[:, 0].cpu() for job in jobs for run in self.lens.run_all(job))
            self._each = prompt, torch.stack(list(runs))
        return self._each[1]
