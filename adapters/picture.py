"""Which part of a picture its patches cover, read off the image processor's own settings.

A processor may pad to a square, resize and crop from the centre. The patches then cover a rectangle of the picture
as the user gave it, and this module finds that rectangle.
"""

from __future__ import annotations

from typing import Any

from lmm_lens.prompts.spans import Box

Size = tuple[int, int]  # width, height


def visible_region(image_processor: Any, size: Size) -> Box:
    """The rectangle of the original picture that reaches the vision tower.

    Args:
        image_processor: a Hugging Face image processor that pads, resizes and crops (CLIP, SigLIP, LLaVA).
        size: width and height of the original picture.

    Returns:
        A box in pixels of the original picture. It exceeds the picture where the processor pads.
    """
    width, height = size
    left = top = 0.0
    if getattr(image_processor, "do_pad", False) and not getattr(image_processor, "pad_size", None):
        edge = max(width, height)  # expanded to a square, the picture in the middle
        left, top = -((edge - width) // 2), -((edge - height) // 2)
        width = height = edge
    scaled_width, scaled_height = _resized(image_processor, width, height)
    crop_width, crop_height = scaled_width, scaled_height
    if getattr(image_processor, "do_center_crop", False):
        crop = image_processor.crop_size
        crop_width, crop_height = crop["width"], crop["height"]
    to_original_x, to_original_y = width / scaled_width, height / scaled_height
    x0 = (scaled_width - crop_width) // 2  # the processors' own rounding
    y0 = (scaled_height - crop_height) // 2
    return Box(
        left + x0 * to_original_x,
        top + y0 * to_original_y,
        left + (x0 + crop_width) * to_original_x,
        top + (y0 + crop_height) * to_original_y,
    )


def covered(region: Box, share: float) -> Box:
    """What the patches see of a region: a tower leaves out the last pixels that fill no patch (SigLIP 6 of 384).

    Args:
        region: what the tower is given.
        share: how much of it the patches cover, from the left and from the top.
    """
    x0, y0, x1, y1 = region
    return Box(x0, y0, x0 + (x1 - x0) * share, y0 + (y1 - y0) * share)


def _resized(image_processor: Any, width: int, height: int) -> Size:
    if not getattr(image_processor, "do_resize", True):
        return width, height
    size = image_processor.size
    shortest = _get(size, "shortest_edge")
    if shortest:
        short, long = sorted((width, height))
        scaled = int(shortest * long / short)
        return (shortest, scaled) if width <= height else (scaled, shortest)
    return _get(size, "width"), _get(size, "height")


def _get(size: Any, name: str) -> Any:
    return size.get(name) if hasattr(size, "get") else getattr(size, name, None)
