"""Hand rows of activations to taps: cut out, read or edited, put back. Knows positions, not modules or frameworks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import HookError, InterventionError
from .carried import Carried
from .course import Course, Stop
from .noted import totals
from .packing import slim
from .rows import Chunk, JoinedRows, of_heads
from .tapped import TappedAttention
from .taps import Tap, TapContext
from .tiles import Tile, tiles


class Kept:
    """What a read returned in one pass.

    Attributes:
        positions: Int[batch, query], absolute positions of its rows.
        valid: Bool[batch, query], which of them are real; ragged batches are padded.
        result: what its function made of them.
        dim: which dimension of the result is the rows.
    """

    def __init__(self, positions: Tensor, valid: Tensor, result: Tensor, dim: int) -> None:
        self.positions, self.valid, self.result, self.dim = positions, valid, result, dim

    def plain(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """The arguments that make it: what a server, where this class has no module, can send."""
        return self.positions, self.valid, self.result, self.dim


Found = tuple[
    dict[tuple[str, int], list[tuple[Tensor, Tensor, Tensor, int]]],
    dict[tuple[int, int], int],
    dict[tuple[int, int], float],
    dict[tuple[int, int], float],
    dict[tuple[str, int], Tensor],
]
"""What taps read and did, in plain values."""


def check_stream(x: Tensor, site: str, layer: int) -> None:
    """Refuse a residual stream that is several ones, and outputs whose batch rows cannot be told apart.

    Raises:
        HookError: it is one of these.
    """
    if site in ("attn_out", "mlp_out") and x.ndim != 3:
        raise HookError(
            f"{site} of layer {layer} is not [batch, token, width] but {tuple(x.shape)}: its module does not keep the "
            "tokens of batch rows apart, as some mixtures of experts do not\n"
            "  read and edit resid_pre and resid_post instead, whose difference holds it"
        )
    if site.startswith("resid") and x.ndim != 3:
        raise HookError(
            f"{site} of layer {layer} is not [batch, token, width] but {tuple(x.shape)}: this model's layers hand on "
            "several residual streams\n"
            "  read and edit the pattern, z, attn_out or mlp_out instead; the sinks of VAR need the residual stream"
        )


class Tapping:
    """The taps of the prompts that run, and what they did.

    Args:
        n_heads: query heads of each decoder layer.
        carried: what runs of one job leave to each other.

    Attributes:
        course: the prompt under way.
        first: absolute position of the first token of the pass under way.
        fired: the hook points that this pass has reached.
        kept: what reading taps returned, by (name, layer), pass by pass.
        edited: rows times heads (or streams) that were edited, by (index of the intervention, layer).
        moved: attention moved in them, by the same; only of edits that report it.
        short: attention that a control should have moved and could not, by the same.
        sums: what taps added up, by (name, layer).
        values: of layers that compute them once, for a backend to remember.
    """

    course: Course
    fired: set[tuple[str, int]]
    kept: dict[tuple[str, int], list[Kept]]
    edited: dict[tuple[int, int], int]
    moved: dict[tuple[int, int], float]
    short: dict[tuple[int, int], float]
    sums: dict[tuple[str, int], Tensor]
    values: dict[int, Tensor]

    def __init__(self, n_heads: Sequence[int], carried: Carried | None = None) -> None:
        self.n_heads, self.all_heads = n_heads, [tuple(range(n)) for n in n_heads]
        self.course, self.first, self.fired = Course(0, ()), 0, set()
        self.kept, self.edited, self.moved, self.short, self.sums = {}, {}, {}, {}, {}
        self.values = {}
        self._carried = Carried() if carried is None else carried

    @property
    def taps(self) -> dict[tuple[str, int], list[Tap]]:
        """Those of the prompt under way, by (hook point, layer), in the order in which they act."""
        return self.course.taps

    def start(self, n_rows: int, taps: Sequence[Tap]) -> Course:
        """Begin a prompt of so many rows; of the one before nothing is left but the counts, unless it goes on later.

        Returns:
            The course of the prompt; `course` can be set to it again after another prompt ran in between.
        """
        self.settle()
        self.course = Course(n_rows, taps)
        return self.course

    def settle(self) -> None:
        """Add up what taps of the prompt under way noted so far."""
        state = self.course.state
        for (owner, layer, *_), (rows, *attention) in zip(state.noted, totals([*state.noted.values()]), strict=True):
            by = owner, layer
            self.edited[by] = self.edited.get(by, 0) + round(rows)
            for so_far, more in zip((self.moved, self.short), attention, strict=False):
                so_far[by] = so_far.get(by, 0.0) + more
        for named, value in state.sums.items():
            self.sums[named] = self.sums.get(named, 0) + value
        state.noted.clear()
        state.sums.clear()

    def found(self) -> Found:
        """What the taps read and did, to travel; `take_over` reads it."""
        kept = {at: [each.plain() for each in passes] for at, passes in self.kept.items()}
        return kept, self.edited, self.moved, self.short, self.sums

    def take_over(self, found: Found) -> None:
        """What taps read and did elsewhere, as if it had been here."""
        kept, self.edited, self.moved, self.short, self.sums = found
        self.kept = {at: [Kept(*each) for each in passes] for at, passes in kept.items()}

    def join(
        self, taps: Sequence[Tap], known_as: tuple[int, ...], batch: int, length: int, device: torch.device
    ) -> JoinedRows | None:
        """The rows of taps in the pass under way, which `known_as` names; None where there are none.

        Raises:
            InterventionError: the pass has another batch than the prompt.
        """
        course = self.course
        if batch != course.n_rows:
            raise InterventionError(
                f"the model ran with a batch of {batch}, but the prompt has {course.n_rows} rows\n"
                "  beam search and several returned sequences are not supported inside reads and interventions"
            )
        if course.joined_at != (self.first, length):
            course.joined_at, course.joined = (self.first, length), {}
        key = known_as, device
        if key not in course.joined:
            course.joined[key] = JoinedRows.of([tap.rows for tap in taps], self.first, length, device, course.ended)
        return course.joined[key]

    def place(
        self,
        tap: Tap,
        rows: Chunk,
        valid: Tensor,
        length: int,
        heads: tuple[int, ...] | None = None,
        **of_pattern: Any,
    ) -> TapContext:
        """What a tap's function is told of the rows that it is handed, in a pass of so many; of its heads, or some."""
        heads = tap.heads if heads is None else heads
        return TapContext(
            tap.layer,
            self.all_heads[tap.layer] if heads is None else heads,
            rows.positions,
            valid,
            self.first + length,
            self.course.state,
            self._carried,
            tap.owner,
            all_valid=rows.window is not None and valid is rows.valid,
            **of_pattern,
        )

    def _place_on(
        self,
        tap: Tap,
        tile: Tile,
        heads: tuple[int, ...] | None,
        valid: Tensor,
        attention: TappedAttention,
        length: int,
    ) -> TapContext:
        """The same of a pattern, with what is computed when asked for."""
        rows, seen = tile.rows, tile.seen
        return self.place(
            tap,
            rows,
            valid,
            length,
            heads,
            scores=lambda: seen.scores(rows, heads),
            visible=lambda: seen.visible(rows, heads),
            read_values=lambda weights: seen.read_values(weights, heads),
            n_keys=attention.shape[3],
        )

    def through(self, x: Tensor, site: str, layer: int) -> Tensor:
        """Pass an activation [batch, query, ...] through the taps of its hook point, in order.

        Raises:
            HookError: there is no one residual stream.
        """
        check_stream(x, site, layer)
        self.fired.add((site, layer))
        taps = self.taps[site, layer]
        batch, length = x.shape[:2]
        copied = False  # the first edit copies; what it is handed is its own then
        for tap in taps:
            joined = self.join((tap,), (id(tap.rows),), batch, length, x.device)
            if joined is None:
                continue
            rows = joined.rows
            if tap.edits and not copied:
                x, copied = x.clone(), True
            part = of_heads(rows.gather(x), tap.heads, dim=2)
            result = tap.run(part, self.place(tap, rows, rows.valid, length))
            if not tap.edits:
                if tap.name:
                    self._keep(tap, rows, result, dim=1)
                continue
            if not tap.chooses:
                self._count(tap, rows.count * (part.shape[2] if x.ndim == 4 else 1))
            if result is not part or not rows.is_part(tap.heads):  # else it was written where it stands
                rows.put(x, result.to(x.dtype), tap.heads)
        return x

    def attend(self, layer: int, attention: TappedAttention) -> None:
        """Pass the pattern of a layer through its taps."""
        at = "pattern", layer
        stop = self.course.stops.get(at)
        if stop is None:
            return
        self.fired.add(at)
        batch, n_heads, length, _ = attention.shape
        if n_heads != self.n_heads[layer]:
            raise HookError(f"layer {layer} has {n_heads} heads, but its adapter counts {self.n_heads[layer]}")
        joined = self.join(stop.taps, stop.known_as, batch, length, attention.device)
        if joined is None:
            return
        results: list[list[Tensor]] = [[] for _ in stop.taps]
        for tile in tiles(stop, joined.rows, attention):
            if stop.adds:
                self._add_to(stop.taps[0], tile, attention, length)
            else:
                self._pass_through(stop, joined, tile, attention, length, results)
        for index, tap in enumerate(stop.taps):
            own, pick = joined.own[index], joined.picks[index]
            if own is None:  # none of its rows is in this pass
                continue
            if tap.edits:
                if not tap.chooses:
                    self._count(tap, own.count * (n_heads if tap.heads is None else len(tap.heads)))
            elif tap.name:
                read = results[index][0] if len(results[index]) == 1 else torch.cat(results[index], dim=2)
                self._keep(tap, own, read if pick is None else pick.gather(read, dim=2), dim=2)

    def _add_to(self, tap: Tap, tile: Tile, attention: TappedAttention, length: int) -> None:
        """Let the only tap of a layer add to rows of its pattern, which nobody else has to see."""
        rows, heads = tile.rows, tile.heads
        context = self._place_on(tap, tile, heads, rows.valid, attention, length)
        attention.add(tap.run(tile.seen.probabilities(rows, heads), context), rows, heads)

    def _pass_through(
        self,
        stop: Stop,
        joined: JoinedRows,
        tile: Tile,
        attention: TappedAttention,
        length: int,
        results: list[list[Tensor]],
    ) -> None:
        """Pass some rows of a pattern through all taps of a layer."""
        rows, heads = tile.rows, tile.heads
        original = pattern = tile.seen.probabilities(rows, heads)
        for index, tap in enumerate(stop.taps):
            if joined.own[index] is None:
                continue
            member, columns = joined.members[index], stop.columns[index]
            valid = rows.valid if member is None else member[:, tile.entries]
            part = pattern if columns is None else pattern[:, columns]
            own = tap.heads if heads is stop.heads else heads
            context = self._place_on(tap, tile, own, valid, attention, length)
            result = tap.run(part.clone() if tap.edits and not tap.adds else part, context)
            if not tap.edits:
                results[index].append(result)
                continue
            if tap.adds:
                result = part + result
            if member is not None:
                result = torch.where(valid[:, None, :, None], result, part)
            if columns is not None:
                whole = pattern.clone()
                whole[:, columns] = result
                result = whole
            pattern = result
        if pattern is not original:
            attention.put(pattern, original, rows, heads)

    def _count(self, tap: Tap, n_edits: int) -> None:
        self.edited[tap.owner, tap.layer] = self.edited.get((tap.owner, tap.layer), 0) + n_edits

    def _keep(self, tap: Tap, rows: Chunk, result: Tensor, dim: int) -> None:
        kept = Kept(rows.positions, rows.valid, slim(result), dim)
        self.kept.setdefault((tap.name, tap.layer), []).append(kept)
