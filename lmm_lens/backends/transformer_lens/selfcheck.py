"""A cheap check that edits at the hook points of a bridge change what the model says.

A hook point that fires where nothing reads it any more is the worst kind of failure: the experiment runs, and shows no
effect. So each hook point of each layer is probed once.

1. A clean pass keeps the last row of the residual stream around every layer, and checks every pattern: its shape, and
   that its rows sum to one.
2. For each hook point one pass edits the last row there in every layer, compares the residual stream behind the layer
   with the clean one, and puts the clean one back, so that layers are tested alone although they share the pass. Behind
   the last layer nothing is put back, and the logits must change.

Eight passes over the prompt in all, whatever the number of layers, and a few vectors of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...errors import HookError

PROBES: dict[str, Callable[[Tensor], Tensor]] = {
    "hook_in": torch.neg,
    "attn.hook_attn_scores": torch.zeros_like,
    "attn.hook_pattern": torch.zeros_like,
    "attn.hook_z": torch.zeros_like,
    "attn.hook_out": torch.zeros_like,
    "mlp.hook_out": torch.zeros_like,
    "hook_out": torch.neg,
}
"""What is done to the last row of each hook point: nothing that a norm behind it would undo."""

ADVICE = "build the bridge with lmm_lens.backends.transformer_lens.bridge_of, or use backend='native'"
Hooks = list[tuple[str, Callable[..., Any]]]


def check_edits_land(bridge: Any, inputs: Mapping[str, Any]) -> None:
    """Check every hook point of every layer on one prompt.

    Args:
        bridge: a TransformerBridge.
        inputs: tensors of a prompt of at least two tokens, with its picture.

    Raises:
        HookError: a pattern is none, or an edit changes nothing; names the layer and the hook.
    """
    with torch.no_grad():
        clean = _Clean(bridge, inputs)
        for site in PROBES:
            _probe(bridge, inputs, clean, site)


def _run(bridge: Any, inputs: Mapping[str, Any], hooks: Hooks) -> Tensor:
    with bridge.hooks(fwd_hooks=hooks):
        last: Tensor = bridge.original_model(**inputs).logits[..., -1, :]
        return last.clone()


def _row(x: Tensor, site: str) -> Tensor:
    """The last row, as a view: the row dimension is the second to last, but of z."""
    return x[:, -1] if site == "attn.hook_z" else x[..., -1, :]


class _Clean:
    """What a run without edits gives.

    Attributes:
        logits: of the last row.
        before, behind: the last row of the residual stream before and behind each layer that ran.
    """

    def __init__(self, bridge: Any, inputs: Mapping[str, Any]) -> None:
        self.before: dict[int, Tensor] = {}
        self.behind: dict[int, Tensor] = {}
        self.patterns: set[int] = set()
        hooks: Hooks = []
        for layer in range(len(bridge.blocks)):
            hooks += [
                (f"blocks.{layer}.hook_in", partial(self._keep, self.before, layer)),
                (f"blocks.{layer}.hook_out", partial(self._keep, self.behind, layer)),
            ]
            if "attn" in bridge.blocks[layer].submodules:
                hooks.append((f"blocks.{layer}.attn.hook_pattern", partial(self._check, bridge, layer)))
        self.logits = _run(bridge, inputs, hooks)
        for layer in self.before:
            if "attn" in bridge.blocks[layer].submodules and layer not in self.patterns:
                raise HookError(f"blocks.{layer}.attn.hook_pattern never fired: its attention does not form a pattern")

    def _keep(self, kept: dict[int, Tensor], layer: int, x: Tensor, hook: object) -> None:
        kept[layer] = _row(x, "").clone()

    def _check(self, bridge: Any, layer: int, pattern: Tensor, hook: object) -> None:
        name = f"blocks.{layer}.attn.hook_pattern"
        if pattern.ndim != 4:
            raise HookError(f"{name} has shape {tuple(pattern.shape)}, expected [batch, head, query, key]")
        total = pattern.sum(-1, dtype=torch.float32)
        worst = float((total - 1).abs().max())
        leaks = _has_sinks(bridge.blocks[layer].attn)  # a learned sink takes a share and holds no value
        if not (worst < 1e-2 or (leaks and float(total.max()) < 1.01)):
            raise HookError(f"rows of {name} do not sum to one: they are off by up to {worst:.2g}")
        self.patterns.add(layer)


def _has_sinks(attention: Any) -> bool:
    return getattr(attention.original_component, "sinks", None) is not None


def _probe(bridge: Any, inputs: Mapping[str, Any], clean: _Clean, site: str) -> None:
    """Edit one hook point of every layer, each alone."""
    names = {layer: f"blocks.{layer}.{site}" for layer in clean.before}
    names = {layer: name for layer, name in names.items() if name in bridge.hook_dict}
    fired: set[int] = set()

    def edit(layer: int, x: Tensor, hook: object) -> Tensor:
        fired.add(layer)
        edited = x.clone()
        _row(edited, site).copy_(PROBES[site](_row(x, site)))
        return edited

    def compare(layer: int, expected: Tensor, restore: bool, x: Tensor, hook: object) -> Tensor | None:
        if layer in fired and torch.equal(_row(x, ""), expected):
            raise HookError(_lost(names[layer]))
        if not restore:
            return None
        restored = x.clone()
        _row(restored, "").copy_(expected)
        return restored

    layers = sorted(clean.before)
    after = dict(pairwise(layers))
    hooks: Hooks = [(name, partial(edit, layer)) for layer, name in names.items()]
    for layer in names:
        if site != "hook_out":
            behind = partial(compare, layer, clean.behind[layer], layer != max(names))
            hooks.append((f"blocks.{layer}.hook_out", behind))
        elif layer in after:
            hooks.append((f"blocks.{after[layer]}.hook_in", partial(compare, layer, clean.before[after[layer]], True)))
    logits = _run(bridge, inputs, hooks)
    for layer, name in names.items():
        if layer not in fired:
            raise HookError(f"{name} never fired, so edits there would change nothing\n  {ADVICE}")
    if names and torch.equal(logits, clean.logits):
        raise HookError(_lost(names[max(names)]))


def _lost(name: str) -> str:
    return f"edits of {name} are discarded: the layer's output stays the same\n  {ADVICE}"
