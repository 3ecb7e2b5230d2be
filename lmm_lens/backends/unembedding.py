"""What a model does to the output of its output embedding before it calls it logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ..prompts.text_config import text_config_of
from .sources import source_of

if TYPE_CHECKING:
    from ..adapters import Adapter


FACTORS = {"logit_scale": 1, "output_multiplier": 1, "logits_scaling": -1}
"""Settings by which some models multiply, or divide, the output of their output embedding."""


def finishing(model: nn.Module, adapter: Adapter) -> tuple[float | None, float | None]:
    """(soft cap, scale), as `lmm_lens.core.envoys.finish` takes them; None for nothing."""
    text = text_config_of(adapter.config)
    source = source_of(type(model).forward)
    cap = getattr(text, "final_logit_softcapping", None) if "softcap" in source else None
    scale = None
    for name, power in FACTORS.items():
        factor = getattr(text, name, None) if name in source else None
        scale = scale if factor is None else (1.0 if scale is None else scale) * float(factor) ** power
    return cap, scale
