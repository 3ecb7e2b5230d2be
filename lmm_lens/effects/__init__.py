"""Causal effects of heads: sweeps of ablations over a data set, of any length, with their statistics."""

from .regression import head_attribution, random_subsets
from .scores import HeadEffects
from .sweep import head_effects

__all__ = ["HeadEffects", "head_attribution", "head_effects", "random_subsets"]
