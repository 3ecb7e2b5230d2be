"""Visual Attention Redistribution (Kang et al., "See What You Are Told", ICLR 2025, arXiv:2503.03321).

Sink tokens soak up attention without carrying content. In heads that look at the image, take a share of what the sinks
receive, text sinks included, and give it to the other visual tokens in proportion to what they already get. Every row
still sums to one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

from torch import Tensor

from ..core.kernels import moved_by, redistribute
from ..core.sinks import givers_of, sink_groups
from ..core.taps import Tap, TapContext
from ..errors import InterventionError, unknown
from ..hooks.points import ModelShape
from ..hooks.runner import Runner
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows
from ..sinks.auto import Auto, is_auto, settled
from ..sinks.rule import SinkRule, is_known, rule_for
from .base import AutoSinks, Intervention, plain_rows, shown, whole_numbers

TASKS = {"general": 0.8, "hallucination": 0.5, "vision_centric": 0.9}
"""The paper's rho (`min_nonsink_ratio`) for each type of task; its other settings are the defaults."""


@dataclass(frozen=True)
class VAR(Intervention):
    """Visual Attention Redistribution. Sinks are found anew for every prompt, layer and decoding step.

    A row of a head is edited if its visual mass is at least `min_visual_mass` and the part of it off the sinks at least
    `min_nonsink_ratio`. Then a sink keeps `1 - transfer_fraction` of its attention.

    Whether this improves a model is an empirical question with mixed answers; measure it, with its controls.

    Args:
        transfer_fraction: p, the share taken from each sink, in (0, 1]; the paper's 0.6.
        min_nonsink_ratio: rho, in [0, 1]; see `for_task`.
        min_visual_mass: in [0, 1]; the paper's 0.2.
        sink_threshold: tau; the paper's 20, or "auto": the gap that `find_sinks` finds.
        sink_dims: the sink dimensions of the residual stream; the default is LLaMA-2-7B's. "auto" discovers them with
            `find_sinks` on the prompt at hand, two more forwards each time; to act by one rule on many prompts, call
            `find_sinks` on a few of them and give its `dims` and `threshold`.
        first_layer: layers before it are left alone; the released code's 2.
        skip_last_layer: leave the last layer alone, as the paper does.
        rows: which query rows; the paper's are the text rows after the image, generated tokens included.
        control: None, or the seed of a control experiment: in the very rows that the sinks choose, as many random
            visual and text tokens as there are sinks give as much attention as the sinks would. Where they hold less,
            they give all they hold, and the report says how much could not be matched.

    Raises:
        InterventionError: a parameter out of its range.
    """

    transfer_fraction: float = 0.6
    min_nonsink_ratio: float = 0.5
    min_visual_mass: float = 0.2
    sink_threshold: float | Auto = 20.0
    sink_dims: tuple[int, ...] | Auto = (1415, 2533)
    first_layer: int = 2
    skip_last_layer: bool = True
    rows: RowsLike = "after_image"
    control: int | None = None

    why_nothing = "no head met min_visual_mass and min_nonsink_ratio on a row that sees a sink"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", plain_rows(self.rows))
        for name in ("transfer_fraction", "min_nonsink_ratio", "min_visual_mass"):
            if not isinstance(getattr(self, name), (int, float)):
                raise InterventionError(f"{name} is a number in [0, 1], given {getattr(self, name)!r}")
        if not 0 < self.transfer_fraction <= 1:
            raise InterventionError(
                f"transfer_fraction is the share taken from the sinks, in (0, 1], given {self.transfer_fraction}\n"
                "  numbers of the released code go through VAR.from_reference_code(rho=..., p=...)"
            )
        for name in ("transfer_fraction", "min_nonsink_ratio", "min_visual_mass"):
            object.__setattr__(self, name, float(getattr(self, name)))
            if not 0 <= getattr(self, name) <= 1:
                raise InterventionError(f"{name} lies in [0, 1], given {getattr(self, name):g}")
        if not isinstance(self.first_layer, int) or self.first_layer < 0:
            raise InterventionError(f"first_layer counts from 0, given {self.first_layer!r}")
        is_auto("sink_threshold", self.sink_threshold, InterventionError)
        if not is_auto("sink_dims", self.sink_dims, InterventionError):
            if not isinstance(self.sink_dims, int) and not len(self.sink_dims):
                raise InterventionError('VAR needs sink_dims, or sink_dims="auto"')
            object.__setattr__(self, "sink_dims", whole_numbers(self.sink_dims, "VAR", "sink_dims"))

    @classmethod
    def for_task(cls, task: str, lens: Runner, **changes: Any) -> VAR:
        """The paper's settings for a type of task, with the sink dimensions known for the model.

        Args:
            task: "general", "hallucination" or "vision_centric".
            lens: the model; its card or the table of published dimensions names its sinks, or else "auto".
            **changes: parameters to set otherwise.
        """
        if task not in TASKS:
            raise InterventionError(unknown("task", task, TASKS))
        settings: dict[str, Any] = {"min_nonsink_ratio": TASKS[task]}
        if is_known(lens.adapter.config):
            rule = rule_for(lens.adapter.config)
            if not rule.dims:
                raise InterventionError(
                    f"this model has no attention sinks ({rule.source} says so), so VAR has nothing to do"
                )
            settings |= {"sink_dims": rule.dims, "sink_threshold": rule.threshold}
        else:
            settings |= {"sink_dims": "auto", "sink_threshold": "auto"}
        return cls(**{**settings, **changes})

    @classmethod
    def from_reference_code(cls, rho: float = 0.5, p: float = 0.6, **changes: Any) -> VAR:
        """Take the numbers of the released code, where rho and p mean 1 - rho and 1 - p of the paper.

        The author of the code confirmed it in issue 5 of its repository. The code's p = 0.6 takes 0.4 from the sinks.
        """
        return cls(transfer_fraction=1 - p, min_nonsink_ratio=1 - rho, **changes)

    def control_of(self, seed: int = 0) -> VAR:
        """Its control: the same attention from as many random tokens, in the very rows that the sinks choose."""
        return replace(self, control=seed)

    def resolve(self, prompt: Prompt, sinks_on: AutoSinks) -> Self:
        """With "auto" replaced by what `find_sinks` finds; InterventionError if the model has no massive activation."""
        given = self.sink_dims, self.sink_threshold
        if "auto" not in given:
            return self
        found = settled(*given, partial(sinks_on, prompt), InterventionError, "VAR has nothing to do")
        return replace(self, sink_dims=found[0], sink_threshold=found[1])

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """In each layer, find the sinks in the residual stream, then edit the pattern."""
        assert self.sink_dims != "auto"
        assert self.sink_threshold != "auto"
        rule = SinkRule(self.sink_dims, self.sink_threshold, control=self.control).checked(shape.d_model)
        visual, rows = prompt.mask("visual"), bind_rows(self.rows, prompt)

        fraction, ratio, least_mass = self.transfer_fraction, self.min_nonsink_ratio, self.min_visual_mass
        sinks, is_control = rule.key, self.control is not None

        def of_rows(*noted: Tensor) -> tuple[Tensor, ...]:
            return moved_by(fraction, *noted)

        def growth(pattern: Tensor, context: TapContext) -> Tensor:
            groups = sink_groups(context, sinks, visual, context.n_keys, pattern.dtype)
            givers = givers_of(context, sinks, visual, context.n_keys, pattern.dtype) if is_control else None
            grown, noted = redistribute(pattern, groups, fraction, ratio, least_mass, givers)
            context.note_as(of_rows, *map(context.valid_rows, noted))
            return grown

        last = shape.n_layers - 1 if self.skip_last_layer else shape.n_layers
        layers = [layer for layer in shape.self_attention if self.first_layer <= layer < last]
        if not layers:
            raise InterventionError(
                f"VAR has no layer to act in: first_layer {self.first_layer}, skip_last_layer {self.skip_last_layer}, "
                f"the model has layers 0 to {shape.n_layers - 1}"
            )
        taps = [rule.tap(prompt, layer) for layer in layers]
        return taps + [Tap.of_growth(layer, rows, growth) for layer in layers]

    def __repr__(self) -> str:
        tau = self.sink_threshold if isinstance(self.sink_threshold, str) else f"{self.sink_threshold:g}"
        dims = self.sink_dims if isinstance(self.sink_dims, str) else list(self.sink_dims)
        rest = {"min_visual_mass": 0.2, "first_layer": 2, "skip_last_layer": True, "control": None}
        changed = "".join(
            f", {name}={getattr(self, name)}" for name, usual in rest.items() if getattr(self, name) != usual
        )
        return (
            f"VAR(p={self.transfer_fraction:g}, rho={self.min_nonsink_ratio:g}, tau={tau}, dims={dims}, "
            f"rows={shown(self.rows)}{changed})"
        )
