"""Readouts: where heads look, what the residual stream says in words, what each part of a model adds to its answer"""

from .attention import attention_map
from .attribution import direct_attribution
from .bank import EmbeddingBank, embedding_bank
from .by_neighbours import latent_lens
from .by_words import logit_lens
from .maps import AttentionMap
from .neighbours import LatentLens
from .parts import DirectAttribution
from .translators import Translators, fit_translators
from .words import LogitLens

__all__ = [
    "AttentionMap",
    "DirectAttribution",
    "EmbeddingBank",
    "LatentLens",
    "LogitLens",
    "Translators",
    "attention_map",
    "direct_attribution",
    "embedding_bank",
    "fit_translators",
    "latent_lens",
    "logit_lens",
]
