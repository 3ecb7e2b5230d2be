"""Tiny random models of twenty families, with valid inputs: quick to run, and real code paths.

`FAMILIES[name]()` gives (model in eval mode, inputs of one prompt). A prompt is a beginning-of-sequence
token, some text, the image, some text. Weights are scaled up, so that attention is far from uniform and an edit
of it shows in the logits.
"""

from . import grids, square, tiles  # noqa: F401  (they register their families)
from .batches import another, joined
from .newlines import breaks, patches
from .parts import BOS, EOS, FAMILIES, IMAGE, PAD, Inputs

__all__ = ["BOS", "EOS", "FAMILIES", "IMAGE", "PAD", "Inputs", "another", "breaks", "joined", "patches"]
