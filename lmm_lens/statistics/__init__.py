"""Statistics that a reviewer accepts: intervals of paired differences, permutation tests, many tests at once.

Pure functions of numbers that were measured already. Prompts count as independent: where several ask about one picture,
average those first. Everything drawn is drawn from a seed, so the same call gives the same numbers.
"""

from .controls import ControlTest, control_test
from .effects_table import effects_table
from .head_sets import HeadSetTest, head_set_test
from .many import benjamini_hochberg, holm
from .mcnemar import McNemar, mcnemar_test
from .paired import Interval, SignFlip, mean_interval, paired_interval, sign_flip_test

__all__ = [
    "ControlTest",
    "HeadSetTest",
    "Interval",
    "McNemar",
    "SignFlip",
    "benjamini_hochberg",
    "control_test",
    "effects_table",
    "head_set_test",
    "holm",
    "mcnemar_test",
    "mean_interval",
    "paired_interval",
    "sign_flip_test",
]
