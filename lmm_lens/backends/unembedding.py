"""What a model does to the output of its output embedding before it calls it logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ..prompts.text_config import text_config_of
from .sources import source_of

if TYPE_CHECKING:
    from ..adapters import Adapter


def finishing(model: nn.Module, adapter: Adapter) -> tuple[float | None, float | None]:
    """(soft cap, scale), as `lmm_lens.core.envoys.finish` takes them; None for nothing."""
    text = text_config_of(adapter.config)
    source = source_of(type(model).forward)
    cap = getattr(text, "final_logit_softcapping", None) if "final_logit_softcapping" in source else None
    scale = getattr(text, "logit_scale", None) if "logit_scale" in source else None
    return cap, scale
