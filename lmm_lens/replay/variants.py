"""What a replay changes: rows of an activation, of all heads or of one, put to other values; keys that rows lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .patterns import Pattern

SITES = ("resid_pre", "z", "attn_out", "mlp_out", "resid_post")


@dataclass(frozen=True, eq=False)
class Edit:
    """Rows of one activation of one layer, put to other values.

    Attributes:
        layer: number.
        site: a hook point, one of `SITES`.
        rows: Bool[position], which rows of the sequence.
        source: their new values, [position, head, d_head] at `z`; None for zeros; at `z` also a pattern, for what the
            heads give under it.
        head: which head, at `z`; None for all.
    """

    layer: int
    site: str
    rows: Bool[Tensor, " position"]
    source: Float[Tensor, " position *any"] | Pattern | None = None
    head: int | None = None


@dataclass(frozen=True, eq=False)
class Hidden:
    """Keys that some rows cannot attend to in some layers; a row that sees no others keeps them.

    Attributes:
        layers: numbers.
        rows: Bool[position], which rows of the sequence.
        keys: Bool[position], which keys.
    """

    layers: tuple[int, ...]
    rows: Bool[Tensor, " position"]
    keys: Bool[Tensor, " position"]


@dataclass(frozen=True, eq=False)
class Variant:
    """One changed forward.

    Attributes:
        edits: what is changed in it; none to compute the recorded forward again.
        hidden: keys that rows lose, which change what the heads read as it is in the changed forward.
    """

    edits: tuple[Edit, ...]
    hidden: tuple[Hidden, ...] = ()

    @property
    def first_layer(self) -> int:
        """The first layer that differs from the recording."""
        layers = [edit.layer for edit in self.edits] + [layer for each in self.hidden for layer in each.layers]
        return min(layers, default=0)

    @property
    def rows(self) -> Bool[Tensor, " position"]:
        """The rows that anything is changed in."""
        rows = [edit.rows for edit in self.edits] + [each.rows for each in self.hidden]
        return torch.stack(rows).any(0)

    def first_row(self, n_layers: int, last: int) -> int:
        """The first row that differs in a way that can reach the logits of row `last`."""
        reaching = [
            # behind the last attention a row is by itself
            last if edit.layer == n_layers - 1 and edit.site != "resid_pre" else int(edit.rows.int().argmax())
            for edit in self.edits
            if bool(edit.rows[: last + 1].any())
        ] + [
            last if min(each.layers) == n_layers - 1 else int(each.rows.int().argmax())
            for each in self.hidden
            if bool(each.rows[: last + 1].any())
        ]
        return min(reaching, default=last)


@dataclass(frozen=True, eq=False)
class Put:
    """The edits of several copies at one hook point, with one source, in one go.

    Attributes:
        copies: which copies.
        rows: which of the replayed rows.
        heads: the head of each; None for all heads.
        source: as in `Edit`, of the replayed rows.
    """

    copies: Int[Tensor, " n"]
    rows: Bool[Tensor, "n row"]
    heads: Int[Tensor, " n"] | None
    source: Tensor | None

    def into(self, x: Tensor) -> None:
        """Change an activation [copy, query, ...] in place."""
        device = x.device
        copies, rows = self.copies.to(device), self.rows.to(device)
        heads = None if self.heads is None else self.heads.to(device)
        chosen = x[copies] if heads is None else x[copies, :, heads]  # n row ...
        source = torch.zeros_like(chosen)
        if self.source is not None:
            new = self.source.to(device, x.dtype)
            source = new[None].expand_as(chosen) if heads is None else new[:, heads].transpose(0, 1)
        changed = torch.where(rows.reshape(*rows.shape, *[1] * (chosen.ndim - 2)), source, chosen)
        if heads is None:
            x[copies] = changed
        else:
            x[copies, :, heads] = changed


def puts(variants: Sequence[Variant], layer: int, site: str, first: int, rows: slice) -> list[Put]:
    """The edits of some variants at a hook point; they are copies `first`, `first` + 1, ... of a batch of `rows`."""
    grouped: dict[tuple[int, bool], list[tuple[int, Edit]]] = {}
    for copy, variant in enumerate(variants, first):
        for edit in variant.edits:
            if edit.layer == layer and edit.site == site and bool(edit.rows[rows].any()):
                grouped.setdefault((id(edit.source), edit.head is None), []).append((copy, edit))
    found = []
    for (_, whole), members in grouped.items():
        source = members[0][1].source
        assert source is None or isinstance(source, Tensor)  # the engine has made z of patterns
        found.append(
            Put(
                torch.tensor([copy for copy, _ in members]),
                torch.stack([edit.rows[rows] for _, edit in members]),
                None if whole else torch.tensor([edit.head for _, edit in members]),
                None if source is None else source[rows],
            )
        )
    return found
