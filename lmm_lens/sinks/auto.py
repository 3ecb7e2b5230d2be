"""Sink dimensions and thresholds that are left to the model: "auto"."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Literal

from ..errors import LensError, ScoreError
from ..hooks.runner import Runner
from ..prompts.prompt import Prompt
from .discovery import SinkReport, find_sinks
from .rule import SinkRule, rule_for

Auto = Literal["auto"]
LOOKED_AT = 8  # prompts


def is_auto(name: str, value: object, error: type[LensError]) -> bool:
    """Whether a parameter is left to the model; refuses words other than "auto"."""
    if isinstance(value, str) and value != "auto":
        raise error(f'{name} is a value or "auto", given {value!r}')
    return isinstance(value, str)


def settled(
    dims: Sequence[int] | Auto,
    threshold: float | Auto,
    looking: Callable[[Sequence[int] | None], SinkReport],
    error: type[LensError],
    consequence: str,
) -> tuple[tuple[int, ...], float]:
    """Dimensions and threshold, with what is "auto" found out.

    Args:
        dims, threshold: as given; at least one of them is "auto".
        looking: finds sinks, in the dimensions that it is given or in any.
        error: what to raise if there are none.
        consequence: what follows then, in words.
    """
    report = looking(None if isinstance(dims, str) else dims)
    if not report.dims or (isinstance(threshold, str) and not report):
        raise error(f'"auto" found no sinks, so {consequence}\n  {report}')
    return report.dims, report.threshold if isinstance(threshold, str) else threshold


def rule_on(
    lens: Runner,
    prompts: Prompt | Iterable[Prompt],
    dims: Sequence[int] | Auto | None = None,
    threshold: float | Auto | None = None,
) -> tuple[SinkRule, Any]:
    """The sink rule of a model for some prompts, and the prompts, of which a stream may have been begun.

    What is "auto" is found on the first prompts, eight at most, so that one rule acts on all of them; for the rest see
    `rule_for`.

    Raises:
        ScoreError: nothing is known of this model, "auto" found nothing, or a dimension lies outside the model.
    """
    is_auto("sink_dims", dims, ScoreError)
    is_auto("sink_threshold", threshold, ScoreError)
    if not isinstance(dims, str) and not isinstance(threshold, str):
        return rule_for(lens.adapter.config, dims, threshold), prompts
    again: Any = prompts
    if isinstance(prompts, Prompt):
        first: list[Prompt] = [prompts]
    else:
        coming: Iterator[Prompt] = iter(prompts)
        first = list(islice(coming, LOOKED_AT))
        again = prompts if isinstance(prompts, Sequence) else chain(first, coming)
    width = lens.shape.d_model
    named: Sequence[int] | Auto = (
        dims if isinstance(dims, str) else rule_for(lens.adapter.config, dims, 0.5 * width**0.5).dims
    )
    asked = 20.0 if threshold is None else threshold
    with lens.nothing_applied():
        found = settled(named, asked, lambda own: find_sinks(lens, first, own), ScoreError, "none can be left out")
    return SinkRule(*found, source="find_sinks").checked(width), again
