"""Experiments: what the lens and the interventions are put to, with the controls that belong to them."""

from .accuracy import exact_match
from .attribution import attribution_patching
from .controls import ablation_table, blank_images, image_table, swapped_images
from .patch_scores import PatchScores
from .patching import activation_patching

__all__ = [
    "PatchScores",
    "ablation_table",
    "activation_patching",
    "attribution_patching",
    "blank_images",
    "exact_match",
    "image_table",
    "swapped_images",
]
