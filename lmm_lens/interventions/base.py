"""What an intervention is: a frozen value that turns into taps once prompt and model are known."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Protocol, Self

from ..core.taps import Tap
from ..errors import InterventionError, unknown
from ..hooks.heads import (
    DECODER,
    VISION,
    Head,
    HeadSet,
    as_head,
    check_head,
    check_layer,
    check_part,
    whole_number,
)
from ..hooks.points import ModelShape
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike
from ..sinks.discovery import SinkReport

AutoSinks = Callable[[Prompt, Sequence[int] | None], SinkReport]
"""What "auto" asks: the sinks that a model shows on a prompt, in dimensions that are known or in any."""


class MakesHooks(Protocol):
    """A lens of the TransformerLens backend, as interventions know one."""

    def fwd_hooks(self, prompt: Prompt, interventions: Sequence[Intervention]) -> list[tuple[str, Any]]: ...


class Intervention(ABC):
    """A reusable edit: a frozen dataclass. It holds no state; a run's state never reaches the next run."""

    kinds: ClassVar[dict[str, type[Intervention]]] = {}
    why_nothing: ClassVar[str] = "its rows were not reached"
    """Why a run may end without an edit; part of the warning that says so."""

    @property
    def in_tower(self) -> bool:
        """Whether it acts in the vision tower instead of the decoder: its field `part` says so, where it has one."""
        return getattr(self, "part", DECODER) == VISION

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__name__.startswith("_"):  # parts of an experiment have no name that users could write
            Intervention.kinds[cls.__name__] = cls

    def _set(self, **values: Any) -> None:
        """Set parameters of a frozen value, from its own `__init__` alone."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @abstractmethod
    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """The taps of this intervention on a prompt and a model of this shape.

        Raises:
            HookError: a layer, head or row scope that does not exist.
            InterventionError: it does not fit the prompt or the model.
        """

    def resolve(self, prompt: Prompt, sinks_on: AutoSinks) -> Self:
        """This intervention with everything it leaves to the model ("auto") found out on this prompt."""
        return self

    def control_of(self, seed: int = 0) -> Intervention:
        """A control of this intervention: the same on what is drawn at random, doing as much.

        Raises:
            InterventionError: this kind of intervention has none, or this one leaves nothing to draw from.
        """
        raise InterventionError(
            f"{type(self).__name__} has no control that does as much at random\n  of: {', '.join(_with_control())}; "
            "of others, write one and give it as a condition of its own"
        )

    def fwd_hooks(self, prompt: Prompt, lens: MakesHooks) -> list[tuple[str, Any]]:
        """This intervention on a prompt as TransformerLens hooks, for `lens.bridge.run_with_hooks`.

        Raises:
            LensError: the lens has another backend than "transformer_lens".
        """
        return lens.fwd_hooks(prompt, [self])

    def to_dict(self) -> dict[str, Any]:
        """Its name and parameters, of plain types only.

        Raises:
            InterventionError: it holds activations, which do not fit into JSON.
        """
        values: dict[str, Any] = {"intervention": type(self).__name__}
        for name in parameters(self):
            value = getattr(self, name)
            if isinstance(value, HeadSet):
                shape = {"n_layers": value.n_layers, "n_heads": value.n_heads, "part": value.part}
                value = {"heads": [list(head) for head in value], **shape}
            try:
                json.dumps(value)
            except TypeError as error:
                raise InterventionError(
                    f"{type(self).__name__} cannot be written as JSON: {name} is a {type(value).__name__}\n"
                    "  save how it was made, and make it anew"
                ) from error
            values[name] = value
        return values

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Intervention:
        """The intervention that `to_dict` described; InterventionError for anything else."""
        if not isinstance(values, dict):
            raise InterventionError(f"expected an intervention as to_json writes it, given {values!r}")
        rest = dict(values)
        name = rest.pop("intervention", None)
        if name not in Intervention.kinds:
            raise InterventionError(unknown("intervention", name, sorted(Intervention.kinds)))
        heads = rest.get("heads")
        if isinstance(heads, dict):
            rest["heads"] = HeadSet(**heads)
        known = parameters(Intervention.kinds[name])
        for parameter in rest:
            if parameter not in known:
                raise InterventionError(unknown(f"parameter of {name}", parameter, sorted(known)))
        try:
            return Intervention.kinds[name](**rest)
        except TypeError as error:
            raise InterventionError(f"{name} cannot be made of {rest}: {error}") from error


def _with_control() -> list[str]:
    kinds = Intervention.kinds.items()
    return sorted(name for name, kind in kinds if kind.control_of is not Intervention.control_of)


def control_heads(heads: Heads, seed: int, name: str) -> HeadSet:
    """Random heads like these, as few of them as there must be.

    Raises:
        InterventionError: they are whole layers, or pairs, of which it is not known how many heads there are.
    """
    if not isinstance(heads, HeadSet):
        raise InterventionError(
            f"the control of {name} needs to know how many heads a layer has\n"
            "  give a HeadSet, as scores.top(10) or HeadSet(pairs, lens.n_layers, lens.n_heads)"
        )
    drawn = heads.random_like(seed, disjoint="most")
    if set(drawn) == set(heads):
        raise InterventionError(f"the control of {name} would be the same {len(heads)} heads, which are whole layers")
    return drawn


def parameters(intervention: Any) -> list[str]:
    """The names of an intervention's parameters; it is a dataclass, or an instance of one."""
    return [field.name for field in fields(intervention)]


def to_json(interventions: Iterable[Intervention]) -> str:
    """Several interventions as JSON, in order."""
    return json.dumps([intervention.to_dict() for intervention in interventions], indent=2)


def from_json(text: str) -> list[Intervention]:
    """The interventions that `to_json` wrote."""
    try:
        listed = json.loads(text)
    except json.JSONDecodeError as error:
        raise InterventionError(f"expected a JSON list of interventions as to_json writes it: {error}") from error
    if not isinstance(listed, list):
        raise InterventionError(f"expected a JSON list of interventions as to_json writes it, given {listed!r}")
    return [Intervention.from_dict(values) for values in listed]


def checked_part(part: str | None, heads: object = None) -> str:
    """The part of the model that is meant: the one that is named, that of a head set, or else the decoder.

    Raises:
        InterventionError: there is no such part.
    """
    if part is None:
        return heads.part if isinstance(heads, HeadSet) else DECODER
    if part not in (DECODER, VISION):
        raise InterventionError(unknown("part of the model", part, (DECODER, VISION)))
    return part


def bind_all(
    interventions: Sequence[Intervention], prompt: Prompt, shape: ModelShape, in_tower: bool = False
) -> list[Tap]:
    """The taps of several interventions, in order: where two edit the same rows, the second edits what the first left.

    Args:
        interventions: those of every part of the model.
        prompt: of the part at hand.
        shape: of it.
        in_tower: which part that is.

    Raises:
        InterventionError: one of them is no intervention, or its row scope selects nothing of this prompt.
    """
    taps: list[Tap] = []
    for index, intervention in enumerate(interventions):
        if not isinstance(intervention, Intervention):
            raise InterventionError(
                f"expected interventions such as AblateHeads(heads), given {intervention!r} at place {index}"
            )
        if intervention.in_tower != in_tower:
            continue
        own = intervention.taps(prompt, shape)
        if not any(tap.edits and tap.rows.reaches() for tap in own):
            scopes = ", ".join(sorted({repr(tap.rows.label) for tap in own if tap.edits}))
            raise InterventionError(
                f"{intervention} touches nothing: rows {scopes} select no token of this prompt\n"
                f"  the prompt is {str(prompt).splitlines()[0]}"
            )
        for tap in own:
            tap.owner = index
        taps += own
    return taps


HeadsLike = HeadSet | Iterable[Head]
"""What a user may give as heads."""

Heads = HeadSet | tuple[Head, ...]
"""What an intervention makes of it, once."""


def checked_heads(heads: HeadsLike, name: str, part: str = DECODER) -> Heads:
    """Heads as a HeadSet, or as a tuple of pairs.

    Raises:
        InterventionError: there are none.
        HookError: a set is of another part of the model.
    """
    check_part(heads, part, f"{name} of part={part!r}")
    chosen = heads if isinstance(heads, HeadSet) else tuple(as_head(head) for head in heads)
    if not chosen:
        raise InterventionError(f"{name} was given no heads: pass a HeadSet or (layer, head) pairs")
    return chosen


def heads_by_layer(heads: Heads, shape: ModelShape) -> dict[int, tuple[int, ...]]:
    """The heads of each layer, checked against the model.

    Raises:
        HookError: a layer or head lies outside the model.
        InterventionError: a head set was made for a model of another shape.
    """
    if isinstance(heads, HeadSet) and (heads.n_layers, heads.n_heads) != (shape.n_layers, max(shape.n_heads)):
        raise InterventionError(
            f"the head set was made for a model of {heads.n_layers} layers x {heads.n_heads} heads, "
            f"this one has {shape.n_layers} x {max(shape.n_heads)}"
        )
    by_layer: dict[int, list[int]] = {}
    for layer, head in sorted(set(heads)):
        check_layer(layer, shape.n_layers)
        check_head(layer, head, shape.n_layers, shape.n_heads[layer])
        by_layer.setdefault(layer, []).append(head)
    return {layer: tuple(chosen) for layer, chosen in by_layer.items()}


def layers_with_heads(layers: Iterable[int] | None, shape: ModelShape, crossing: bool = False) -> list[int]:
    """The given layers, or all with self-attention heads.

    Args:
        layers: which; None for all.
        shape: of the model.
        crossing: whether layers that attend to pictures by cross-attention count too.

    Raises:
        HookError: a layer lies outside the model.
        InterventionError: a layer that was named has no self-attention heads.
    """
    allowed = sorted([*shape.self_attention, *(shape.crossing if crossing else ())])
    if layers is None:
        return allowed
    chosen = [check_layer(layer, shape.n_layers) for layer in layers]
    headless = [layer for layer in chosen if layer not in allowed]
    if headless or not chosen:
        why = "" if set(headless).isdisjoint(shape.crossing) else "; the keys of cross-attention are no tokens"
        raise InterventionError(
            f"layers {headless} have no self-attention heads{why}\n  layers that have: {shape.self_attention}"
            if chosen
            else "no layers were given"
        )
    return chosen


def whole_numbers(values: object, name: str, what: str) -> tuple[int, ...]:
    """Layers, heads or dimensions as a tuple, each once; InterventionError for anything else, or nothing."""
    try:
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise TypeError
        listed = [whole_number(value) for value in values]
    except TypeError:
        raise InterventionError(
            f"{name}: {what} is a sequence of whole numbers, as in (1, 2), given {values!r}"
        ) from None
    if not listed:
        raise InterventionError(f"{name} was given no {what}")
    return tuple(dict.fromkeys(listed))


def plain_rows(rows: RowsLike) -> RowsLike:
    """Positions as a tuple, so that interventions compare equal and can be hashed; names and masks as they are."""
    return tuple(rows) if isinstance(rows, Sequence) and not isinstance(rows, str) else rows


def shown(rows: object) -> str:
    """A row scope in a repr."""
    return repr(rows) if isinstance(rows, str) else "given positions"


def shown_part(intervention: Intervention) -> str:
    """The part of the model in a repr, where it is not the decoder."""
    return ", part='vision'" if intervention.in_tower else ""


def shown_heads(heads: Heads, n: int = 6) -> str:
    """The first heads in a repr."""
    named = " ".join(f"L{layer}H{head}" for layer, head in tuple(heads)[:n])
    return f"{named} and {len(heads) - n} more" if len(heads) > n else named
