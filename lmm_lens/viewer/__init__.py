"""The viewer: attention over pictures, words and heads, as one HTML page that needs no network."""

from .making import view
from .shown import View

__all__ = ["View", "view"]
