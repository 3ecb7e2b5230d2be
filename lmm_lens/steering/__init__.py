"""Steering: directions of the residual stream between two kinds of prompts, and adding them where the model runs."""

from .directions import Direction
from .finding import METHODS, direction
from .steer import Steer

__all__ = ["METHODS", "Direction", "Steer", "direction"]
