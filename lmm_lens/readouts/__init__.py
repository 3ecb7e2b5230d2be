"""Readouts: where heads look, what the residual stream says in words, what each part of a model adds to its answer"""

from .attention_map import attention_map
from .maps import AttentionMap

__all__ = ["AttentionMap", "attention_map"]
