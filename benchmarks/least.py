"""What a step under VAR costs at least: written by hand for one kind of model, in as few operations as we know.

Nothing is counted, checked or chosen there: every layer is edited in all heads, one prompt without padding, one or two
sink dimensions, a CPU. `benchmarks.steps` holds `lmm_lens.VAR` against it, after its logits are found to be the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lmm_lens import VAR, Prompt
from lmm_lens.core import kernels

from .rivals import EagerVAR, all_heads_at_once

ROOM = 256  # columns for new tokens
SINKS = 2  # the row of `kernels.groups_of` that grows
ZERO = torch.tensor(0.0)


class LeastVAR(EagerVAR):
    """VAR on full patterns in the prompt, and in each step as what is added to the scores in the fused kernel."""

    def __init__(self) -> None:
        super().__init__(all_heads_at_once, "least")

    @contextmanager
    def on(self, model: LlavaForConditionalGeneration, prompt: Prompt, var: VAR) -> Iterator[None]:
        """As in `EagerVAR`."""
        ratio, least = var.min_nonsink_ratio, var.min_visual_mass
        weights = [[-ratio, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, -1.0], [0.0, 0.0, 1.0, 0.0]]
        self.weights, self.limits = torch.tensor([weights]), torch.tensor([[[0.0, -least, 0.0, 0.0]]])
        self.groups: dict[int, Tensor] = {}
        dims, threshold = var.sink_dims, var.sink_threshold
        assert not isinstance(dims, str)
        assert not isinstance(threshold, str)
        first, last, width = min(dims), max(dims), model.lm_head.in_features
        self.dims = slice(first, last + 1, max(1, last - first))
        self.eps, self.limit = torch.tensor((width * 1e-6) ** 0.5), torch.tensor(threshold / width**0.5)
        with super().on(model, prompt, var):
            yield

    def _find_sinks(self, layer: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0]
        if x.shape[1] > 1:
            super()._find_sinks(layer, module, args)
            self.n_keys = x.shape[1]
            groups = kernels.groups_of(self.visual[None], self.sinks[layer][None], torch.float32)
            self.groups[layer] = nn.functional.pad(groups, (0, ROOM))
            return
        if layer == 0:
            self.n_keys += 1
        norm = torch.hypot(torch.linalg.vector_norm(x, dim=-1), self.eps)
        sink = torch.linalg.vector_norm(x[..., self.dims], torch.inf, -1) >= norm * self.limit
        self.groups[layer][:, SINKS, self.n_keys - 1].copy_(sink[:, 0])

    def _attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        if query.shape[2] > 1:
            return super()._attend(module, query, key, value, mask, **options)
        groups = self.groups[module.layer_idx].narrow(2, 0, self.n_keys)
        scores = torch.baddbmm(ZERO, query[0], key[0].transpose(1, 2), beta=0, alpha=options["scaling"])
        sums = torch.bmm(scores.softmax(-1).view(1, -1, self.n_keys), groups.transpose(1, 2))
        numbers = torch.baddbmm(self.limits, sums, self.weights)
        acts = numbers.narrow(2, 0, 2).amin(2, keepdim=True).ge(ZERO)
        shares = numbers.narrow(2, 2, 2) / sums.narrow(2, 1, 1).clamp_min(torch.finfo(torch.float32).tiny)
        given = torch.where(acts, shares, ZERO)
        grown = torch.baddbmm(ZERO, given, groups.narrow(1, 1, 2), beta=0, alpha=self.var.transfer_fraction)
        raised = grown.view(1, -1, 1, self.n_keys).log1p_()
        return sdpa_attention_forward(module, query, key, value, raised, **options)
