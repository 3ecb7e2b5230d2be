"""Experiments: what the lens and the interventions are put to, with the controls that belong to them."""

from .accuracy import exact_match
from .attribution import attribution_patching
from .patch_scores import PatchScores
from .patching import activation_patching

__all__ = ["PatchScores", "activation_patching", "attribution_patching", "exact_match"]
