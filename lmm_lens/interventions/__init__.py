"""Interventions: values that say where and how to edit a model's activations. One a file."""

from .ablate import AblateHeads
from .base import Intervention

__all__ = ["AblateHeads", "Intervention"]
