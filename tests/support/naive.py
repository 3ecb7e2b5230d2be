"""The naive sweep: one plain forward for every ablation, with a hook of our own on the user's model, in fp64."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lmm_lens import Lens, Prompt
from tests.support.cases import double
from tests.support.models import another, joined

SINGLE = ("paligemma2", "qwen3_5")  # eager softmax, which soft caps need, and linear attention compute in fp32


def tolerance(name: str) -> float:
    return 5e-6 if name in SINGLE else 1e-12


@cache
def prompt_of(name: str, padded: str = "") -> Prompt:
    """One prompt, or two of different length padded on a side."""
    inputs = double(name).inputs
    return double(name).lens.prompt(inputs=joined([inputs, another(inputs)], padded) if padded else inputs)


def logits_without(lens: Lens, prompt: Prompt, heads: Sequence[tuple[int, int]], mask: Tensor) -> Tensor:
    """Float[batch, vocab] of each row's last token, with these heads' outputs zero where the mask is True."""
    hooks = []
    for layer, head in heads:
        size = lens.shape.d_head[layer]

        def before(module: nn.Module, args: tuple[Any, ...], where: int = head * size, size: int = size) -> Any:
            z = args[0].clone()
            z[..., where : where + size] = z[..., where : where + size].masked_fill(mask[..., None], 0)
            return (z, *args[1:])

        hooks.append(lens.adapter.layers[layer].output_projection.register_forward_pre_hook(before))
    try:
        with torch.no_grad():
            logits = lens.model(**prompt.inputs, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return logits[torch.arange(prompt.n_rows), prompt.mask("last").int().argmax(1)]
