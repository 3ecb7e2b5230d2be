"""What `lens` and `prompt` are inside a trace that travels: hook points by name, masks, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import HookError
from .drive import attention_of, call_of, whole


class Face:
    """Hook points by layer and name, inside a trace.

    Args:
        parts: the layers, see `lmm_lens.core.drive`.
        envoy: the model in nnsight's wrapping.
        edited: the layers whose pattern interventions edit before the block sees it.
    """

    def __init__(self, parts: list[dict[str, Any]], envoy: Any, edited: frozenset[int] = frozenset()) -> None:
        self.parts, self.envoy, self.edited = parts, envoy, edited
        self.given = parts, envoy, edited
        self.read_last = None

    read_last: tuple[int, Any] | None

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
            attention, operation = self.attention(part)
            rows = whole(attention.shape[0], attention.shape[2], attention.device)
            old = attention.probabilities(rows, None)
            if value.shape != old.shape:
                raise HookError(f"the pattern of layer {layer} is {tuple(old.shape)}, given {tuple(value.shape)}")
            attention.put(value.to(old.dtype), old, rows, None)
            operation.output = (attention.out, attention.weights)
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
        """The whole pattern of a layer as edits have left it, [batch, head, row, key]; it may still be written."""
        self.read_last = None
        if part["from_weights"] or part["layer"] in self.edited:
            attention = attention_of({**part, "keeps": True})[0]
            self.read_last = part["layer"], attention
            return attention.probabilities(whole(attention.shape[0], attention.shape[2], attention.device), None)
        # not its output as well: the block could not go back to these arguments to write
        call = call_of(part, getattr(part["attention"].source, part["call"]))
        return call.probabilities(whole(call.query.shape[0], call.query.shape[2], call.query.device), None)

    def attention(self, part: dict[str, Any]) -> tuple[Any, Any]:
        """A layer's attention to be written, and its operation."""
        operation = getattr(part["attention"].source, part["call"])
        if self.read_last is None or self.read_last[0] != part["layer"]:
            return attention_of({**part, "keeps": True})[:2]
        (_, attention), self.read_last = self.read_last, None
        if not torch.equal(operation.output[0], attention.out):
            raise HookError(
                f"the pattern of layer {part['layer']} was read in an earlier step than it is written in\n"
                "  read it in this step too, before writing it"
            )
        return attention, operation

    def part(self, layer: int, site: str) -> dict[str, Any]:
        """The layer that has the hook point; HookError otherwise."""
        if not 0 <= layer < len(self.parts):
            raise HookError(f"layer {layer} is out of range: the model has layers 0 to {len(self.parts) - 1}")
        part = self.parts[layer]
        if site not in part["sites"]:
            raise HookError(f"layer {layer} has no hook point {site!r}\n  it has: {', '.join(part['sites'])}")
        return part


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
