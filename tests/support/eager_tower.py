"""The attention of the bundled model's vision tower, by transformers itself."""

import torch
from torch import Tensor

from lmm_lens import Prompt
from lmm_lens.bundled import shapes


def eager_tower(prompt: Prompt) -> Tensor:
    """[layer, head, query, key] of a prompt with one picture, in a model of its own with eager attention."""
    model, _ = shapes.load()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model.model.vision_tower(prompt.inputs["pixel_values"], output_attentions=True).attentions
    return torch.stack([each[0] for each in found])
