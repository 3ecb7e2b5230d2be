"""Circuits: which edges carry an answer, between which parts of a model, at which spans, and how faithful they are"""

from .circuit import Circuit
from .faithfulness import Faithfulness
from .find import find_circuit

__all__ = ["Circuit", "Faithfulness", "find_circuit"]
