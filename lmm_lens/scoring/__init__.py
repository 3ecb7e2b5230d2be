"""Head-preference scoring: how much, and how, each head looks at the image."""

from .head_scores import HeadScores
from .localization import localization_heads, localize
from .metrics import HEAD_METRICS
from .score import score_heads

__all__ = ["HEAD_METRICS", "HeadScores", "localization_heads", "localize", "score_heads"]
