"""VAR as one would write it without the attention tap: eager attention, the full pattern edited, then multiplied.

Both ways are this library's own code, written for the comparison, and do the same work as `lmm_lens.VAR`: the
benchmark refuses to report them unless their logits are the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, LlavaForConditionalGeneration
from transformers.masking_utils import eager_mask

from lmm_lens import VAR, Prompt
from lmm_lens.core import kernels

Edit = Callable[[Tensor, Tensor, Tensor, int, VAR], None]
"""Edits a pattern [head, query, key] in place, from some row on, given which keys are visual and which are sinks."""


def all_heads_at_once(pattern: Tensor, visual: Tensor, sink: Tensor, first: int, var: VAR) -> None:
    """The vectorised edit: every row after the image of every head in a few operations."""
    numbers = var.transfer_fraction, var.min_nonsink_ratio, var.min_visual_mass
    rows = pattern[None, :, first:]
    groups = kernels.var_weights(kernels.groups_of(visual[None], sink[None], pattern.dtype))
    rows.addcmul_(rows, kernels.redistribute(rows, groups, *numbers)[0])


def head_by_head(pattern: Tensor, visual: Tensor, sink: Tensor, first: int, var: VAR) -> None:
    """The edit in the style of released research code: lists of indices, and each head on deep copies of its rows."""
    patches, text_sinks = visual.nonzero().flatten(), (sink & ~visual).nonzero().flatten()
    listed = [position for position in sink.nonzero().flatten() if visual[position]]
    if not listed:
        return
    patch_sinks = torch.stack(listed)
    on_patches = pattern[:, :, patches].sum(-1)
    share = pattern[:, :, patch_sinks].sum(-1) / on_patches
    chosen = ((1 - share >= var.min_nonsink_ratio) & (on_patches >= var.min_visual_mass)).nonzero()
    for head in range(len(pattern)):
        rows = chosen[chosen[:, 0] == head][:, 1]
        rows = rows[rows >= first]
        if not len(rows):
            continue
        edited = pattern[head, rows, :].clone()
        before = copy.deepcopy(edited)
        edited[:, text_sinks] *= 1 - var.transfer_fraction
        edited[:, patch_sinks] *= 1 - var.transfer_fraction
        budget = before[:, patch_sinks].sum(1) + before[:, text_sinks].sum(1)
        before[:, patch_sinks] = 0
        ratio = before[:, patches] / before[:, patches].sum(1, keepdim=True)
        edited[:, patches] += var.transfer_fraction * budget[:, None] * ratio
        pattern[head, rows, :] = edited


class EagerVAR:
    """An attention function of transformers that edits full patterns. One prompt at a time, batch size one.

    Args:
        edit: how.
        name: of the way, where it is not the edit's.

    Attributes:
        name: under which transformers knows it.
    """

    def __init__(self, edit: Edit, name: str | None = None) -> None:
        self.edit, self.name = edit, f"benchmark_{name or edit.__name__}"
        AttentionInterface.register(self.name, self._attend)
        AttentionMaskInterface.register(self.name, eager_mask)

    @contextmanager
    def on(self, model: LlavaForConditionalGeneration, prompt: Prompt, var: VAR) -> Iterator[None]:
        """Edit what the model, set to this attention function, does inside; sinks are found by hooks on its layers."""
        layers = model.model.language_model.layers
        acting = range(var.first_layer, len(layers) - var.skip_last_layer)
        self.var, self.visual = var, prompt.mask("visual")[0].to(model.device)
        self.after_image = int(prompt.mask("after_image")[0].int().argmax())
        self.sinks = {layer: torch.empty(0, dtype=torch.bool, device=model.device) for layer in acting}
        hooks = [layers[layer].register_forward_pre_hook(partial(self._find_sinks, layer)) for layer in acting]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _find_sinks(self, layer: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0][0].float()
        phi = x[:, list(self.var.sink_dims)].abs().amax(-1) / x.pow(2).mean(-1).add(1e-6).sqrt()
        self.sinks[layer] = torch.cat([self.sinks[layer], phi >= self.var.sink_threshold])

    def _attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        scores = query @ key.transpose(2, 3) * options["scaling"]
        if mask is not None:
            scores = scores + mask
        pattern = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        if getattr(module, "layer_idx", None) in self.sinks:  # not in the vision tower
            n_rows, n_keys = pattern.shape[2:]
            visual = nn.functional.pad(self.visual, (0, n_keys - len(self.visual)))
            first = max(0, self.after_image - (n_keys - n_rows))
            self.edit(pattern[0], visual, self.sinks[module.layer_idx], first, self.var)
        return (pattern @ value).transpose(1, 2).contiguous(), pattern
