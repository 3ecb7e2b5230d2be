"""The attention used in training: fp32 inside bf16 autocast, with a meter for each head's visual mass.

PyTorch's bf16 attention is slow to differentiate on a CPU (about eight times slower than fp32). While a
batch is metered the language model's attention is computed explicitly, because the penalty of the sinks
stage needs the probabilities.
"""

import torch
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from training.shapes_llava.packing import AFTER_IMAGE, FIRST_PATCH

NAME = "shapes_training"


class MeteredAttention:
    """Attention that can add up, per head, how much answer positions look at the image outside its sinks."""

    def __init__(self) -> None:
        self.masses: list[Tensor] = []  # one [head] per layer
        self._watched: tuple[Tensor, Tensor] | None = None

    def start(self, answer_rows: Tensor, sinks: Tensor) -> None:
        """Meter the next forward. answer_rows [batch, position] bool, sinks [batch, patch] bool."""
        self.masses = []
        self._watched = answer_rows[:, AFTER_IMAGE:].float(), (~sinks).float()

    def stop(self) -> Tensor:
        """Non-sink visual mass, mean over answer rows: [layer, head], differentiable."""
        self._watched = None
        return torch.stack(self.masses)

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float = 1.0,
        is_causal: bool | None = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        """query, key, value [batch, head, position, d_head] -> [batch, position, head, d_head]."""
        language = hasattr(module, "layer_idx")  # the vision tower's layers have none
        with torch.autocast("cpu", enabled=False):
            q, k, v = query.float(), key.float(), value.float()
            if self._watched and language and attention_mask is not None:
                scores = q @ k.transpose(-1, -2) * scaling
                pattern = scores.masked_fill(~attention_mask, -1e9).softmax(-1)
                self.masses.append(_visual_mass(pattern, *self._watched))
                out = pattern @ v
            else:
                causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
                causal = bool(causal) and attention_mask is None and q.shape[2] > 1
                out = torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, attention_mask, is_causal=causal, scale=scaling
                )
        return out.to(query.dtype).transpose(1, 2).contiguous(), None


def _visual_mass(pattern: Tensor, rows: Tensor, charged: Tensor) -> Tensor:
    """Mean over the rows asked for: [head].

    pattern [batch, head, query, key], rows [batch, query after the image], charged [batch, patch]
    """
    visual = pattern[:, :, AFTER_IMAGE:, FIRST_PATCH:AFTER_IMAGE]
    mass = (visual * charged[:, None, None]).sum(-1)  # [batch, head, query]
    return (mass * rows[:, None]).sum((0, 2)) / rows.sum()


METER = MeteredAttention()
AttentionInterface.register(NAME, METER)
AttentionMaskInterface.register(NAME, sdpa_mask)
