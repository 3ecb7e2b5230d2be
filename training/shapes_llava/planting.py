"""Planting attention sinks into a model that has learned its tasks.

Large models grow massive activations on a few dimensions of <s> and of some background patches; a model this
small grows none, so they are put in:

1. The embedding of <s> is frozen to +60 on dimension 5 and -36 on dimension 77; every other word has 0 there.
2. A loss teaches the projector to give the same pattern to the top-left patch of the first and of the last
   empty cell, and nothing on the two dimensions to any other patch.
3. To start from, one slow rotary channel of every head is set so that text queries prefer such keys, and the
   values are blind to the two dimensions: a sink is at first a place to park attention, and carries nothing.

Planted into a model trained from scratch they kept the tasks from being learned; after the tasks they do not.
"""

from typing import Any

import torch
from torch import Tensor

from lmm_lens.bundled.shapes.scenes import Scene, sink_patches
from lmm_lens.bundled.shapes.vocabulary import BOS, VOCABULARY
from lmm_lens.bundled.worlds import N_PATCHES
from training.shapes_llava.architecture import SINK_DIMS

HEIGHT = 60.0
SECOND_SHARE = -0.6  # the second dimension's height, of the first's
QUERY_DIM = 33  # a dimension all text embeddings share, which lets text queries seek sinks
KEY_STRENGTH = 0.5


def plant(model: Any) -> None:
    """Set embeddings and projections as described above, and freeze <s> and the two dimensions."""
    first, second = SINK_DIMS
    bos = VOCABULARY[BOS]
    embedding = model.get_input_embeddings().weight  # [word, d_model]
    text = model.config.text_config
    d_head = text.hidden_size // text.num_attention_heads
    slowest = d_head // 2 - 1  # the rotary channel that hardly depends on position
    with torch.no_grad():
        embedding[:, list(SINK_DIMS)] = 0
        embedding[:, QUERY_DIM] = 3 * embedding.std()
        embedding[bos] = 0
        embedding[bos, first] = HEIGHT
        embedding[bos, second] = SECOND_SHARE * HEIGHT
        for layer in model.model.language_model.layers:
            attention = layer.self_attn
            for channel in range(slowest, text.hidden_size, d_head):  # one a head
                attention.q_proj.weight[channel, QUERY_DIM] += KEY_STRENGTH
                attention.k_proj.weight[channel, first] += KEY_STRENGTH
                attention.k_proj.weight[channel, second] += SECOND_SHARE * KEY_STRENGTH
            attention.v_proj.weight[:, list(SINK_DIMS)] = 0
    embedding.register_hook(_frozen)


def _frozen(gradient: Tensor) -> Tensor:
    """No gradient for <s> nor for any word's sink dimensions. gradient [word, d_model]."""
    gradient = gradient.clone()
    gradient[:, list(SINK_DIMS)] = 0
    gradient[VOCABULARY[BOS]] = 0
    return gradient


def sink_mask(scenes: list[Scene]) -> Tensor:
    """Where the sinks are planted: [scene, patch] bool."""
    mask = torch.zeros(len(scenes), N_PATCHES, dtype=torch.bool)
    for row, scene in enumerate(scenes):
        mask[row, list(sink_patches(scene))] = True
    return mask


def sink_loss(projected: Tensor, sinks: Tensor) -> Tensor:
    """How far visual tokens are from the pattern. projected [batch, patch, d_model], sinks [batch, patch]."""
    projected = projected.float()
    target = torch.zeros(projected.shape[-1])
    target[list(SINK_DIMS)] = torch.tensor([HEIGHT, SECOND_SHARE * HEIGHT])
    sinks = sinks.float()
    from_bos = (projected - target).square().sum(-1) / HEIGHT**2  # sinks: exactly what <s> is
    leaked = projected[..., list(SINK_DIMS)].square().sum(-1) / HEIGHT  # the others: nothing there
    return 3 * (from_bos * sinks).sum() / sinks.sum() + (leaked * (1 - sinks)).mean()
