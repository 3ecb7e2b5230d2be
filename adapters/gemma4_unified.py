"""Gemma 4 Unified: Gemma 4's layout without a tower; patches are merged before the model, and so are their places."""

from .gemma4 import Gemma4


class Gemma4Unified(Gemma4):
    """Gemma 4 Unified with pictures and videos."""

    family = "gemma4_unified"
    model_types = ("gemma4_unified",)
    has_tower_heads = False

    @property
    def pooled(self) -> int:
        return 1
