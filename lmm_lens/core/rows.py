"""Rows of a forward pass, chosen per batch row: bound scopes, the chunk of them in one pass, unions of several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .kernels import made_once


class Rows:
    """A row scope bound to a prompt.

    Attributes:
        label: how the scope was named.
        prompt: which prompt positions are in it.
        generated: which generated tokens are in it, as a half-open range; None is open-ended.
        takes_part: the batch rows whose generated tokens count; None is all of them.
    """

    def __init__(
        self,
        label: str,
        prompt: Bool[Tensor, "batch position"],
        generated: tuple[int, int | None] = (0, 0),
        takes_part: Bool[Tensor, " batch"] | None = None,
    ) -> None:
        everyone = takes_part is None or bool(takes_part.all())
        self.label, self.prompt, self.generated = label, prompt, generated
        self.takes_part = None if everyone else takes_part

    def mask(self, first: int, length: int, ended: Bool[Tensor, " batch"] | None = None) -> Bool[Tensor, "batch chunk"]:
        """The scope as a mask over positions first .. first + length - 1, on the CPU.

        Args:
            first, length: of the positions.
            ended: batch rows of whose generated tokens none count any more.
        """
        n_prompt = self.prompt.shape[1]
        inside = self.prompt[:, first : first + length]
        start, stop = self.generated
        step = torch.arange(max(first, n_prompt), max(first + length, n_prompt)) - n_prompt
        chosen = (step >= start) & (step < (stop if stop is not None else torch.inf))
        takes_part = torch.ones(len(self.prompt), dtype=torch.bool) if self.takes_part is None else self.takes_part
        takes_part = takes_part if ended is None else takes_part & ~ended
        return torch.cat([inside, takes_part[:, None] & chosen], dim=1)

    def is_one_in_steps(self, first: int) -> bool:
        """Whether a generated token at this position is in the scope for every batch row or for none."""
        return self.takes_part is None and first >= self.prompt.shape[1]

    def holds_step(self, position: int) -> bool:
        """Whether the generated token at this position is in the scope."""
        step, (start, stop) = position - self.prompt.shape[1], self.generated
        return step >= start and (stop is None or step < stop)

    def prompt_only(self) -> Rows:
        """The scope without generated tokens."""
        return Rows(self.label, self.prompt)

    def reaches(self) -> bool:
        """Whether the scope selects anything at all, in the prompt or later."""
        return bool(self.prompt.any()) or self.generated != (0, 0)

    def __repr__(self) -> str:
        return f"Rows({self.label!r}, {int(self.prompt.sum())} of the prompt, generated {self.generated})"


def of_heads(x: Tensor, heads: tuple[int, ...] | None, dim: int = 1) -> Tensor:
    """Some heads of x, or all, which are its dimension `dim`, in order; a view where they follow one another."""
    if heads is None:
        return x
    if follow(heads):
        return x.narrow(dim, heads[0], len(heads))
    return x[(slice(None),) * dim + (list(heads),)]


def follow(heads: tuple[int, ...]) -> bool:
    """Whether heads follow one another."""
    return bool(heads) and heads == tuple(range(heads[0], heads[0] + len(heads)))


class Chunk:
    """The rows of one forward pass that a scope selects, ragged batches padded.

    Attributes:
        index: rows counted from the start of the pass; padded entries repeat a valid or any row.
        valid: which entries are real.
        count: how many are.
        first: absolute position of the pass's first row.
        width: entries a batch row.
        window: the same rows as a slice, where every batch row has the same contiguous ones.
    """

    def __init__(
        self,
        index: Int[Tensor, "batch query"],
        valid: Bool[Tensor, "batch query"],
        count: int,
        first: int,
        window: slice | None,
    ) -> None:
        self.index, self.valid, self.count, self.first, self.window = index, valid, count, first, window
        self.width = index.shape[1]
        self._positions: Tensor | None = None  # Int[batch, query]; names in a body travel along, and jaxtyping does not
        self._behind: dict[tuple[int, int], Tensor] = {}

    @classmethod
    def of(cls, mask: Bool[Tensor, "batch chunk"], first: int) -> Chunk | None:
        """The rows of a mask; None where it is empty."""
        counts = mask.sum(1)
        width = int(counts.max())
        if width == 0:
            return None
        index = torch.argsort(mask.int(), dim=1, descending=True, stable=True)[:, :width]
        valid = torch.arange(width) < counts[:, None]
        start = int(index[0, 0])
        contiguous = bool((index == torch.arange(start, start + width)).all()) and bool(valid.all())
        window = slice(start, start + width) if contiguous else None
        return cls(index, valid, int(counts.sum()), first, window)

    def to(self, device: torch.device) -> Chunk:
        """The same rows with index tensors on another device."""
        if self.index.device == device:
            return self
        return Chunk(self.index.to(device), self.valid.to(device), self.count, self.first, self.window)

    def part(self, start: int, stop: int) -> Chunk:
        """Entries start .. stop - 1 of every batch row."""
        if start == 0 and stop == self.width:
            return self
        window = None
        if self.window is not None:
            window = slice(self.window.start + start, min(self.window.start + stop, self.window.stop))
        index, valid = self.index[:, start:stop], self.valid[:, start:stop]
        return Chunk(index, valid, self.count, self.first, window)

    @property
    def positions(self) -> Int[Tensor, "batch query"]:
        """Absolute positions of the rows."""
        if self._positions is None:  # every layer asks
            self._positions = self.index + self.first
        return self._positions

    def behind(self, start: int, stop: int) -> Bool[Tensor, "batch 1 query key"]:
        """Which of the keys start .. stop - 1 of the pass stand behind each row."""
        if (start, stop) not in self._behind:  # every layer asks
            keys = torch.arange(start, stop, device=self.index.device)
            self._behind[start, stop] = self.index[:, None, :, None] < keys
        return self._behind[start, stop]

    def gather(self, x: Tensor, dim: int = 1) -> Tensor:
        """The selected rows of x, whose dimension 0 is the batch and `dim` the rows of the pass."""
        if self.window is not None:
            start, stop = self.window.start, self.window.stop
            return x if start == 0 and stop == x.shape[dim] else x.narrow(dim, start, stop - start)
        rows_first = x.movedim(dim, 1)
        batch = torch.arange(len(self.index), device=x.device)[:, None]
        return rows_first[batch, self.index].movedim(1, dim)

    def is_part(self, heads: tuple[int, ...] | None) -> bool:
        """Whether these rows and heads of a tensor are a part of it, and no copy."""
        return self.window is not None and (heads is None or follow(heads))

    def put(self, x: Tensor, rows: Tensor, heads: tuple[int, ...] | None = None) -> None:
        """Put rows [batch, query, ...] back into x [batch, chunk, ...], in place; padded entries are left alone.

        Args:
            x: into what.
            rows: what.
            heads: which heads they are, dimension 2; None for all.
        """
        chosen = self.gather(x)  # a part of x itself where the rows are a window
        if heads is None:
            chosen = rows if self.window is None else chosen.copy_(rows)
        elif follow(heads):
            of_heads(chosen, heads, dim=2).copy_(rows)
        else:
            chosen[:, :, list(heads)] = rows
        if self.window is None:
            batch, entry = self.valid.nonzero(as_tuple=True)
            x[batch, self.index[batch, entry]] = chosen[batch, entry]


class JoinedRows:
    """Several row scopes as one set of rows, so that what they share is computed once.

    Attributes:
        rows: the union.
        own: for each scope, its rows; None where it has none here.
        members: for each scope, which entries of the union are its own; None for all of them.
        picks: for each scope, its own entries of the union, closed up; None where that is all or nothing.
    """

    def __init__(
        self,
        rows: Chunk,
        own: tuple[Chunk | None, ...],
        members: tuple[Bool[Tensor, "batch query"] | None, ...],
        picks: tuple[Chunk | None, ...],
    ) -> None:
        self.rows, self.own, self.members, self.picks = rows, own, members, picks

    @classmethod
    def of(
        cls,
        scopes: Sequence[Rows],
        first: int,
        length: int,
        device: torch.device,
        ended: Bool[Tensor, " batch"] | None = None,
    ) -> JoinedRows | None:
        """The union of the scopes among positions first .. first + length - 1; None where it is empty.

        Args:
            scopes: bound ones.
            first, length: of the positions.
            device: of the result.
            ended: see `Rows.mask`.
        """
        if length == 1 and ended is None and all(scope.is_one_in_steps(first) for scope in scopes):
            return cls._of_step(scopes, first, device)
        masks = [scope.mask(first, length, ended) for scope in scopes]
        union = torch.stack(masks).any(0)
        rows = Chunk.of(union, first)
        if rows is None:
            return None
        own = [Chunk.of(mask, first) for mask in masks]
        members, picks = [], []
        for mask in masks:
            member = mask.gather(1, rows.index) & rows.valid
            whole = bool((member == rows.valid).all())
            pick = None if whole else Chunk.of(member, 0)  # its index counts entries of the union
            members.append(None if whole else member.to(device))
            picks.append(pick.to(device) if pick else None)
        chunks = tuple(chunk.to(device) if chunk else None for chunk in own)
        return cls(rows.to(device), chunks, tuple(members), tuple(picks))

    @classmethod
    def _of_step(cls, scopes: Sequence[Rows], first: int, device: torch.device) -> JoinedRows | None:
        """The same for one generated token, which is in a scope for every batch row or for none: no mask is needed."""
        inside = [scope.holds_step(first) for scope in scopes]
        if not any(inside):
            return None
        n = len(scopes[0].prompt)
        index = made_once(((0,),) * n, torch.long, device)
        row = Chunk(index, made_once(((True,),) * n, torch.bool, device), n, first, slice(0, 1))
        own = tuple(row if is_in else None for is_in in inside)
        members = tuple(None if is_in else made_once(((False,),) * n, torch.bool, device) for is_in in inside)
        return cls(row, own, members, (None,) * len(scopes))
