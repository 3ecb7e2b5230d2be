"""Experiments: what the lens and the interventions are put to, with the controls that belong to them."""

from .accuracy import exact_match
from .attribution import attribution_patching
from .controls import ablation_table, blank_images, image_table, swapped_images
from .effect_scores import HeadEffects
from .effects import head_effects
from .patch_scores import PatchScores
from .patching import activation_patching
from .regression import head_attribution, random_subsets

__all__ = [
    "HeadEffects",
    "PatchScores",
    "ablation_table",
    "activation_patching",
    "attribution_patching",
    "blank_images",
    "exact_match",
    "head_attribution",
    "head_effects",
    "image_table",
    "random_subsets",
    "swapped_images",
]
