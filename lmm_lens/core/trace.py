"""What `lens` and `prompt` are inside a trace that travels: hook points by name, masks, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import HookError
from .envoys import all_rows, attention_of


class TraceLens:
    """Hook points by layer and name, inside a trace.

    Args:
        parts: the layers, see `lmm_lens.core.envoys`.
        envoy: the model in nnsight's wrapping.
        once: whether the model runs only once in the trace.
        clock: tells the trace and the pass over a layer that are under way; not on a server.
    """

    opened: tuple[int, Any, Any] | None
    now: tuple[Any, int] | None
    values: dict[int, Tensor]

    def __init__(
        self,
        parts: list[dict[str, Any]],
        envoy: Any,
        once: bool,
        clock: Callable[[dict[str, Any]], tuple[Any, int]] | None = None,
    ) -> None:
        self.parts, self.envoy, self.once, self.clock = parts, envoy, once, clock
        self.opened, self.now, self.values = None, None, {}

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        return len(self.parts)

    @property
    def n_heads(self) -> int:
        """Heads of a layer; the most that any has."""
        return max(part["n_heads"] for part in self.parts)

    @property
    def d_head(self) -> int:
        """Width of a head; the widest."""
        return max(part["d_head"] for part in self.parts)

    def read(self, layer: int, site: str) -> Tensor:
        """An activation, all rows: see `Lens.read`."""
        part = self.part(layer, site)
        if site == "resid_pre":
            return part["module"].input
        if site == "pattern":
            attention = self.attention(part, again=self.once or self.clock is not None)[0]
            return attention.probabilities(all_rows(attention.shape[0], attention.shape[2], attention.device), None)
        if site == "z":
            split = part["z"].input.unflatten(-1, (part["n_heads"], part["d_head"]))
            part["z"].input = split.flatten(-2)  # so that gradients reach what is handed out
            return split
        output = self.envoy_of(part, site).output
        return output[0] if isinstance(output, tuple) else output

    def write(self, layer: int, site: str, value: Tensor) -> None:
        """Put an activation in the place of the model's: see `Lens.write`."""
        part = self.part(layer, site)
        if not isinstance(value, Tensor):
            raise HookError(f"{site} of layer {layer} takes a tensor, given {type(value).__name__}: {value!r}")
        if site == "pattern":
            attention, operation = self.attention(part, again=True)
            rows = all_rows(attention.shape[0], attention.shape[2], attention.device)
            old = attention.probabilities(rows, None)
        else:
            old = self.read(layer, site)
        if value.shape != old.shape:
            raise HookError(f"{site} of layer {layer} is {tuple(old.shape)}, given {tuple(value.shape)}")
        value = value.to(old)  # device and dtype: means and stored activations are often fp32
        if site == "resid_pre":
            part["module"].input = value
        elif site == "pattern":
            attention.put(value, old, rows, None)
            operation.output = (attention.out, attention.weights)
        elif site == "z":
            part["z"].input = value.flatten(-2)
        else:
            envoy = self.envoy_of(part, site)
            output = envoy.output
            envoy.output = (value, *output[1:]) if isinstance(output, tuple) else value

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a lens has read and write alone inside a trace that travels, and no {name!r}\n"
            "  call what is built on runs before the trace or after it"
        )

    def attention(self, part: dict[str, Any], again: bool) -> tuple[Any, Any]:
        """A layer's attention, as edits have left it, and its operation.

        Args:
            part: the layer.
            again: go on with the attention that was read or written before, if it is of this step: its arguments
                cannot be asked for twice.
        """
        if self.opened is not None and self.opened[0] == part["layer"] and again:
            attention, operation = self.opened[1:]
            if torch.equal(operation.output[0], attention.out):
                return attention, operation
            raise HookError(
                f"the pattern of layer {part['layer']} was read in an earlier step than it is written in\n"
                "  read it in this step too, before writing it"
            )
        try:
            attention, operation, _ = attention_of({**part, "keeps": True}, self.values)
        except Exception as error:
            if self.opened is None or self.opened[0] != part["layer"] or type(error).__name__ != "OutOfOrderError":
                raise
            raise HookError(
                f"the pattern of layer {part['layer']} was asked for twice in one step of a generation on a server\n"
                "  keep what lens.read gave, or write it from an edit of lens.trace(prompt, interventions=...)"
            ) from error
        self.opened = part["layer"], attention, operation
        return attention, operation

    def envoy_of(self, part: dict[str, Any], site: str) -> Any:
        """The envoy whose output is the hook point."""
        return part[{"attn_out": "attention", "mlp_out": "mlp", "resid_post": "module"}[site]]

    def part(self, layer: int, site: str) -> dict[str, Any]:
        """The layer that has the hook point; HookError otherwise."""
        if not 0 <= layer < len(self.parts):
            raise HookError(f"layer {layer} is out of range: the model has layers 0 to {len(self.parts) - 1}")
        part = self.parts[layer]
        if site not in part["sites"]:
            raise HookError(f"layer {layer} has no hook point {site!r}\n  it has: {', '.join(part['sites'])}")
        now = self.clock(part) if self.clock is not None else None
        if now != self.now:
            if self.now is None or now is None or now[0] is not self.now[0]:
                self.values = {}
            self.opened, self.now = None, now
        return part


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
