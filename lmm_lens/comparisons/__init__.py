"""What answers are worth under several conditions, and the controls that belong to every claim."""

from .compare import compare
from .comparison import Comparison
from .conditions import Condition
from .matching import exact_match
from .pictures import blank_images, swapped_images
from .tables import ablation_table, image_table

__all__ = [
    "Comparison",
    "Condition",
    "ablation_table",
    "blank_images",
    "compare",
    "exact_match",
    "image_table",
    "swapped_images",
]
