"""What `lens` and `prompt` are inside a trace that travels: hook points by name, masks, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import HookError
from .envoys import all_rows, attention_of
from .layer_envoys import LayerEnvoys
from .packed_envoys import packed_attention_of

TOWER = "vision."
ONCE = "on a server ask in the order of the layers, and write once what all changes together make"


class TraceLens:
    """Hook points by layer and name, inside a trace.

    Args:
        layers: those of the model.
        envoy: the model in nnsight's wrapping.
        one_pass: whether the model runs only once in the trace.
        pass_under_way: tells the trace and the pass over a layer that are under way, before a hook point of it is
            asked for; not on a server.
        tower: the layers of its vision tower, whose hook points have "vision." before their names.
        n_used: how many of them the model's features come through.
        edited: those whose pattern interventions edit before anything is asked for.

    Attributes:
        entered: the layer whose entering stream was written at its operations, and what was written.
    """

    opened: tuple[LayerEnvoys, Any, Any] | None
    entered: tuple[int, Tensor] | None
    last_pass: tuple[Any, int] | None
    values: dict[int, Tensor]
    packed: bool

    def __init__(
        self,
        layers: list[LayerEnvoys],
        envoy: Any,
        one_pass: bool,
        pass_under_way: Callable[[LayerEnvoys, str], tuple[Any, int]] | None = None,
        tower: Sequence[LayerEnvoys] = (),
        n_used: int = 0,
        edited: tuple[int, ...] = (),
    ) -> None:
        self.tower, self.n_used, self.edited = tower, n_used, edited
        self.layers, self.envoy, self.one_pass, self.pass_under_way = layers, envoy, one_pass, pass_under_way
        self.opened, self.last_pass, self.values, self.entered, self.packed = None, None, {}, None, False

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        return len(self.layers)

    @property
    def n_heads(self) -> int:
        """Heads of a layer; the most that any has."""
        return max(envoys.n_heads for envoys in self.layers)

    @property
    def d_head(self) -> int:
        """Width of a head; the widest."""
        return max(envoys.d_head for envoys in self.layers)

    def read(self, layer: int, site: str) -> Tensor:
        """An activation, all rows: see `Lens.read`."""
        envoys = self.envoys_at(layer, site)
        if site.startswith(TOWER):
            found = self._read(envoys, site.removeprefix(TOWER))
            return found[None] if self._is_packed(found, site) else found
        return self._read(envoys, site)

    def _read(self, envoys: LayerEnvoys, site: str) -> Tensor:
        activation: Tensor
        if site == "resid_pre":
            activation = self._entering(envoys)
        elif site == "pattern":
            attention = self.attention(envoys, again=self.one_pass or self.pass_under_way is not None)[0]
            rows = all_rows(attention.shape[0], attention.shape[2], attention.device)
            activation = attention.probabilities(rows, None)
        elif site == "z":
            activation = envoys.output_projection.input.unflatten(-1, (envoys.n_heads, envoys.d_head))
            envoys.output_projection.input = activation.flatten(-2)  # so that gradients reach what is handed out
        else:
            output = envoys.with_output(site).output
            activation = output[0] if isinstance(output, tuple) else output
        return activation

    def write(self, layer: int, site: str, value: Tensor) -> None:
        """Put an activation in the place of the model's: see `Lens.write`."""
        envoys = self.envoys_at(layer, site)
        if not isinstance(value, Tensor):
            raise HookError(f"{site} of layer {layer} takes a tensor, given {type(value).__name__}: {value!r}")
        in_tower, name = site.startswith(TOWER), site
        if in_tower and layer >= self.n_used:
            raise HookError(
                f"the model's features come through layers 0 to {self.n_used - 1} of its vision tower: what is written "
                f"into layer {layer} reaches no answer"
            )
        site = site.removeprefix(TOWER)
        if site == "pattern":
            attention, operation = self.attention(envoys, again=True)
            rows = all_rows(attention.shape[0], attention.shape[2], attention.device)
            old = attention.probabilities(rows, None)
        else:
            old = self._read(envoys, site)
        if in_tower and self._is_packed(old, name):
            old = old[None]
        if value.shape != old.shape:
            raise HookError(f"{name} of layer {layer} is {tuple(old.shape)}, given {tuple(value.shape)}")
        value = value.to(old)  # device and dtype: means and stored activations are often fp32
        if in_tower and self.packed:
            value = value[0]
        if site == "resid_pre":
            if self._has_written(envoys):
                raise HookError(f"resid_pre of layer {layer} was written before in this trace\n  {ONCE}")
            envoys.enter(value)
            self.entered = (layer, value) if envoys.entries else None
        elif site == "pattern":
            attention.put(value, old, rows, None)
            operation.output = (attention.out, attention.weights)
        elif site == "z":
            envoys.output_projection.input = value.flatten(-2)
        else:
            envoy = envoys.with_output(site)
            output = envoy.output
            envoy.output = (value, *output[1:]) if isinstance(output, tuple) else value

    def _is_packed(self, x: Tensor, site: str) -> bool:
        """Whether a tower runs all pictures as one sequence, [token, ...]; HookError for a map of rows and columns."""
        by_head = site in (f"{TOWER}z", f"{TOWER}pattern")
        n = x.ndim - by_head
        if n not in (2, 3):
            raise HookError(f"this vision tower runs on {tuple(x.shape)}, which has no sequence of tokens")
        self.packed = n == 2
        return self.packed

    def _has_written(self, envoys: LayerEnvoys) -> bool:
        """Whether the stream that enters a layer was written at its operations, which the model has gone past then."""
        return self.one_pass and self.entered is not None and self.entered[0] == envoys.layer and bool(envoys.entries)

    def _entering(self, envoys: LayerEnvoys) -> Tensor:
        if self.entered is not None and self._has_written(envoys):
            return self.entered[1]
        try:
            return envoys.entering()
        except Exception as error:
            if not envoys.entries or type(error).__name__ != "OutOfOrderError":
                raise
            raise HookError(
                f"the model has gone past resid_pre of layer {envoys.layer}: it was written before in this step, or "
                f"what comes later was asked for first\n  {ONCE}"
            ) from error

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a lens has read and write alone inside a trace that travels, and no {name!r}\n"
            "  call what is built on runs before the trace or after it"
        )

    def attention(self, envoys: LayerEnvoys, again: bool) -> tuple[Any, Any]:
        """A layer's attention, as edits have left it, and its operation.

        Args:
            envoys: of the layer.
            again: go on with the attention that was read or written before, if it is of this step: its arguments
                cannot be asked for twice.
        """
        if self.opened is not None and self.opened[0] is envoys and again:
            attention, operation = self.opened[1:]
            if torch.equal(operation.output[0], attention.out):
                return attention, operation
            raise HookError(
                f"the pattern of layer {envoys.layer} was read in an earlier step than it is written in\n"
                "  read it in this step too, before writing it"
            )
        try:
            if envoys.packed:
                self._check_unedited(envoys)
                found = packed_attention_of(envoys)
            else:
                found = attention_of(envoys.keeping_weights(), self.values)[:2]
        except Exception as error:
            if self.opened is None or self.opened[0] is not envoys or type(error).__name__ != "OutOfOrderError":
                raise
            raise HookError(
                f"the pattern of layer {envoys.layer} was asked for twice in one step of a generation on a server\n"
                "  keep what lens.read gave, or write it from an edit of lens.trace(prompt, interventions=...)"
            ) from error
        self.opened = envoys, *found
        return found

    def _check_unedited(self, envoys: LayerEnvoys) -> None:
        """HookError where interventions have edited parts of a packed pattern, which hand on what they give alone."""
        if envoys.layer in self.edited:
            raise HookError(
                f"the pattern of layer {envoys.layer} of the vision tower is edited by an intervention of this trace, "
                "and a tower that packs pictures hands no edited pattern on\n"
                "  lens.run(prompt, interventions, read=['vision.pattern']) reads it; in the trace z can be read"
            )

    def envoys_at(self, layer: int, site: str) -> LayerEnvoys:
        """The envoys of a layer that has the hook point; HookError otherwise."""
        in_tower = isinstance(site, str) and site.startswith(TOWER)
        layers, whose = (self.tower, "vision tower") if in_tower else (self.layers, "model")
        if not layers:
            raise HookError("this model has no vision tower with attention heads, so it has no hook points there")
        if not 0 <= layer < len(layers):
            raise HookError(f"layer {layer} is out of range: the {whose} has layers 0 to {len(layers) - 1}")
        envoys = layers[layer]
        inner = site.removeprefix(TOWER) if in_tower else site
        if inner not in envoys.sites:
            named = ", ".join(f"{TOWER}{each}" if in_tower else each for each in envoys.sites)
            where = " of the vision tower" if in_tower else ""
            raise HookError(f"layer {layer}{where} has no hook point {site!r}\n  it has: {named}")
        this_pass = self.pass_under_way(envoys, inner) if self.pass_under_way is not None else None
        if this_pass != self.last_pass:
            if self.last_pass is None or this_pass is None or this_pass[0] is not self.last_pass[0]:
                self.values = {}
            self.opened, self.last_pass = None, this_pass
        return envoys


class TracePrompt:
    """A prompt inside a trace that travels: its masks.

    Args:
        masks: by name, Bool[batch, position].
    """

    def __init__(self, masks: dict[str, Tensor]) -> None:
        self.masks = masks
        self.n_rows, self.n_tokens = masks["all"].shape

    def mask(self, name: str) -> Tensor:
        """A mask by name, as `Prompt.mask` gives it."""
        if name not in self.masks:
            raise HookError(f"unknown mask {name!r}\n  valid: {', '.join(self.masks)}")
        return self.masks[name]
