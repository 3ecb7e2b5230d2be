"""Is attention what this library takes it for? One row of each tapped layer is computed again and compared.

Models and users bring attention functions with terms that nobody here knows. Reads and edits of a pattern are right
only if softmax(q k) v, with the terms that are known, is what the function returned. It is looked at in the first pass
of a prompt and in its first decoding step; the numbers stay on the device until the pass has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from ...adapters import Layer
from ...core.attention import AttentionCall
from ...core.rows import Chunk
from ...errors import HookError
from .passes import Pass

APART = {torch.float64: 2e-3, torch.float32: 2e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
"""Of the largest output of a row: how far two kernels may lie apart. Sharp attention costs fp32 5e-4 between eager and
sdpa; a term that is missing changes outputs by several tenths."""


class RowCheck:
    """The checks of one session."""

    def __init__(self) -> None:
        self._pass: Pass | None = None
        self._found: list[tuple[int, Tensor, Tensor]] = []  # layer, what follows from its arguments, what it returned
        self._mine: Tensor | None = None
        self._rows: dict[tuple[int, torch.device], Chunk] = {}  # the row of this pass, by its length

    def begin(self, under_way: Pass) -> None:
        """A pass begins."""
        self._pass = under_way if under_way.of.n_passes < 2 else None
        self._found, self._rows = [], {}

    @contextmanager
    def of(self, layer: int, call: AttentionCall, out: Tensor) -> Iterator[None]:
        """Compare one row of what a function was given with what it returned, [batch, query, head, d_head].

        Inside, the output may be edited, and rows of the pattern be asked for; where that row is among them, it is not
        computed again.
        """
        if self._pass is None:
            yield
            return
        row, has_graph = self._row_of(self._pass, call.query.shape[2], out.device), torch.is_grad_enabled()
        theirs, self._mine = row.gather(out.detach() if has_graph else out).clone(), None
        call.overhears = None if has_graph else partial(self._overhear, call, row)
        yield
        call.overhears = None
        if self._mine is None:  # a call remembers what it has computed, and that must keep its graph
            alone = call.detached() if has_graph else call
            with torch.no_grad():
                self._mine = alone.read_values(alone.probabilities(row))
        self._found.append((layer, self._mine, theirs))

    def _overhear(self, call: AttentionCall, row: Chunk, pattern: Tensor, rows: Chunk) -> None:
        window, looked_at = rows.window, row.window
        if self._mine is None and window is not None and looked_at is not None:
            entry = looked_at.start - window.start
            if 0 <= entry < pattern.shape[2]:
                self._mine = call.read_values(pattern if pattern.shape[2] == 1 else pattern.narrow(2, entry, 1))

    def _row_of(self, under_way: Pass, n_queries: int, device: torch.device) -> Chunk:
        """The last real row of each batch member, of a pass of so many."""
        if (n_queries, device) not in self._rows:
            last = under_way.of.prompt.mask("last").int().argmax(1) - under_way.first
            row = torch.where((last >= 0) & (last < n_queries), last, n_queries - 1)
            first = int(row[0])
            window = slice(first, first + 1) if bool((row == first).all()) else None
            valid = torch.ones(len(row), 1, dtype=torch.bool)
            self._rows[n_queries, device] = Chunk(row[:, None], valid, len(row), 0, window).to(device)
        return self._rows[n_queries, device]

    def finish(self, layers: Sequence[Layer], implementation: Callable[[Any], str]) -> None:
        """The pass has ended.

        Raises:
            HookError: some layer's attention is another function than softmax(q k) v.
        """
        found, self._found = self._found, []
        for layer, by in _apart(found):
            attention: Any = layers[layer].attention
            dtype = next(attention.parameters()).dtype
            if not by <= APART.get(dtype, APART[torch.float16]):  # NaN is reported elsewhere
                if by != by:
                    return
                raise HookError(
                    f"the attention of layer {layer} ({type(attention).__name__}, {implementation(attention)!r}) "
                    f"cannot be followed: a row computed as softmax(q k) v is off by {by:.2g} of its largest value\n"
                    "  z, attn_out and the residual stream can be read and edited; for the pattern load the model "
                    "with attn_implementation='sdpa' or 'eager'"
                )


def _apart(found: Sequence[tuple[int, Tensor, Tensor]]) -> list[tuple[int, float]]:
    """By how much two rows of each layer differ, in parts of the largest number; asked of a device once."""
    alike: dict[tuple[Any, ...], list[tuple[int, Tensor, Tensor]]] = {}
    for layer, mine, theirs in found:
        alike.setdefault((mine.shape, theirs.dtype, mine.device), []).append((layer, mine, theirs))
    by_layer: list[tuple[int, float]] = []
    for of_layers in alike.values():
        layers, *rows = zip(*of_layers, strict=True)
        ours, returned = (torch.stack(each).flatten(1) for each in rows)
        largest = returned.abs().amax(1).to(ours.dtype).clamp_min(1e-6)
        apart = ((ours - returned).abs().amax(1) / largest).tolist()
        by_layer += zip(layers, apart, strict=True)
    return sorted(by_layer, key=itemgetter(0))
