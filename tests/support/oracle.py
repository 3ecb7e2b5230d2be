"""A reference that can be edited before the softmax too, and VAR, row by row, in plain Python.

Nothing here comes from the library: sinks, criteria and budget are computed from what the reference recorded.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from tests.support.models import IMAGE, Inputs, breaks, patches
from tests.support.reference import Reference

NAME = "reference_scores"


class ScoreReference(Reference):
    """A `Reference` with one more site to edit: "scores", before the softmax, hidden keys at minus infinity."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.model.set_attn_implementation({"text_config": NAME})

    def scores(self, layer: int, scores: Tensor) -> Tensor:
        return self._edited("scores", layer, scores)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    """transformers' eager attention: softmax at least in single precision, everything else in the model's own."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores.masked_fill(attention_mask[..., : key.shape[2]] < -1e4, -math.inf)
    reference, layer = module.reference
    scores = reference.scores(layer, scores)
    blind = torch.isneginf(scores).all(-1, keepdim=True)  # padding sees nothing
    single = torch.promote_types(query.dtype, torch.float32)
    pattern = scores.masked_fill(blind, 0).to(single).softmax(-1).to(query.dtype)
    pattern = reference.pattern(layer, pattern)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, eager_mask)


def oldest_key(first: int, n_rows: int, n_keys: int) -> int:
    """The position of a layer's first key: a sliding window keeps the last ones."""
    return max(0, first + n_rows - n_keys)


def phi(x: Iterable[float], dims: Iterable[int]) -> float:
    values = list(x)
    rms = math.sqrt(sum(v * v for v in values) / len(values) + 1e-6)
    return max(abs(values[d]) for d in dims) / rms


class SlowVAR:
    """VAR of METHODS section 2 as an edit of the reference's pattern, one row of one head at a time.

    Attributes:
        counts: layer to the rows that were edited.
        moved: layer to the budget of those rows.
        observed: visual mass and ratio of every row that was considered.
        sinks: layer to the sink positions of each batch row, as of the last pass.
    """

    def __init__(
        self,
        reference: Reference,
        inputs: Inputs,
        sink_dims: tuple[int, ...],
        sink_threshold: float,
        transfer_fraction: float = 0.6,
        min_nonsink_ratio: float = 0.5,
        min_visual_mass: float = 0.2,
        first_layer: int = 2,
        skip_last_layer: bool = True,
        visual_only: bool = False,
    ) -> None:
        self.reference = reference
        self.dims, self.tau = sink_dims, sink_threshold
        self.p, self.rho, self.least = transfer_fraction, min_nonsink_ratio, min_visual_mass
        last = len(reference.layers) - (1 if skip_last_layer else 0)
        self.layers = range(first_layer, last)
        self.cross = [hasattr(layer, "cross_attn") for layer in reference.layers]
        ids = inputs["input_ids"].tolist()
        real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).tolist()
        self.n_prompt = len(ids[0])
        self.images = [set(patches(row)) for row in ids]
        self.image_ends = [max((i for i, token in enumerate(row) if token == IMAGE), default=-1) for row in ids]
        self.breaks = [breaks(row) for row in ids]
        self.padding = [{i for i, token in enumerate(row) if not token} for row in real]
        self.counts: dict[int, int] = {}
        self.moved: dict[int, float] = {}
        self.sinks: dict[int, list[set[int]]] = {}
        self.observed: list[tuple[float, float]] = []

    def find_sinks(self, layer: int) -> list[set[int]]:
        """All tokens seen so far, text and patches, prompt and generated."""
        resid = torch.cat([seen.sites["resid_pre"][layer] for seen in self.reference.passes], 1)
        rows = resid.double().tolist()
        return [
            {j for j, x in enumerate(row) if j not in self.padding[b] and phi(x, self.dims) >= self.tau}
            for b, row in enumerate(rows)
        ]

    def __call__(self, layer: int, pattern: Tensor, first: int) -> Tensor:
        if layer not in self.layers or self.cross[layer]:
            return pattern
        batch, n_heads, n_rows, n_keys = pattern.shape
        oldest = oldest_key(first, n_rows, n_keys)
        sinks = self.sinks[layer] = self.find_sinks(layer)
        self.counts.setdefault(layer, 0)
        self.moved.setdefault(layer, 0.0)
        for b in range(batch):
            sink = [j - oldest for j in sorted(sinks[b]) if j >= oldest]
            visual = [j - oldest for j in sorted(self.images[b]) if j >= oldest]
            others = [j for j in visual if j not in sink]
            for i in range(n_rows):
                position = first + i
                if position in self.padding[b] or position <= self.image_ends[b] or position in self.breaks[b]:
                    continue
                for h in range(n_heads):
                    self.row(layer, pattern[b, h, i], sink, visual, others)
        return pattern

    def row(self, layer: int, row: Tensor, sink: list[int], visual: list[int], others: list[int]) -> None:
        """Edit one row in place."""
        a = row.tolist()
        on_image, on_others = sum(a[j] for j in visual), sum(a[j] for j in others)
        self.observed.append((on_image, on_others / on_image if on_image else 0.0))
        budget = self.p * sum(a[j] for j in sink)
        if on_image < self.least or on_others < self.rho * on_image or on_others == 0 or budget == 0:
            return
        for j in sink:
            row[j] = (1 - self.p) * a[j]
        for j in others:
            row[j] = a[j] + budget * a[j] / on_others
        self.counts[layer] += 1
        self.moved[layer] += budget


# ---------------------------------------------------------------------- edits by loops


Members = list[set[int]]  # for each batch row its positions


def spans(inputs: Inputs, n_new: int = 0) -> dict[str, Members]:
    """The tokens of each role, counted from the token ids; generated ones belong to "all", "text" and "after_image"."""
    names = ("all", "image", "text", "after_image", "question", "last", "generating")
    found: dict[str, Members] = {name: [] for name in names}
    real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).tolist()
    for ids, keep in zip(inputs["input_ids"].tolist(), real, strict=True):
        tokens = {i for i, real in enumerate(keep) if real}
        image = set(patches(ids))
        newlines = ({i for i in tokens if ids[i] == IMAGE} | breaks(ids)) - image
        after = {i for i in tokens if i > max(image | newlines)}
        new = set(range(len(ids), len(ids) + n_new))
        roles = {
            "all": tokens | new,
            "image": image,
            "text": (tokens - image - newlines) | new,
            "after_image": after | new,
            "question": after,
            "last": {max(tokens)},
            "generating": {max(tokens)} | new,
        }
        for name, members in roles.items():
            found[name].append(members)
    return found


def each_row(layers: Iterable[int], rows: Members, heads: Iterable[int] | None, change: Any) -> Any:
    """An edit that calls `change(row, batch row, position of the first key, own position)` on single rows, in place."""
    layers = set(layers)

    def edit(layer: int, x: Tensor, first: int) -> Tensor:
        if layer not in layers:
            return x
        batch, n_heads, n_rows, n_keys = x.shape
        oldest = oldest_key(first, n_rows, n_keys)
        for b in range(batch):
            for i in range(n_rows):
                if first + i in rows[b]:
                    for h in range(n_heads) if heads is None else heads:
                        change(x[b, h, i], b, oldest, first + i)
        return x

    return edit


def forbid(layers: Iterable[int], source: Members, target: Members, heads: Iterable[int] | None = None) -> Any:
    """An edit of the scores: minus infinity at the source keys, but for rows that see nothing else."""

    def change(row: Tensor, b: int, oldest: int, own: int) -> None:
        new = row.clone()
        for j in source[b]:
            if 0 <= j - oldest < len(row):
                new[j - oldest] = -math.inf
        if new.max() > -math.inf:
            row.copy_(new)

    return each_row(layers, target, heads, change)


def layer_heads(edit_of_heads: Any, heads: Iterable[tuple[int, int]]) -> Any:
    """One edit for (layer, head) pairs, from one for heads of layers."""
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)
    edits = {layer: edit_of_heads([layer], chosen) for layer, chosen in by_layer.items()}
    return lambda layer, x, first: edits[layer](layer, x, first) if layer in edits else x
