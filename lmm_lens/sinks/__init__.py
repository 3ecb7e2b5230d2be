"""Attention sinks: what is known of them, how a run finds its own, and how a new model's are discovered."""

from .discovery import SinkReport, find_sinks
from .known import KNOWN, KnownSinks, known_for
from .rule import SinkRule, rule_for
from .vision import VisionSinks, find_vision_sinks

__all__ = [
    "KNOWN",
    "KnownSinks",
    "SinkReport",
    "SinkRule",
    "VisionSinks",
    "find_sinks",
    "find_vision_sinks",
    "known_for",
    "rule_for",
]
