"""What one call does to a model: interventions in order, then reads; bound to a prompt, and reported on at the end."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..core.taps import Tap
from ..errors import HookError, LensError
from ..hooks.points import Read, Reader
from ..hooks.results import Reads, Report, collect, report
from ..interventions.base import Intervention, bind_all, shown
from ..prompts.prompt import Prompt

if TYPE_CHECKING:
    from ..core.tapping import Tapping
    from .lens import Lens


@dataclass(frozen=True, eq=False)
class Planned:
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
    tokens: Tensor | None = None


class Program:
    """Interventions and reads; called with a prompt it gives their taps.

    Args:
        lens: the model that they are for.
        interventions: edits, in order.
        reads: hook point names or readers.

    Raises:
        HookError: something that cannot be read.
    """

    def __init__(self, lens: Lens, interventions: Sequence[Intervention], reads: Sequence[Reader | str] = ()) -> None:
        self.lens = lens
        self.interventions = tuple([interventions] if isinstance(interventions, Intervention) else interventions)
        items = [reads] if isinstance(reads, (str, Reader)) else reads
        self.reads = tuple(Read(item) if isinstance(item, str) else item for item in items)
        for item in self.reads:
            if not isinstance(item, Reader):
                raise HookError(f"expected a hook point name or Read(...), given {item!r}")

    def __call__(self, prompt: Prompt) -> list[Tap]:
        """The taps on a prompt; "auto" parameters are found out here."""
        self.interventions = tuple(
            item.resolve(self.lens, prompt) if isinstance(item, Intervention) else item for item in self.interventions
        )
        reading = [tap for read in self.reads for tap in read.taps(prompt, self.lens.shape)]
        named = [(tap.name, tap.layer) for tap in reading if tap.name]
        if len(set(named)) < len(named):
            twice = sorted({name for name, layer in named if named.count((name, layer)) > 1})
            raise LensError(f"two reads share the name {twice[0]!r}\n  tell them apart with Read(..., name=...)")
        return bind_all(self.interventions, prompt, self.lens.shape) + reading

    def collect(self, tapping: Tapping) -> tuple[Reads, dict[str, Tensor]]:
        """What was read, by (name, layer), and by name the rows' positions.

        Raises:
            HookError: a read's rows select nothing of this run.
        """
        for item in self.reads:
            if isinstance(item, Read) and not any(name == (item.name or item.site) for name, _ in tapping.kept):
                raise HookError(
                    f"rows {shown(item.rows)} of the read at {item.site} select no row of this run\n"
                    '  "answer" exists only while generating; masks after the image need one'
                )
        return collect(tapping.kept)

    def reports(self, tapping: Tapping, depth: int = 3) -> tuple[Report, ...]:
        """What each intervention did; one that changed nothing is also warned of, at the line `depth` calls up."""
        reports = tuple(report(x, i, tapping.edited, tapping.moved) for i, x in enumerate(self.interventions))
        for intervention, what in zip(self.interventions, reports, strict=True):
            if not what.n_edits:
                warnings.warn(f"{what.intervention} changed nothing: {intervention.why_nothing}", stacklevel=depth)
        return reports
