"""Interventions: values that say where and how to edit a model's activations. One idea a file."""

from .ablate import AblateHeads
from .base import Intervention, from_json, to_json
from .boost import BoostAttention
from .knockout import Knockout, KnockoutSinks
from .means import HeadMeans, head_means
from .own import Edit, EditPattern
from .patch import PatchHeads, PatchPattern, PatchResidual
from .scale import ScaleAttention
from .tokens import AblateTokens
from .var import VAR

__all__ = [
    "VAR",
    "AblateHeads",
    "AblateTokens",
    "BoostAttention",
    "Edit",
    "EditPattern",
    "HeadMeans",
    "Intervention",
    "Knockout",
    "KnockoutSinks",
    "PatchHeads",
    "PatchPattern",
    "PatchResidual",
    "ScaleAttention",
    "from_json",
    "head_means",
    "to_json",
]
