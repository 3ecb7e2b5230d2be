"""What every figure shares: axes of its own, colours, weights laid over a picture."""

from .axes import new_axes, save_figure
from .over_image import draw_over_image

__all__ = ["draw_over_image", "new_axes", "save_figure"]
