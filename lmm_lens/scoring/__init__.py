"""Head-preference scoring: how much, and how, each head looks at the image."""

from .head_scores import HeadScores
from .metrics import METRICS
from .score import score_heads

__all__ = ["METRICS", "HeadScores", "score_heads"]
