"""Which part of a picture the model sees: real image processors, and a bright block looked for in their output.

A block is painted into a dark picture; the difference that it makes to the processed tensor is where it went. Mapped
back through the region and the grid it must be where it was painted.
"""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lmm_lens import Box
from lmm_lens.adapters.picture import visible_region

SQUARE = {"height": 56, "width": 56}
PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=SQUARE),
    "clip, crop smaller than the scaled picture": CLIPImageProcessorPil(size={"shortest_edge": 65}, crop_size=SQUARE),
    "clip, crop larger than the scaled picture": CLIPImageProcessorPil(size={"shortest_edge": 41}, crop_size=SQUARE),
    "clip, no crop": CLIPImageProcessorPil(size=SQUARE, do_center_crop=False),
    "clip, no resize": CLIPImageProcessorPil(do_resize=False, crop_size=SQUARE),
    "siglip": SiglipImageProcessorPil(size=SQUARE),
    "llava": LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size=SQUARE),
    "llava, padded to a square": LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size=SQUARE, do_pad=True),
}


def processed(processor, array: np.ndarray) -> torch.Tensor:
    return processor(Image.fromarray(array), return_tensors="pt")["pixel_values"][0].mean(0)


def effect(processor, size, box) -> torch.Tensor:
    """How strongly each processed pixel [y, x] reacts to a bright box in a dark picture."""
    dark = np.zeros((size[1], size[0], 3), np.uint8)
    bright = dark.copy()
    bright[box[1] : box[3], box[0] : box[2]] = 255
    return (processed(processor, bright) - processed(processor, dark)).abs()


def sizes(n: int):
    draw = random.Random(0)
    return [(72, 72), (90, 61), (61, 90), (131, 64), (64, 131)] + [
        (draw.randrange(60, 220), draw.randrange(60, 220)) for _ in range(n)
    ]


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS.keys())
def test_a_block_painted_in_the_picture_is_found_where_the_region_says(processor):
    draw = random.Random(1)
    for size in sizes(10):
        region = visible_region(processor, size)
        left, top = max(0, region.x0), max(0, region.y0)
        right, bottom = min(size[0], region.x1), min(size[1], region.y1)
        wide, high = (right - left) / 5, (bottom - top) / 5
        x0, y0 = draw.uniform(left + wide, right - 2 * wide), draw.uniform(top + high, bottom - 2 * high)
        box = tuple(int(v) for v in (x0, y0, x0 + wide + 1, y0 + high + 1))
        seen = effect(processor, size, box)
        total = seen.sum()
        height, width = seen.shape
        across = (seen.sum(0) * (torch.arange(width) + 0.5)).sum() / total / width
        down = (seen.sum(1) * (torch.arange(height) + 0.5)).sum() / total / height
        step = (region.x1 - region.x0) / width, (region.y1 - region.y0) / height
        x = region.x0 + float(across) * (region.x1 - region.x0)
        y = region.y0 + float(down) * (region.y1 - region.y0)
        # to a third of a processed pixel: a crop that starts one pixel off is seen
        assert x == pytest.approx((box[0] + box[2]) / 2, abs=step[0] / 3), (size, box)
        assert y == pytest.approx((box[1] + box[3]) / 2, abs=step[1] / 3), (size, box)


@pytest.mark.parametrize("name", ["clip", "clip, crop smaller than the scaled picture", "clip, no resize"])
def test_what_lies_outside_the_region_is_not_seen_and_what_lies_inside_is(name):
    processor = PROCESSORS[name]
    for size in sizes(6):
        region = visible_region(processor, size)
        step = 3 * (region.x1 - region.x0) / 56  # bicubic scaling looks at neighbours
        columns = [x for x in range(size[0]) if x + 1 < region.x0 - step or x > region.x1 + step]
        for x in columns[:2] + columns[-2:]:
            assert effect(processor, size, (x, 0, x + 1, size[1])).max() == 0
        inside = int((region.x0 + region.x1) / 2)
        assert effect(processor, size, (inside, 0, inside + 1, size[1])).max() > 0


@pytest.mark.parametrize(
    ("name", "size", "region"),
    [
        ("clip", (112, 56), (28, 0, 84, 56)),
        ("clip", (56, 112), (0, 28, 56, 84)),
        ("clip", (224, 112), (56, 0, 168, 112)),
        ("siglip", (200, 100), (0, 0, 200, 100)),
        ("llava, padded to a square", (200, 100), (0, -50, 200, 150)),
        ("llava, padded to a square", (100, 201), (-50, 0, 151, 201)),
        ("clip, no resize", (100, 60), (22, 2, 78, 58)),
    ],
)
def test_the_region_by_hand(name, size, region):
    assert visible_region(PROCESSORS[name], size) == Box(*region)
