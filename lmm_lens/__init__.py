"""lmm-lens: circuit analysis of large multimodal models.

Everything is imported when it is first used, so that `import lmm_lens` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Lens": "lens",
    "Prompt": "prompts.prompt",
    "Span": "prompts.spans",
    "Box": "prompts.spans",
    "HeadSet": "hooks.heads",
    "Read": "hooks.points",
    "Intervention": "interventions",
    "VAR": "interventions",
    "AblateHeads": "interventions",
    "AblateTokens": "interventions",
    "BoostAttention": "interventions",
    "Edit": "interventions",
    "EditPattern": "interventions",
    "Knockout": "interventions",
    "KnockoutSinks": "interventions",
    "PatchHeads": "interventions",
    "PatchPattern": "interventions",
    "PatchResidual": "interventions",
    "ScaleAttention": "interventions",
    "Direction": "steering",
    "direction": "steering",
    "Steer": "steering",
    "head_means": "interventions",
    "find_sinks": "sinks",
    "HeadScores": "scoring",
    "score_heads": "scoring",
    "localization_heads": "scoring",
    "localize": "scoring",
    "PatchScores": "patching",
    "HeadEffects": "effects",
    "head_effects": "effects",
    "head_attribution": "effects",
    "activation_patching": "patching",
    "attribution_patching": "patching",
    "AttentionMap": "readouts",
    "attention_map": "readouts",
    "LogitLens": "readouts",
    "logit_lens": "readouts",
    "Translators": "readouts",
    "fit_translators": "readouts",
    "LatentLens": "readouts",
    "latent_lens": "readouts",
    "EmbeddingBank": "readouts",
    "embedding_bank": "readouts",
    "DirectAttribution": "readouts",
    "direct_attribution": "readouts",
    "PixelAttribution": "readouts",
    "pixel_attribution": "readouts",
    "DeletionCurve": "readouts",
    "deletion_curve": "readouts",
    "Circuit": "circuits",
    "find_circuit": "circuits",
    "smallest_heads": "circuits",
    "compare": "comparisons",
    "Comparison": "comparisons",
    "Condition": "comparisons",
    "ablation_table": "comparisons",
    "image_table": "comparisons",
    "blank_images": "comparisons",
    "swapped_images": "comparisons",
    "exact_match": "comparisons",
    "DataSet": "data",
    "Sample": "data",
    "Misplaced": "checks.layout",
    "misplaced": "checks.layout",
    "view": "viewer",
    "View": "viewer",
    "InformationFlow": "flow",
    "information_flow": "flow",
    "LensError": "errors",
}

_ROOMS = {"shapes": "bundled.shapes", "emoji": "bundled.emoji"}
"""Modules that are imported from here by a short name, as `data` and `statistics` are by their own."""

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from .bundled import emoji as emoji
    from .bundled import shapes as shapes
    from .checks.layout import Misplaced as Misplaced
    from .checks.layout import misplaced as misplaced
    from .circuits import Circuit as Circuit
    from .circuits import find_circuit as find_circuit
    from .circuits import smallest_heads as smallest_heads
    from .comparisons import Comparison as Comparison
    from .comparisons import Condition as Condition
    from .comparisons import ablation_table as ablation_table
    from .comparisons import blank_images as blank_images
    from .comparisons import exact_match as exact_match
    from .comparisons import image_table as image_table
    from .comparisons import swapped_images as swapped_images
    from .comparisons.compare import compare as compare
    from .data import DataSet as DataSet
    from .data import Sample as Sample
    from .effects import HeadEffects as HeadEffects
    from .effects import head_attribution as head_attribution
    from .effects import head_effects as head_effects
    from .errors import LensError as LensError
    from .flow import InformationFlow as InformationFlow
    from .flow import information_flow as information_flow
    from .hooks.heads import HeadSet as HeadSet
    from .hooks.points import Read as Read
    from .interventions import VAR as VAR
    from .interventions import AblateHeads as AblateHeads
    from .interventions import AblateTokens as AblateTokens
    from .interventions import BoostAttention as BoostAttention
    from .interventions import Edit as Edit
    from .interventions import EditPattern as EditPattern
    from .interventions import Intervention as Intervention
    from .interventions import Knockout as Knockout
    from .interventions import KnockoutSinks as KnockoutSinks
    from .interventions import PatchHeads as PatchHeads
    from .interventions import PatchPattern as PatchPattern
    from .interventions import PatchResidual as PatchResidual
    from .interventions import ScaleAttention as ScaleAttention
    from .interventions import head_means as head_means
    from .lens import Lens as Lens
    from .patching import PatchScores as PatchScores
    from .patching import activation_patching as activation_patching
    from .patching import attribution_patching as attribution_patching
    from .prompts.prompt import Prompt as Prompt
    from .prompts.spans import Box as Box
    from .prompts.spans import Span as Span
    from .readouts import AttentionMap as AttentionMap
    from .readouts import DeletionCurve as DeletionCurve
    from .readouts import DirectAttribution as DirectAttribution
    from .readouts import EmbeddingBank as EmbeddingBank
    from .readouts import LatentLens as LatentLens
    from .readouts import LogitLens as LogitLens
    from .readouts import PixelAttribution as PixelAttribution
    from .readouts import Translators as Translators
    from .readouts import attention_map as attention_map
    from .readouts import deletion_curve as deletion_curve
    from .readouts import direct_attribution as direct_attribution
    from .readouts import embedding_bank as embedding_bank
    from .readouts import fit_translators as fit_translators
    from .readouts import latent_lens as latent_lens
    from .readouts import logit_lens as logit_lens
    from .readouts import pixel_attribution as pixel_attribution
    from .scoring import HeadScores as HeadScores
    from .scoring import localization_heads as localization_heads
    from .scoring import localize as localize
    from .scoring import score_heads as score_heads
    from .sinks import find_sinks as find_sinks
    from .steering import Direction as Direction
    from .steering import Steer as Steer
    from .steering import direction as direction
    from .viewer import View as View
    from .viewer import view as view


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f".{_ROOMS[name]}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module 'lmm_lens' has no attribute {name!r}; it has {', '.join(_HOME)}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
