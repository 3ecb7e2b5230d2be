"""A tap: a read or an edit of some rows of one activation, and the place at which its function is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .carried import Carried
from .rows import Rows

HIDDEN = -3e4  # attention scores at or below belong to keys that a row cannot see; fp16 masks hide with -65504


class RunState:
    """What taps leave to each other, and to the report, while one prompt runs.

    Attributes:
        rows, moved, short: what edits that choose for themselves changed, and what a control could not match, by
            (index of the intervention, layer).
        sums: what was added up, by (name, layer).
        found_sinks, acting_sinks: Bool[batch, position] by (rule, layer), see `lmm_lens.core.sinks`.
    """

    rows: dict[tuple[int, int], Tensor]
    moved: dict[tuple[int, int], Tensor]
    short: dict[tuple[int, int], Tensor]
    sums: dict[tuple[str, int], Tensor]
    found_sinks: dict[tuple[Any, int], Tensor]
    acting_sinks: dict[tuple[Any, int], Tensor]

    def __init__(self) -> None:
        self.rows, self.moved, self.short, self.sums = {}, {}, {}, {}
        self.found_sinks, self.acting_sinks = {}, {}


class TapContext:
    """Where in a run a tap is called: handed to its function beside the rows.

    Attributes:
        layer: the layer.
        heads: the heads of the rows handed over, in order; empty at hook points without heads.
        positions: Int[batch, query], absolute positions of the rows.
        valid: Bool[batch, query], which of them are real; ragged batches are padded.
        n_seen: tokens that went through the model so far, this pass included.
        state: what taps of this run leave to each other.
        carried: what one run of a job leaves to the next.
        owner: index of the intervention that the tap belongs to.
        scores: at `pattern`, computes the attention scores before the softmax, [batch, head, query, key], hidden keys
            at `HIDDEN` or below; None at other hook points. Out of reach on a server.
        visible: at `pattern`, computes which keys each row can see, Bool[batch, head, query, key]; None elsewhere.
    """

    def __init__(
        self,
        layer: int,
        heads: tuple[int, ...],
        positions: Int[Tensor, "batch query"],
        valid: Bool[Tensor, "batch query"],
        n_seen: int,
        state: RunState,
        carried: Carried,
        owner: int = 0,
        scores: Callable[[], Tensor] | None = None,
        visible: Callable[[], Tensor] | None = None,
    ) -> None:
        self.layer, self.heads, self.positions, self.valid = layer, heads, positions, valid
        self.n_seen, self.state, self.carried, self.owner = n_seen, state, carried, owner
        self.scores, self.visible = scores, visible

    def note(self, rows: Tensor, moved: Tensor | None = None, short: Tensor | None = None) -> None:
        """Report what an edit that chooses for itself changed.

        Args:
            rows: how many.
            moved: the attention it moved in all.
            short: of a control, the attention that it should have moved and could not.
        """
        key = self.owner, self.layer
        self.state.rows[key] = self.state.rows.get(key, 0) + rows
        if moved is not None:
            self.state.moved[key] = self.state.moved.get(key, 0) + moved
        if short is not None:
            self.state.short[key] = self.state.short.get(key, 0) + short

    def add(self, name: str, value: Tensor) -> None:
        """Add to a sum over the whole run, returned as `run.sums[name, layer]`."""
        key = name, self.layer
        self.state.sums[key] = self.state.sums.get(key, 0) + value

    def keys(self, scope: Rows, n_keys: int) -> Bool[Tensor, "batch key"]:
        """The tokens of a scope, generated ones included, as a mask over the keys that the layer holds now."""
        return self.columns(scope.mask(0, self.n_seen), n_keys)

    def columns(self, mask: Bool[Tensor, "batch position"], n_keys: int) -> Bool[Tensor, "batch key"]:
        """A mask over absolute positions as a mask over the keys that the layer holds now.

        Sliding-window layers hold only the last keys, static caches more than were seen; positions that the mask does
        not reach are False.
        """
        first = max(0, self.n_seen - n_keys)
        inside = mask[:, first : first + n_keys].to(self.positions.device)
        return torch.nn.functional.pad(inside, (0, n_keys - inside.shape[1]))


def role_of(roles: Int[Tensor, "batch position"], context: TapContext, afterwards: int) -> Int[Tensor, "batch query"]:
    """The role of each row, by number; `afterwards` is that of generated tokens."""
    n_prompt = roles.shape[1]
    inside = context.positions.clamp(max=n_prompt - 1)
    role = roles.to(inside.device).gather(1, inside)
    return torch.where(context.positions < n_prompt, role, afterwards)


TapFunction = Callable[[Tensor, TapContext], Tensor]


class Tap:
    """A read or an edit of some rows at one hook point of one layer.

    Attributes:
        site: hook point name.
        layer: layer number.
        rows: bound row scope.
        run: function of the selected rows, acting on each row alone; an edit gets its own copy, a read must not
            change it. Its result is kept (a read) or put back (an edit). To travel to a server it may use torch,
            plain values and what is in `lmm_lens.core`, nothing else.
        heads: the heads it gets; None for all. Only at `pattern` and `z`.
        edits: whether the result is put back.
        chooses: whether an edit itself decides which of its rows and heads it changes; it then reports them with
            `TapContext.note`.
        name: under which a read's result is filed; without one it is not kept.
        owner: index of the intervention it belongs to, for the report.
    """

    def __init__(
        self,
        site: str,
        layer: int,
        rows: Rows,
        run: TapFunction,
        heads: tuple[int, ...] | None = None,
        edits: bool = False,
        chooses: bool = False,
        name: str = "",
        owner: int = 0,
    ) -> None:
        self.site, self.layer, self.rows, self.run, self.heads = site, layer, rows, run, heads
        self.edits, self.chooses, self.name, self.owner = edits, chooses, name, owner

    def __repr__(self) -> str:
        what = "edit" if self.edits else "read"
        return f"Tap({what} of {self.site} in layer {self.layer}, {self.rows.label!r}, heads {self.heads})"
