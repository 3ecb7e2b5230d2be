"""Circuits: which edges between heads, feed-forward parts and spans carry an answer, and how faithful the best alone are"""

from .circuit import Circuit
from .faithfulness import Faithfulness
from .find import find_circuit

__all__ = ["Circuit", "Faithfulness", "find_circuit"]
