"""Llama 4's processed pictures, to the pixel, against the arithmetic of its processor."""

import copy
import sys

import pytest
import torch
from transformers.image_utils import SizeDict

from tests.support.families import lens_of


@pytest.mark.parametrize(("whole_canvas", "picture_size"), [(True, (480, 640)), (False, (1988, 3195))])
def test_llama4_scales_pictures_as_its_processor_rounds_them(whole_canvas, picture_size):
    """Two sizes at which 32 and 64 bits round differently, in crops of 336 pixels, at most 16 of them."""
    lens = lens_of("llama4")
    adapter, own = lens.adapter, copy.deepcopy(lens.processor)
    own.image_processor.size["height"], own.image_processor.resize_to_max_canvas = 336, whole_canvas
    theirs = sys.modules[type(own.image_processor).__module__]
    canvases = theirs.find_supported_resolutions(max_num_chunks=16, patch_size=SizeDict(height=336, width=336))
    given = torch.Size(picture_size[::-1])
    canvas = theirs.get_best_fit(given, torch.tensor(canvases), resize_to_max_canvas=whole_canvas)
    bounds = canvas if whole_canvas else [min(max(edge, 336), most) for edge, most in zip(given, canvas, strict=True)]
    height, width = theirs.get_max_res_without_distortion(given, bounds)
    rows, columns = (int(edge) // 336 for edge in canvas)
    scaled = type(adapter)(adapter.model, own).scaled((rows, columns), (336, 336), picture_size)
    assert scaled == (int(width), int(height))
