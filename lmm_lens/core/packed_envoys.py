"""The attention of towers that pack pictures, as nnsight serves it: part by part, each by itself.

Such a layer calls its attention function once a part, in a loop, where nnsight serves the first call alone. What goes
into the loop and what comes out of it has names, and those are served: queries, keys and values of the whole sequence,
the lengths of the parts, and the output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attention import AttentionCall, FusedAttention
from .envoys import WeightedAttention, all_rows, check_rows
from .layer_envoys import LayerEnvoys
from .packed_part import PackedPart, of_another
from .rows import Chunk
from .tapping import Tapping
from .tower_rows import check_length


class PackedAttention(WeightedAttention):
    """The attention of a whole packed sequence, whose parts do not see each other."""

    def put(self, pattern: Tensor, original: Tensor, rows: Chunk, heads: tuple[int, ...] | None) -> None:
        """As of other attention; InterventionError for attention to tokens of another part."""
        if bool(((pattern != 0) & ~self.visible(rows, heads)).any()):
            raise of_another()
        super().put(pattern, original, rows, heads)


class Assigned:
    """What takes the place of the call of an attention function: the name that its output gets."""

    def __init__(self, operation: Any) -> None:
        self.operation = operation

    @property
    def output(self) -> tuple[Tensor, None]:
        """The output, [1, token, head, d_head], and no weights."""
        return self.operation.output, None

    @output.setter
    def output(self, value: tuple[Tensor, Any]) -> None:
        self.operation.output = value[0]


def packed_attention_of(envoys: LayerEnvoys) -> tuple[Any, Any]:
    """A packed layer's attention under way as one pattern, to be read and edited, and where its output is put."""
    call, lengths, operation = _given(envoys)
    n_parts, device = len(lengths), call.query.device
    part = torch.arange(n_parts, device=device).repeat_interleave(torch.tensor(lengths, device=device))
    call.mask = (part[:, None] == part)[None, None]
    out = operation.output
    check_rows(envoys.layer, call, out, call.query.shape[2])
    weights = call.probabilities(all_rows(1, out.shape[1], device))
    return PackedAttention(weights, call.value, out, call), Assigned(operation)


def attend_by_parts(tapping: Tapping, envoys: LayerEnvoys, n_tokens: int) -> None:
    """Pass the patterns of a packed layer's parts through its taps, and put back what they leave."""
    call, lengths, operation = _given(envoys)
    check_length(call.query.shape[2], envoys.layer, n_tokens)
    query, key, value = (x.split(lengths, dim=2) for x in (call.query, call.key, call.value))
    left, first = [], 0
    for index, out in enumerate(operation.output.split(lengths, dim=1)):
        own = AttentionCall(query[index], key[index], value[index], None, call.scaling, False)
        if index in (0, len(lengths) - 1):
            check_rows(envoys.layer, own, out, lengths[index])
        fused = FusedAttention(own, out.clone())
        tapping.first = first
        tapping.attend(envoys.layer, PackedPart(fused, first) if lengths[index] < n_tokens else fused)
        left.append(fused.out)
        first += lengths[index]
    tapping.first = 0
    if any(tap.edits for tap in tapping.taps["pattern", envoys.layer]):
        operation.output = torch.cat(left, dim=1)


def _given(envoys: LayerEnvoys) -> tuple[AttentionCall, list[int], Any]:
    """All that attends, without a mask; the lengths of the parts; and the operation that has the output."""
    operations = envoys.attention.source
    query, key, value, lengths = (getattr(operations, label).output for label in envoys.packed[:4])
    call = AttentionCall(query, key, value, None, envoys.scaling, False)
    return call, lengths.tolist(), getattr(operations, envoys.packed[4])
