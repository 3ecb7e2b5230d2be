"""A tap: a read or an edit of some rows of one activation, and the place at which its function is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from .carried import Carried
from .columns import Columns, Grown
from .kernels import KeyWeights, halves_of
from .noted import Noted, Reading, as_given
from .rows import Rows

HIDDEN = -3e4  # attention scores at or below belong to keys that a row cannot see; fp16 masks hide with -65504


class RunState:
    """What taps leave to each other, and to the report, while one prompt runs.

    Attributes:
        noted: what edits that choose for themselves did, by (index of the intervention, layer, how it is read, of how
            many numbers).
        sums: what was added up, by (name, layer).
        found_sinks, acting_sinks: Bool[batch, position] by (rule, layer), see `lmm_lens.core.sinks`.
        sink_groups: the keys of a pattern by what VAR does with them, by the same.
        columns: masks over keys that several layers of one pass ask for, see `TapContext.columns`.
    """

    noted: dict[tuple[int, int, Reading, int], Noted]
    sums: dict[tuple[str, int], Tensor]
    found_sinks: dict[tuple[Any, int], Grown]
    acting_sinks: dict[tuple[Any, int], Grown]
    sink_groups: dict[tuple[Any, ...], tuple[int, Tensor, Grown]]

    def __init__(self) -> None:
        self.noted, self.sums = {}, {}
        self.found_sinks, self.acting_sinks, self.sink_groups, self.columns = {}, {}, {}, Columns()


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
        n_keys: at `pattern`, how many keys the layer holds, of which a tap that takes heads apart may be given the
            first alone; 0 elsewhere.
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
        n_keys: int = 0,
    ) -> None:
        self.n_keys = n_keys
        self.layer, self.heads, self.positions, self.valid = layer, heads, positions, valid
        self.n_seen, self.state, self.carried, self.owner = n_seen, state, carried, owner
        self.scores, self.visible, self.all_valid, self.read_values = scores, visible, all_valid, read_values

    def only_valid(self, rows: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, "batch ..."]:
        """A choice of rows, or numbers of theirs, [batch, query] or [batch, head, query]; 0 for rows that pad."""
        if self.all_valid:
            return rows
        return rows * (self.valid if rows.ndim == 2 else self.valid[:, None])

    def valid_rows(self, numbers: Float[Tensor, "batch row n"]) -> Float[Tensor, "batch row n"]:
        """The same of numbers of all heads' rows, one head after the other."""
        if self.all_valid:
            return numbers
        return numbers * self.valid.repeat(1, numbers.shape[1] // self.valid.shape[1])[..., None]

    def note(self, rows: Tensor, moved: Tensor | None = None, short: Tensor | None = None) -> None:
        """Report what an edit that chooses for itself changed; each is added up, whatever its shape.

        Args:
            rows: which, as a mask, or as numbers that are above 0 there; or how many, a whole number.
            moved: the attention it moved.
            short: of a control, the attention that it should have moved and could not.
        """
        given = (rows,) if moved is None else (rows, moved) if short is None else (rows, moved, short)
        self.note_as(as_given, *given)

    def note_as(self, read: Reading, *numbers: Tensor) -> None:
        """Report what an edit did in numbers of which a function makes what `note` takes, once the run is over.

        Args:
            read: the function; it acts on each entry of the first dimension alone.
            numbers: what it is given, with those of all passes one after the other.
        """
        key = self.owner, self.layer, read, len(numbers)
        noted = self.state.noted.get(key)
        if noted is None:
            noted = self.state.noted[key] = Noted(read)
        noted.add(numbers)

    def add(self, name: str, value: Tensor) -> None:
        """Add to a sum over the whole run, returned as `run.sums[name, layer]`."""
        key = name, self.layer
        self.state.sums[key] = self.state.sums.get(key, 0) + value

    def keys(self, scope: Rows, n_keys: int) -> Bool[Tensor, "batch key"]:
        """The tokens of a scope, generated ones included, as a mask over the keys that the layer holds now."""
        last, n_seen = self.n_seen - 1, self.n_seen
        made: Tensor = self.state.columns.get(
            ("keys", id(scope), self.valid.device),
            scope,
            n_keys,
            n_seen,
            lambda: self._columns(scope.mask(0, n_seen), n_keys),
            (lambda: scope.holds_step(last)) if scope.is_one_in_steps(last) else None,
        )
        return made

    def halves(self, scope: Rows, n_keys: int, dtype: torch.dtype) -> KeyWeights:
        """The tokens of a scope and all others as weights of the keys, see `lmm_lens.core.kernels.halves_of`."""
        made: KeyWeights = self.state.columns.get(
            ("halves", id(scope), self.valid.device, dtype),
            scope,
            n_keys,
            self.n_seen,
            lambda: halves_of(self.keys(scope, n_keys), dtype),
        )
        return made

    def columns(self, mask: Bool[Tensor, "batch position"], n_keys: int) -> Bool[Tensor, "batch key"]:
        """A mask over absolute positions as a mask over the keys that the layer holds now.

        Sliding-window layers hold only the last keys, static caches more than were seen; positions that the mask does
        not reach are False.
        """
        device, n_seen = self.valid.device, self.n_seen
        if mask.shape[1] == n_keys == n_seen and mask.device == device:
            return mask
        made: Tensor = self.state.columns.get(
            ("columns", id(mask), device),
            mask,
            n_keys,
            n_seen,
            lambda: self._columns(mask, n_keys),
            (lambda: False) if mask.shape[1] < n_seen else None,
        )
        return made

    def on_tokens(self, pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query token"]:
        """Rows of a pattern whose keys are the tokens from the first on, whatever the layer holds of them.

        Of tokens that a sliding window has left the attention is 0; a static cache's room for more is cut off.
        """
        n_keys = pattern.shape[-1]
        return pattern if n_keys == self.n_seen else _on_tokens(pattern, self.n_seen - n_keys)

    def _columns(self, mask: Bool[Tensor, "batch position"], n_keys: int) -> Bool[Tensor, "batch key"]:
        first = max(0, self.n_seen - n_keys)
        inside = mask[:, first : first + n_keys].to(self.valid.device)
        return torch.nn.functional.pad(inside, (0, n_keys - inside.shape[1]))


def _on_tokens(pattern: Tensor, n_gone: int) -> Tensor:
    """With columns of zeros before it for tokens that are gone; a negative number cuts so many off behind."""
    return torch.nn.functional.pad(pattern, (n_gone, 0)) if n_gone > 0 else pattern[..., :n_gone]


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
        adds: whether an edit of the pattern returns what is to be added to its rows, which it leaves as they are; else
            it is given a copy, and returns what takes their place.
        apart: of one that adds, whether it acts on each head alone, too: it may then be given some heads at a time, and
            of the keys the first, up to the last that any of its rows sees.
        growth: of one that adds and keeps the sum of each row, a function that returns instead by which part of itself
            each weight grows; a backend may let its kernel do that. None for any other.
        hides: the keys from which an edit of all heads takes all attention, to the others, and does nothing else; None
            for any other. A backend may hide them from its kernel instead.
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
        adds: bool = False,
        apart: bool = False,
        growth: TapFunction | None = None,
        hides: Rows | None = None,
    ) -> None:
        self.growth = growth
        self.needs_scores, self.adds, self.apart, self.hides = needs_scores, adds, apart, hides
        self.site, self.layer, self.rows, self.run, self.heads = site, layer, rows, run, heads
        self.edits, self.chooses, self.name, self.owner = edits, chooses, name, owner

    @classmethod
    def of_growth(
        cls,
        layer: int,
        rows: Rows,
        growth: TapFunction,
        heads: tuple[int, ...] | None = None,
        keeps_sums: bool = True,
        hides: Rows | None = None,
    ) -> Tap:
        """An edit of the pattern by which each weight grows by a part of itself; it reports what it changes.

        Args:
            layer, rows, heads, hides: as above.
            growth: of each weight, as a tensor of its own; -1 takes all of it.
            keeps_sums: whether the weights of each row then sum to what they did.
        """

        def add(pattern: Tensor, context: TapContext) -> Tensor:
            return growth(pattern, context).mul_(pattern)

        return cls(
            "pattern",
            layer,
            rows,
            add,
            heads,
            edits=True,
            chooses=True,
            adds=True,
            apart=True,
            growth=growth if keeps_sums else None,
            hides=hides,
        )

    def __repr__(self) -> str:
        what = "edit" if self.edits else "read"
        return f"Tap({what} of {self.site} in layer {self.layer}, {self.rows.label!r}, heads {self.heads})"
