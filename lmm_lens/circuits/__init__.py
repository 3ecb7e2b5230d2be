"""Circuits: which edges carry an answer, between which parts of a model, at which spans, and how faithful they are"""

from .circuit import Circuit
from .faithfulness import Faithfulness
from .find import find_circuit
from .heads import SmallestHeads
from .smallest import smallest_heads

__all__ = ["Circuit", "Faithfulness", "SmallestHeads", "find_circuit", "smallest_heads"]
