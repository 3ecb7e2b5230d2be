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


class Tally:
    """A sum over the passes of a run, taken when it is asked for and now and then: a step adds nothing to its work."""

    held: list[Tensor]

    def __init__(self, counts: bool = False) -> None:
        self.counts, self.held, self.n_held = counts, [], 0  # counts: how many are above 0, not what they add up to

    def add(self, numbers: Tensor) -> None:
        """Add up all of these."""
        self.held.append(numbers)
        self.n_held += numbers.numel()
        if self.n_held > 2**14:
            self.held, self.n_held = [self.total()], 1  # whole numbers, where they are counts

    def total(self) -> Tensor:
        """The sum, one number."""
        shape = self.held[-1].shape  # of steps, which are alike
        steps = [each for each in self.held if shape and each.shape == shape]
        rest = [each for each in self.held if not (shape and each.shape == shape)]
        return torch.stack([self._sum(each) for each in [*rest, *([torch.cat(steps)] if steps else [])]]).sum()

    def _sum(self, numbers: Tensor) -> Tensor:
        return (numbers > 0).sum() if self.counts and numbers.is_floating_point() else numbers.sum()


class Columns:
    """Masks over the keys of a pass, made once for all layers that have the same keys."""

    made: dict[tuple[int, int, Any], tuple[Any, Tensor]]

    def __init__(self) -> None:
        self.n_seen, self.made = -1, {}

    def get(self, source: Any, n_keys: int, n_seen: int, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        """The mask of a source, which is kept as long as its mask is, so that its identity stays its own."""
        if n_seen != self.n_seen:
            self.n_seen, self.made = n_seen, {}
        key = id(source), n_keys, device
        if key not in self.made:
            self.made[key] = source, make()
        return self.made[key][1]


class RunState:
    """What taps leave to each other, and to the report, while one prompt runs.

    Attributes:
        rows, moved, short: what edits that choose for themselves changed, and what a control could not match, by
            (index of the intervention, layer).
        sums: what was added up, by (name, layer).
        found_sinks, acting_sinks: Bool[batch, position] by (rule, layer), see `lmm_lens.core.sinks`.
        columns: masks over keys that several layers of one pass ask for, see `TapContext.columns`.
    """

    rows: dict[tuple[int, int], Tally]
    moved: dict[tuple[int, int], Tally]
    short: dict[tuple[int, int], Tally]
    sums: dict[tuple[str, int], Tensor]
    found_sinks: dict[tuple[Any, int], Tensor]
    acting_sinks: dict[tuple[Any, int], Tensor]

    def __init__(self) -> None:
        self.rows, self.moved, self.short, self.sums = {}, {}, {}, {}
        self.found_sinks, self.acting_sinks, self.columns = {}, {}, Columns()


class TapContext:
    """Where in a run a tap is called: handed to its function beside the rows.

    Attributes:
        layer: the layer.
        heads: the heads of the rows handed over, in order; empty at hook points without heads.
        positions: Int[batch, query], absolute positions of the rows.
        valid: Bool[batch, query], which of them are real; ragged batches are padded.
        all_valid: whether all are known to be, so that nobody needs to ask `valid`.
        n_seen: tokens that went through the model so far, this pass included.
        state: what taps of this run leave to each other.
        carried: what one run of a job leaves to the next.
        owner: index of the intervention that the tap belongs to.
        scores: at `pattern`, computes the attention scores before the softmax, [batch, head, query, key], hidden keys
            at `HIDDEN` or below; None at other hook points. Out of reach on a server.
        visible: at `pattern`, computes which keys each row can see, Bool[batch, head, query, key]; None elsewhere.
        read_values: at `pattern`, computes what weights over the keys, [batch, head, query, key] as the rows are, read
            from the values, [batch, query, head, d_head]; None elsewhere.
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
        all_valid: bool = False,
        read_values: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.layer, self.heads, self.positions, self.valid = layer, heads, positions, valid
        self.n_seen, self.state, self.carried, self.owner = n_seen, state, carried, owner
        self.scores, self.visible, self.all_valid, self.read_values = scores, visible, all_valid, read_values

    def only_valid(self, rows: Bool[Tensor, "batch ..."]) -> Bool[Tensor, "batch ..."]:
        """Of a choice of rows, [batch, query] or [batch, head, query], those that are real."""
        if self.all_valid:
            return rows
        return rows & (self.valid if rows.ndim == 2 else self.valid[:, None])

    def note(self, rows: Tensor, moved: Tensor | None = None, short: Tensor | None = None) -> None:
        """Report what an edit that chooses for itself changed; each is added up, whatever its shape.

        Args:
            rows: which, as a mask, or as numbers that are above 0 there; or how many, a whole number.
            moved: the attention it moved.
            short: of a control, the attention that it should have moved and could not.
        """
        key = self.owner, self.layer
        for tallies, numbers in ((self.state.rows, rows), (self.state.moved, moved), (self.state.short, short)):
            if numbers is not None:
                if key not in tallies:
                    tallies[key] = Tally(counts=tallies is self.state.rows)
                tallies[key].add(numbers)

    def note_changed(self, pattern: Tensor, edited: Tensor) -> None:
        """Report the rows of a pattern, [batch, head, query, key], that an edit has left as they were as none.

        A row that sees none of the keys it is about, or nothing else, stays as it is; an edit of such rows alone has
        changed nothing, which a run then says.
        """
        self.note(self.only_valid((edited != pattern).any(-1)))

    def add(self, name: str, value: Tensor) -> None:
        """Add to a sum over the whole run, returned as `run.sums[name, layer]`."""
        key = name, self.layer
        self.state.sums[key] = self.state.sums.get(key, 0) + value

    def keys(self, scope: Rows, n_keys: int) -> Bool[Tensor, "batch key"]:
        """The tokens of a scope, generated ones included, as a mask over the keys that the layer holds now."""

        device = self.positions.device
        return self.state.columns.get(
            scope, n_keys, self.n_seen, device, lambda: self._columns(scope.mask(0, self.n_seen), n_keys)
        )

    def columns(self, mask: Bool[Tensor, "batch position"], n_keys: int) -> Bool[Tensor, "batch key"]:
        """A mask over absolute positions as a mask over the keys that the layer holds now.

        Sliding-window layers hold only the last keys, static caches more than were seen; positions that the mask does
        not reach are False.
        """
        device = self.positions.device
        if mask.shape[1] == n_keys == self.n_seen and mask.device == device:
            return mask
        return self.state.columns.get(mask, n_keys, self.n_seen, device, lambda: self._columns(mask, n_keys))

    def _columns(self, mask: Bool[Tensor, "batch position"], n_keys: int) -> Bool[Tensor, "batch key"]:
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
        needs_scores: whether its function asks for the scores before the softmax, which a server does not have.
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
        needs_scores: bool = False,
    ) -> None:
        self.needs_scores = needs_scores
        self.site, self.layer, self.rows, self.run, self.heads = site, layer, rows, run, heads
        self.edits, self.chooses, self.name, self.owner = edits, chooses, name, owner

    def __repr__(self) -> str:
        what = "edit" if self.edits else "read"
        return f"Tap({what} of {self.site} in layer {self.layer}, {self.rows.label!r}, heads {self.heads})"
