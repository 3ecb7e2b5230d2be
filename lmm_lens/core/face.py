"""What `lens` and `prompt` are inside a trace that travels: hook points by name, masks, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import HookError
from .drive import attention_of, call_of
from .selection import Chunk


class Face:
    """Hook points by layer and name, inside a trace.

    Args:
        parts: the layers, see `lmm_lens.core.drive`.
        envoy: the model in nnsight's wrapping.
    """

    def __init__(self, parts: list[dict[str, Any]], envoy: Any) -> None:
        self.parts, self.envoy = parts, envoy
        self.read_last = None

    read_last: tuple[int, tuple[Any, Any, Any]] | None

    def read(self, layer: int, site: str) -> Tensor:
        """An activation, all rows: see `Lens.read`."""
        part = self.part(layer, site)
        if site != "pattern":
            self.read_last = None
        if site == "resid_pre":
            return part["module"].input
        if site == "pattern":
            return self.pattern(part)
        if site == "z":
            return part["z"].input.unflatten(-1, (part["n_heads"], part["d_head"]))
        output = self.envoy_of(part, site).output
        return output[0] if isinstance(output, tuple) else output

    def write(self, layer: int, site: str, value: Tensor) -> None:
        """Put an activation in the place of the model's: see `Lens.write`."""
        part = self.part(layer, site)
        if site != "pattern":
            old = self.read(layer, site)
            if value.shape != old.shape:
                raise HookError(f"{site} of layer {layer} is {tuple(old.shape)}, given {tuple(value.shape)}")
        if site == "resid_pre":
            part["module"].input = value
        elif site == "pattern":
            attention, operation, weights = self.attention(part)
            rows = whole(attention.shape[0], attention.shape[2], attention.device)
            old = attention.probabilities(rows, None)
            if value.shape != old.shape:
                raise HookError(f"the pattern of layer {layer} is {tuple(old.shape)}, given {tuple(value.shape)}")
            attention.put(value.to(old.dtype), old, rows, None)
            operation.output = (attention.out, weights)
        elif site == "z":
            part["z"].input = value.flatten(-2)
        else:
            envoy = self.envoy_of(part, site)
            if site == "mlp_out":
                envoy.output = value
                return
            output = envoy.output
            envoy.output = (value, *output[1:]) if isinstance(output, tuple) else value

    def envoy_of(self, part: dict[str, Any], site: str) -> Any:
        """The envoy whose output is the hook point."""
        return part[{"attn_out": "attention", "mlp_out": "mlp", "resid_post": "module"}[site]]

    def pattern(self, part: dict[str, Any]) -> Tensor:
        """The whole pattern of a layer, [batch, head, row, key]; leaves it open to be written."""
        if part["from_weights"]:
            attention = attention_of(part)
            self.read_last = part["layer"], attention
            seen = attention[0]
            return seen.probabilities(whole(seen.shape[0], seen.shape[2], seen.device), None)
        call = call_of(part, getattr(part["attention"].source, part["call"]))
        return call.probabilities(whole(call.query.shape[0], call.query.shape[2], call.query.device), None)

    def attention(self, part: dict[str, Any]) -> tuple[Any, Any, Any]:
        """A layer's attention to be written: the one just read, if it was."""
        if self.read_last is not None and self.read_last[0] == part["layer"]:
            (_, attention), self.read_last = self.read_last, None
            return attention
        return attention_of(part)

    def part(self, layer: int, site: str) -> dict[str, Any]:
        """The layer that has the hook point; HookError otherwise."""
        if not 0 <= layer < len(self.parts):
            raise HookError(f"layer {layer} is out of range: the model has layers 0 to {len(self.parts) - 1}")
        part = self.parts[layer]
        if site not in part["sites"]:
            raise HookError(f"layer {layer} has no hook point {site!r}\n  it has: {', '.join(part['sites'])}")
        return part


def whole(batch: int, n_rows: int, device: torch.device) -> Chunk:
    """All rows of a pass."""
    index = torch.arange(n_rows, device=device).expand(batch, n_rows)
    return Chunk(index, torch.ones_like(index, dtype=torch.bool), batch * n_rows, 0, slice(0, n_rows))


class PromptFace:
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
