"""The names of all metrics, for `--help`, which imports nothing; tests compare them with the metrics themselves."""

from __future__ import annotations

HEADS = (
    "visual_mass",
    "nonsink_mass",
    "concentration",
    "visual_preference",
    "nonsink_ratio",
    "spatial_entropy",
    "nonsink_spatial_entropy",
    "localization",
    "nonsink_localization",
)
"""Of heads, for `score`; those that need boxes are for Python."""
ANSWERS = ("logit_difference", "log_prob", "probability", "accuracy")
"""Of the answer's first token, for `sweep`, and for `compare` too."""
TEXTS = ("exact_match", "contains", "yes_no", "yes_no_pope", "choice", "vqa", "letter")
"""Of what was said, for `compare`."""

OF_HEADS = f"{', '.join(HEADS)}; those that need boxes are in Python."
OF_ANSWERS = f"{', '.join(ANSWERS)}."
FROM_ANSWERS = f"{', '.join(TEXTS + ANSWERS)}."
