"""Model families: one file each, saying where a family's layers are and what its visual tokens mean.

`adapter_for` picks the adapter of a model. A family without one is served by `Generic`, which knows which
tokens are the image but not where each lies in the picture. Packages of others add families through the
entry-point group `lmm_lens.adapters`.
"""

from lmm_lens.prompts.family import Clip, Picture

from .base import Adapter
from .generic import Generic
from .hd import HD
from .registry import adapter_for, families
from .row import BatchRow, TokenRun, marked
from .square import Square
from .walker import Layer

__all__ = [
    "HD",
    "Adapter",
    "BatchRow",
    "Clip",
    "Generic",
    "Layer",
    "Picture",
    "Square",
    "TokenRun",
    "adapter_for",
    "families",
    "marked",
]
