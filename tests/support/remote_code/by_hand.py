"""What a lens should find, without this library: a copy of a model with its attention written out, and plain hooks.

Every pattern, residual stream and head output of each pass is kept. Edits are functions of (layer, whole tensor), and a
generation is one plain forward of the whole sequence after the other.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.support import reference
from tests.support.remote_code.cases import Case
from tests.support.remote_code.molmo import MolmoSequentialBlock
from tests.support.remote_code.parts import rotated
from tests.support.remote_code.phi3v import Phi3Attention

Edit = Callable[[int, Tensor], Tensor]


def weights_of(query: Tensor, key: Tensor, added: Tensor) -> Tensor:
    scores = (query @ key.transpose(2, 3)) * query.shape[-1] ** -0.5 + added
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


class WrittenOutPhi(Phi3Attention):
    """Phi's attention, with a word for whoever watches."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor, position_ids: Tensor, **others: Any) -> Any:
        q, k, v = self.qkv_proj(hidden_states).chunk(3, -1)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        weights = weights_of(rotated(q, position_ids), rotated(k, position_ids), attention_mask)
        watcher, layer = self.reference
        return self.o_proj((watcher.pattern(layer, weights) @ v).transpose(1, 2).flatten(2)), None


class WrittenOutMolmo(MolmoSequentialBlock):
    """The same of Molmo's."""

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, attention_bias: Tensor, position_ids: Tensor, past: Any
    ) -> Any:
        q, k, v = (x.unflatten(-1, (-1, self.size)).transpose(1, 2) for x in (q, k, v))
        k, v = (x.repeat_interleave(self.n_heads // self.n_kv, 1) for x in (k, v))
        weights = weights_of(rotated(q, position_ids), rotated(k, position_ids), attention_bias)
        watcher, layer = self.reference
        return self.attn_out((watcher.pattern(layer, weights) @ v).transpose(1, 2).flatten(2)), (k, v)


WRITTEN_OUT = {Phi3Attention: WrittenOutPhi, MolmoSequentialBlock: WrittenOutMolmo}


class Watched:
    """A copy of a case's model that keeps what it computes, and lets itself be edited.

    Attributes:
        patterns, resid, z: by layer, of the last forward.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.model = copy.deepcopy(case.model)
        self.edits: dict[str, Edit] = {}
        self.patterns: dict[int, Tensor] = {}
        self.resid: dict[int, Tensor] = {}
        self.z: dict[int, Tensor] = {}
        for index, (layer, attention, projection) in enumerate(case.parts(self.model)):
            attention.reference = (self, index)
            if type(attention) in WRITTEN_OUT:
                attention.__class__ = WRITTEN_OUT[type(attention)]
            else:
                attention.config._attn_implementation = reference.NAME
            layer.register_forward_pre_hook(self._entering(index), with_kwargs=True)
            projection.register_forward_pre_hook(self._projecting(index))

    def pattern(self, layer: int, pattern: Tensor) -> Tensor:
        """Called by the attention functions."""
        pattern = self._edited("pattern", layer, pattern)
        self.patterns[layer] = pattern.clone()
        return pattern

    def _edited(self, site: str, layer: int, x: Tensor) -> Tensor:
        return self.edits[site](layer, x.clone()) if site in self.edits else x

    def _entering(self, layer: int) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.resid[layer] = (args[0] if args else kwargs["hidden_states"]).clone()

        return keep

    def _projecting(self, layer: int) -> Any:
        def change(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
            z = self._edited("z", layer, args[0].unflatten(-1, (4, -1)))
            self.z[layer] = z.clone()
            return (z.flatten(-2),)

        return change

    def run(self, inputs: dict[str, Any], **edits: Edit) -> Tensor:
        """Logits of one plain forward, the way the class is called."""
        self.edits = edits
        with torch.no_grad():
            return self.case.plain(self.model, inputs)

    def greedy(self, inputs: dict[str, Any], n_new: int, **edits: Edit) -> tuple[Tensor, Tensor]:
        """Tokens and logits of each step, every step a forward of all there is."""
        tokens, logits = [], []
        for _ in range(n_new):
            logits.append(self.run(self.case.grown(inputs, tokens), **edits)[:, -1])
            tokens.append(logits[-1].argmax(-1))
        return torch.stack(tokens, 1), torch.stack(logits, 1)


# ---------------------------------------------------------------------- edits


def zeroing(heads: Sequence[tuple[int, int]], after: Sequence[int]) -> Edit:
    """Heads' outputs zero from a position of each batch row on."""

    def edit(layer: int, z: Tensor) -> Tensor:
        for row, first in enumerate(after):
            for head in [head for at, head in heads if at == layer]:
                z[row, first:, head] = 0
        return z

    return edit


def blinding(layers: Sequence[int], visual: Sequence[Sequence[int]], after: Sequence[int]) -> Edit:
    """All that lies on the image hidden from a position on, and the rest of each row made a whole again."""

    def edit(layer: int, pattern: Tensor) -> Tensor:
        for row, first in enumerate(after):
            if layer in layers:
                pattern[row, :, first:, list(visual[row])] = 0
                pattern[row, :, first:] /= pattern[row, :, first:].sum(-1, keepdim=True)
        return pattern

    return edit


def visual_mass(pattern: Tensor, visual: Sequence[Sequence[int]]) -> Tensor:
    """[batch, head] of the last row."""
    return torch.stack([pattern[row, :, -1, list(at)].sum(-1) for row, at in enumerate(visual)])


class RedistributedByHand:
    """VAR row by row (Kang et al., 2025): what the sinks receive goes, in part, to the other visual tokens.

    Attributes:
        n_edited: rows of heads, of the last forward.
    """

    def __init__(self, watched: Watched, case: Case, n_rows: int, dims: Sequence[int], tau: float, p: float) -> None:
        self.watched, self.dims, self.tau, self.p = watched, dims, tau, p
        self.places = case.places(n_rows)
        self.n_edited = 0

    def is_sink(self, x: list[float]) -> bool:
        rms = math.sqrt(sum(v * v for v in x) / len(x) + 1e-6)
        return max(abs(x[d]) for d in self.dims) / rms >= self.tau

    def __call__(self, layer: int, pattern: Tensor) -> Tensor:
        self.n_edited = 0 if layer == 0 else self.n_edited
        if not 0 < layer < 3:
            return pattern
        for row, place in enumerate(self.places):
            resid = self.watched.resid[layer][row].tolist()
            sinks = [j for j, x in enumerate(resid) if j not in place.padding and self.is_sink(x)]
            others = [j for j in place.visual if j not in sinks]
            for head in range(pattern.shape[1]):
                for i in range(place.after, pattern.shape[2]):
                    a = pattern[row, head, i].tolist()
                    on_image, on_others = sum(a[j] for j in place.visual), sum(a[j] for j in others)
                    budget = self.p * sum(a[j] for j in sinks)
                    if on_image < 0.05 or on_others < 0.2 * on_image or budget == 0:
                        continue
                    self.n_edited += 1
                    for j in sinks:
                        pattern[row, head, i, j] = (1 - self.p) * a[j]
                    for j in others:
                        pattern[row, head, i, j] = a[j] * (1 + budget / on_others)
        return pattern
