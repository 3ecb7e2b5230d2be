"""Readouts: where heads look, what the residual stream says in words, what each part of a model adds to its answer"""

from .attention import attention_map
from .attribution import direct_attribution
from .bank import EmbeddingBank, embedding_bank
from .by_neighbours import latent_lens
from .by_pixels import pixel_attribution
from .by_words import logit_lens
from .deletion import DeletionCurve, deletion_curve
from .maps import AttentionMap
from .neighbours import LatentLens
from .parts import DirectAttribution
from .pixel_map import PixelAttribution
from .translators import Translators, fit_translators
from .words import LogitLens

__all__ = [
    "AttentionMap",
    "DeletionCurve",
    "DirectAttribution",
    "EmbeddingBank",
    "LatentLens",
    "LogitLens",
    "PixelAttribution",
    "Translators",
    "attention_map",
    "deletion_curve",
    "direct_attribution",
    "embedding_bank",
    "fit_translators",
    "latent_lens",
    "logit_lens",
    "pixel_attribution",
]
