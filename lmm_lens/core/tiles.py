"""How much of a pattern is computed at once: some rows of all heads or, where each head stands alone, of some heads."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from .attention import AttentionCall, FusedAttention
from .course import Stop
from .rows import Chunk
from .tapped import SeenAttention, TappedAttention

CHUNK_ELEMENTS = 2**20  # probabilities held at once, 4 MiB: less than what a feed-forward layer needs anyway
TILE_ELEMENTS = 2**18  # the same on a CPU where each head stands alone: few enough to stay in its cache meanwhile
TILE_ROWS = 64  # at least, however many that are: keys and values are read again for each of them


class FirstKeys:
    """What rows see of a call's attention that see nothing behind the first keys: the same without the others.

    Args:
        call: the call.
        n_keys: how many, see `AttentionCall.reach`.
    """

    def __init__(self, call: AttentionCall, n_keys: int) -> None:
        self.call, self.n_keys, self.read_values = call, n_keys, call.read_values

    def probabilities(self, rows: Chunk, heads: tuple[int, ...] | None) -> Tensor:
        """As of the call."""
        return self.call.probabilities(rows, heads, self.n_keys)

    def scores(self, rows: Chunk, heads: tuple[int, ...] | None) -> Tensor:
        """As of the call."""
        return self.call.scores(rows, heads, self.n_keys)

    def visible(self, rows: Chunk, heads: tuple[int, ...] | None) -> Tensor:
        """As of the call."""
        return self.call.visible(rows, heads, self.n_keys)


class Tile:
    """Rows of some heads.

    Attributes:
        rows: which.
        entries: which they are of the rows that were cut into tiles.
        heads: which; None for all of the layer's.
        seen: the attention, which may be without the keys behind the last row.
    """

    def __init__(self, rows: Chunk, entries: slice, heads: tuple[int, ...] | None, seen: SeenAttention) -> None:
        self.rows, self.entries, self.heads, self.seen = rows, entries, heads, seen


def tiles(stop: Stop, rows: Chunk, attention: TappedAttention) -> Iterator[Tile]:
    """The rows and heads that taps of a layer's pattern act on, so much at a time.

    Where all take each head apart, many rows of few heads: keys and values are read once for all of them, what is held
    does not grow with the heads, and keys behind the last row are left out.
    """
    batch, n_heads, _, n_keys = attention.shape
    heads = tuple(range(n_heads)) if stop.heads is None else stop.heads
    if not stop.apart or rows.width == 1 or not isinstance(attention, FusedAttention):
        step = max(1, CHUNK_ELEMENTS // (batch * len(heads) * n_keys))
        if rows.width <= step:
            yield Tile(rows, slice(0, rows.width), stop.heads, attention)
            return
        for entries in _cut(rows.width, step):
            yield Tile(rows.part(entries.start, entries.stop), entries, stop.heads, attention)
        return
    most = TILE_ELEMENTS if attention.device.type == "cpu" else CHUNK_ELEMENTS
    n_at_once, group = max(1, most // (batch * n_keys * min(TILE_ROWS, rows.width))), attention.call.group  # heads
    while n_at_once % group and group % n_at_once:
        n_at_once -= 1  # those that share keys stay together, or are cut into equal parts
    n_at_once = min(n_at_once, len(heads))
    step = max(min(TILE_ROWS, rows.width), most // (batch * n_keys * n_at_once))
    for first in range(0, len(heads), n_at_once):
        some = stop.heads if n_at_once == len(heads) else heads[first : first + n_at_once]
        for entries in _cut(rows.width, step):
            part = rows.part(entries.start, entries.stop)
            yield Tile(part, entries, some, FirstKeys(attention.call, attention.call.reach(part)))


def _cut(width: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, width)) for start in range(0, width, step))
