"""Granite 4 Vision: LLaVA-1.6's layout, where a Q-Former makes a few tokens of each window of patches.

A token starts from the patches of its own cell and asks all of its window: its box is where it lies.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property

from .anyres import AnyRes


class Granite4Vision(AnyRes):
    """Granite 4 Vision; visual features are added between the first decoder layers too."""

    family = "granite4_vision"
    model_types = ("granite4_vision",)

    @cached_property
    def side(self) -> int:
        patches = self.edge // int(self.config.vision_config.patch_size)
        return int(patches * Fraction(self.config.downsample_rate))

    @property
    def cell(self) -> float:
        return float(self.config.vision_config.patch_size / Fraction(self.config.downsample_rate))
