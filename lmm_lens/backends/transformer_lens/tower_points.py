"""The hook points of the vision tower under TransformerLens's own names: `vision.blocks.l.attn.hook_pattern` and so on.

The tower runs as the module that transformers made of it. Torch's hooks on its layers hand what goes through them first
to the taps of an open session, then to the hook points that somebody has hooked; the others cost a look.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformer_lens.hook_points import HookPoint

from ...adapters.towers import Tower
from ..native.tower import TowerSession
from .architectures.hooked_attention import hooks_of
from .tower_layer import TowerLayer

POINTS = {
    "resid_pre": "hook_resid_pre",
    "pattern": "attn.hook_pattern",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
"""Hook points of the tower by the name that TransformerLens gives them, after `vision.blocks.{layer}.`."""


class TowerPoints(nn.Module):
    """The `vision` of a bridge.

    Args:
        tower: the vision tower of the bridge's own model.
        model_name: what the model is called, for errors.

    Attributes:
        blocks: of each layer, the hook points that it has.
    """

    def __init__(self, tower: Tower, model_name: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for number, parts in enumerate(tower.layers):
            block, attention = nn.Module(), nn.Module()
            block.attn = attention
            points = {}
            for site, name in POINTS.items():
                if (site == "mlp_out" and parts.mlp is None) or (site == "pattern" and parts.attends_in is not None):
                    continue
                owner, _, own = name.rpartition(".")
                shared = hooks_of(parts.attention) if site == "pattern" else None
                points[site] = _new_point() if shared is None else shared.hook_pattern
                setattr(attention if owner else block, own, points[site])
            self.blocks.append(block)
            TowerLayer(number, parts, points, tower.n_used, model_name).install()


def _new_point() -> HookPoint:
    make: Any = HookPoint  # TransformerLens's has no types
    point: HookPoint = make()
    return point


def add_tower(bridge: Any, tower: Tower, model_name: str) -> None:
    """Give a bridge the hook points of its vision tower."""
    points = TowerPoints(tower, model_name)
    bridge.vision = points.train(bridge.training)  # TransformerLens's tools ask every module
    bridge._scan_existing_hooks(bridge.vision, "vision")


def has_tower(bridge: Any) -> bool:
    """Whether a bridge has them."""
    return isinstance(bridge._modules.get("vision"), TowerPoints)


class BridgeTowerSession(TowerSession):
    """A session of the tower of a bridge, which hands over what goes through its layers by itself."""

    def _install(self, layer: int) -> None:
        pass
