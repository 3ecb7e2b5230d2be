"""Activation and attribution patching: which activation carries the answer from a clean run into a corrupt one?"""

from .activation import activation_patching
from .attribution import attribution_patching
from .scores import PatchScores

__all__ = ["PatchScores", "activation_patching", "attribution_patching"]
