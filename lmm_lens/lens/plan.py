"""What one call does to a model: interventions in order, then reads; bound to a prompt, and reported on at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from ..backends.base import InTower
from ..core.tapping import Tapping
from ..core.taps import Tap
from ..errors import HookError, LensError
from ..hooks.points import ModelShape, Read, Reader
from ..hooks.results import Reads, Report, collect, report
from ..interventions.base import AutoSinks, Intervention, bind_all, shown
from ..prompts.prompt import Prompt
from ..sinks.rule import told_of_many
from ..warnings import NothingChangedWarning, warn


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """One forward pass of several.

    Args:
        prompt: from `Lens.prompt`.
        interventions: edits, in order.
        reads: what to return.
        tokens: Int[batch, n], return the logits of these tokens alone; None for all of the vocabulary.
    """

    prompt: Prompt
    interventions: Sequence[Intervention] = ()
    reads: Sequence[Reader | str] = ()
    tokens: Int[Tensor, "batch n"] | None = None


class Plan:
    """Interventions and reads of one call, for one model.

    Args:
        shape: of the model.
        sinks_on: finds out what interventions leave to the model ("auto").
        interventions: edits, in order.
        reads: hook point names or readers.

    Attributes:
        interventions: as given, and once bound with everything "auto" found out.

    Raises:
        HookError: something that cannot be read.
    """

    def __init__(
        self,
        shape: ModelShape,
        sinks_on: AutoSinks,
        interventions: Intervention | Sequence[Intervention],
        reads: Reader | str | Sequence[Reader | str] = (),
    ) -> None:
        self.shape, self.sinks_on = shape, sinks_on
        self.interventions = tuple([interventions] if isinstance(interventions, Intervention) else interventions)
        items = [reads] if isinstance(reads, (str, Reader)) else reads
        self.reads = tuple(Read(item) if isinstance(item, str) else item for item in items)
        for item in self.reads:
            if not isinstance(item, Reader):
                raise HookError(f"expected a hook point name or Read(...), given {item!r}")

    @property
    def needs_tower(self) -> bool:
        """Whether something is read or edited in the vision tower."""
        return any(map(_in_tower, (*self.interventions, *self.reads)))

    def tower_taps(self, shape: ModelShape, prompt: Prompt) -> list[Tap]:
        """The taps on what the vision tower runs, for a tower of that shape."""
        reading = [tap for read in self.reads if _in_tower(read) for tap in read.taps(prompt, shape)]
        _check_names(reading)
        return bind_all(self.interventions, prompt, shape, in_tower=True) + reading

    def taps(self, prompt: Prompt) -> list[Tap]:
        """The taps on a prompt, where nobody takes care of the vision tower.

        Raises:
            HookError: something is to be done there.
        """
        if self.needs_tower:
            raise HookError(
                "interventions in the vision tower are not made hooks of a bridge\n  put them into lens.run_with_hooks "
                'or lens.apply, or functions of your own at "vision.blocks.0.attn.hook_z"'
            )
        return self.decoder_taps(prompt)

    def taps_beside(self, tower: InTower | None) -> Callable[[Prompt], list[Tap]]:
        """What gives the taps on a prompt beside a session of the vision tower, or without one."""
        return self.taps if tower is None else self.decoder_taps

    def decoder_taps(self, prompt: Prompt) -> list[Tap]:
        """The taps on a prompt in the decoder alone."""
        given = self.interventions
        self.interventions = tuple(
            each.resolve(prompt, self.sinks_on) if isinstance(each, Intervention) else each for each in given
        )
        reading = [tap for read in self.reads if not _in_tower(read) for tap in read.taps(prompt, self.shape)]
        _check_names(reading)
        return bind_all(self.interventions, prompt, self.shape) + reading

    def collect(self, tapping: Tapping, tower: InTower | None = None) -> tuple[Reads, dict[str, Tensor]]:
        """What was read, by (name, layer), and by name the rows' positions; of the vision tower, too, if it was open.

        Raises:
            HookError: a read's rows select nothing of this run.
        """
        kept = dict(tapping.kept)
        if tower is not None:
            tower.check_ran()
            kept |= tower.tapping.kept
        for item in self.reads:
            if isinstance(item, Read) and not any(name == (item.name or item.site) for name, _ in kept):
                raise HookError(
                    f"rows {shown(item.rows)} of the read at {item.site} select no row of this run\n"
                    '  "answer" exists only while generating; masks after the image need one'
                )
        return collect(kept)

    def reports(self, tapping: Tapping, tower: InTower | None = None) -> tuple[Report, ...]:
        """What each intervention did; warns of one that changed nothing, and of sinks that most visual tokens are."""
        told_of_many(tapping.sums)
        where = [tower.tapping if tower is not None and _in_tower(each) else tapping for each in self.interventions]
        reports = tuple(
            report(x, i, at.edited, at.moved, at.short)
            for i, (x, at) in enumerate(zip(self.interventions, where, strict=True))
        )
        for intervention, what in zip(self.interventions, reports, strict=True):
            if not what.n_edits:
                warn(f"{what.intervention} changed nothing: {intervention.why_nothing}", NothingChangedWarning)
        return reports


def _in_tower(thing: object) -> bool:
    return bool(getattr(thing, "in_tower", False))


def _check_names(reading: Sequence[Tap]) -> None:
    """LensError for two reads of one name."""
    named = [(tap.name, tap.layer) for tap in reading if tap.name]
    if len(set(named)) < len(named):
        twice = sorted({name for name, layer in named if named.count((name, layer)) > 1})
        raise LensError(f"two reads share the name {twice[0]!r}\n  tell them apart with Read(..., name=...)")
