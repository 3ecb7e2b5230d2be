"""The sink tokens that a view outlines: which rule finds them, and where it is said that there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.kernels import sink_score
from ..errors import ScoreError
from ..hooks.points import Read
from ..hooks.results import Generation, Run
from ..prompts.prompt import Prompt
from ..sinks import SinkRule, rule_for

if TYPE_CHECKING:
    from ..lens import Lens

PHI = "viewer phi"


@dataclass(frozen=True, eq=False)
class Sinks:
    """The sink tokens of each layer.

    Attributes:
        of_layer: layer to the positions of its sinks, text tokens too; None where they are not known.
        about: the rule that found them, or why there are none, in words.
    """

    of_layer: Mapping[int, tuple[int, ...]] | None
    about: str


def sink_rule(lens: Lens, sinks: bool | SinkRule) -> tuple[SinkRule | None, str]:
    """The rule to find sinks by, if there is one to be had, and what to say of it."""
    if sinks is False:
        return None, "not asked for"
    if isinstance(sinks, SinkRule):
        rule = sinks.checked(lens.shape.d_model)
    elif sinks is not True:
        raise ScoreError(f"sinks is True, False or a SinkRule, given {sinks!r}")
    else:
        try:
            rule = rule_for(lens.adapter.config)
        except ScoreError:
            return None, "not known for this model: find_sinks(lens, prompts) discovers them, view(..., sinks=rule)"
    if not rule.dims:
        return None, f"none: {rule.source} knows of no sink dimensions"
    return rule, f"dimensions {', '.join(map(str, rule.dims))}, threshold {rule.threshold:g} ({rule.source})"


def sinks_of_run(
    run: Run | Generation,
    prompt: Prompt,
    row: int,
    lens: Lens | None,
    sinks: bool | SinkRule,
    layers: Sequence[int],
) -> Sinks:
    """Sinks of a run's prompt, which takes another pass; not after edits, which move them."""
    if lens is None:
        return Sinks(None, "not known of a run alone: view(prompt, run, lens=lens) finds them")
    rule, about = sink_rule(lens, sinks)
    if rule is None:
        return Sinks(None, about)
    if run.reports:
        return Sinks(None, "not known: the run was edited, and edits move them")
    with lens.nothing_applied():
        again = lens.run(prompt, read=[phi_read(rule, layers)], logits="last")
    return Sinks(sinks_in(again, rule, row), about)


def phi_read(rule: SinkRule, layers: Sequence[int]) -> Read:
    dims = rule.dims
    return Read("resid_pre", layers, reduce=lambda x, context: sink_score(x, dims), name=PHI)


def sinks_in(run: Run, rule: SinkRule, row: int) -> dict[int, tuple[int, ...]]:
    """Layer to the positions with phi at the threshold or above; rows that only pad have NaN, which is never."""
    found = {}
    for (name, layer), phi in run.reads.items():
        if name == PHI:
            positions = run.positions[PHI][row].to(phi.device)
            found[layer] = tuple(positions[(phi[row] >= rule.threshold) & (positions >= 0)].tolist())
    return found
