"""The viewer: attention over pictures, words and heads, as one HTML page that needs no network."""

from .shown import View, view

__all__ = ["View", "view"]
