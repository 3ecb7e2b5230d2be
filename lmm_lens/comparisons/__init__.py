"""What answers are worth with and without an edit, and the controls that belong to every claim."""

from .matching import exact_match
from .tables import ablation_table, blank_images, image_table, swapped_images

__all__ = ["ablation_table", "blank_images", "exact_match", "image_table", "swapped_images"]
