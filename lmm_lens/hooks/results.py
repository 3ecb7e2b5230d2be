"""What a run returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import HookError
from ..prompts.prompt import Prompt

if TYPE_CHECKING:
    from ..core.tapping import Kept


class Reads(dict[tuple[str, int], Tensor]):
    """What was read by (name, layer), and by name which dimension the rows are.

    Attributes:
        dims: name to the number of that dimension.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dims: dict[str, int] = {}


Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Report:
    """What one intervention did in one run.

    Attributes:
        intervention: it, in words.
        edits: layer to the number of rows times heads (or residual streams) that were edited there.
        moved: layer to the attention moved there, summed over those rows; empty for edits that move none.
        short: of a control, layer to the attention that it should have moved there and could not.
    """

    intervention: str
    edits: Mapping[int, int]
    moved: Mapping[int, float] = field(default_factory=dict)
    short: Mapping[int, float] = field(default_factory=dict)

    @property
    def n_edits(self) -> int:
        """Rows times heads (or streams) edited in all layers."""
        return sum(self.edits.values())

    def __str__(self) -> str:
        layers = [layer for layer, count in self.edits.items() if count]
        where = f" in layers {layers[0]} to {layers[-1]}" if layers else ""
        moved = f", moving {sum(self.moved.values()) / self.n_edits:.3f} of each" if self.moved and self.n_edits else ""
        total, short = sum(self.moved.values()), sum(self.short.values())
        control = f"; {short / (total + short):.0%} of what was to be moved could not be" if short > 1e-6 else ""
        return f"{self.intervention}: {self.n_edits} rows edited{where}{moved}{control}"


def report(
    intervention: object,
    owner: int,
    edited: Mapping[tuple[int, int], int],
    moved: Mapping[tuple[int, int], float],
    short: Mapping[tuple[int, int], float],
) -> Report:
    """The report of one intervention, from what a session counted by (index of the intervention, layer)."""
    return Report(str(intervention), _by_layer(edited, owner), _by_layer(moved, owner), _by_layer(short, owner))


def _by_layer(counted: Mapping[tuple[int, int], Number], owner: int) -> dict[int, Number]:
    return {layer: number for (index, layer), number in sorted(counted.items()) if index == owner}


@dataclass(frozen=True, eq=False)
class Run:
    """One forward pass.

    Attributes:
        prompt: what was run.
        logits: Float[batch, position, vocab], or [batch, 1, vocab] with `logits="last"`.
        reads: (name, layer) to what was read, [batch, query, ...] (at `pattern` [batch, head, query, ...]). Entry i is
            the token at `positions[name][batch row, i]`, which is not position i where the rows are some of them or the
            batch is padded: padding is never read.
        positions: name to the absolute position of each row that was read, [batch, query] (of the vision tower its own
            rows), -1 where a batch row has fewer.
        reports: what each intervention did, in order.
        sums: (name, layer) to what taps added up with `TapContext.add`.
        tower: what the vision tower ran, where it was read or edited: its rows (pictures, tiles, frames) and tokens.
    """

    prompt: Prompt
    logits: Float[Tensor, "batch position vocab"]
    reads: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)
    positions: Mapping[str, Int[Tensor, "_ _"]] = field(default_factory=dict)
    reports: tuple[Report, ...] = ()
    sums: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)
    tower: Prompt | None = None

    def on_prompt(self, name: str, layer: int) -> Tensor:
        """A read put onto the prompt's positions, so that masks of the prompt select from it.

            heard = run.on_prompt("resid_pre", 3)[prompt.mask("visual")]

        Returns:
            Like `reads[name, layer]`, with the prompt's padded sequence in place of the rows that were read: entry i is
            position i of the prompt. NaN where nothing was read, as in padding.

        Raises:
            HookError: nothing was read there, or numbers that have no NaN were, and not of every token.
        """
        return _placed(self.reads, self.positions, self.prompt, name, layer)

    def __repr__(self) -> str:
        edits = "".join(f"\n  {report}" for report in self.reports)
        return f"Run with logits {tuple(self.logits.shape)}, {len(self.reads)} reads{edits}"


@dataclass(frozen=True, eq=False)
class Generation:
    """Generated text.

    Attributes:
        prompt: what was continued.
        text: per batch row, the answer without special tokens; empty strings without a processor.
        tokens: Int[batch, new], rows that ended early padded.
        logits: Float[batch, new, vocab] if asked for.
        reads, positions, reports, sums: as in `Run`; the rows of all passes, one after the other.
    """

    prompt: Prompt
    text: tuple[str, ...]
    tokens: Int[Tensor, "batch new"]
    logits: Float[Tensor, "batch new vocab"] | None = None
    reads: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)
    positions: Mapping[str, Int[Tensor, "_ _"]] = field(default_factory=dict)
    reports: tuple[Report, ...] = ()
    sums: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)

    def on_prompt(self, name: str, layer: int) -> Tensor:
        """As of `Run`; what was read of generated tokens is left out."""
        return _placed(self.reads, self.positions, self.prompt, name, layer)

    def __repr__(self) -> str:
        return f"Generation of {self.tokens.shape[1]} tokens: {list(self.text)}"


def _placed(
    reads: Mapping[tuple[str, int], Tensor], positions: Mapping[str, Tensor], prompt: Prompt, name: str, layer: int
) -> Tensor:
    """See `Run.on_prompt`."""
    if (name, layer) not in reads:
        there = ", ".join(sorted({f"{each!r} of layer {number}" for each, number in reads})[:6])
        raise HookError(f"{name!r} of layer {layer} was not read\n  reads of this run: {there or 'none'}")
    read, at = reads[name, layer], positions[name].to(reads[name, layer].device)
    dim = reads.dims[name] if isinstance(reads, Reads) else 1
    own = (at >= 0) & (at < prompt.n_tokens)
    if not read.is_floating_point() and bool((own.sum(1) < prompt.n_tokens).any()):
        raise HookError(
            f"{name!r} of layer {layer} is {str(read.dtype).removeprefix('torch.')}, which has no NaN for tokens that "
            "were not read, as padding is not\n  read it as floating-point numbers, or use run.positions"
        )
    rows = read.movedim(dim, 1)
    fill = torch.nan if read.is_floating_point() else 0
    out = rows.new_full((rows.shape[0], prompt.n_tokens, *rows.shape[2:]), fill)
    batch, entry = own.nonzero(as_tuple=True)
    out[batch, at[batch, entry]] = rows[batch, entry]
    return out.movedim(1, dim)


def collect(kept: Mapping[tuple[str, int], Sequence[Kept]]) -> tuple[Reads, dict[str, Tensor]]:
    """Join what the passes of a run kept.

    Args:
        kept: as in `Tapping`.

    Returns:
        The reads, and by name the rows' positions.
    """
    reads = Reads()
    positions: dict[str, Tensor] = {}
    is_whole: dict[tuple[int, ...], bool] = {}  # by the masks of the passes, which layers share: each is asked for once
    for (name, layer), passes in kept.items():
        dim, masks = passes[0].dim, [each.valid for each in passes]
        asked = tuple(map(id, masks))
        if asked not in is_whole:
            is_whole[asked] = bool(torch.cat(masks, 1).all())
        whole = is_whole[asked]
        parts = [each.result if whole else _blanked(each.result, each.valid, dim) for each in passes]
        if dim == 2 and parts[0].ndim == 4:  # a pattern: later passes have more keys, and a key not yet there gets 0
            width = max(part.shape[3] for part in parts)
            parts = [_widened(part, width) for part in parts]
        reads[name, layer] = torch.cat(parts, dim)
        reads.dims[name] = dim
        if name not in positions:
            positions[name] = torch.cat([each.positions.masked_fill(~each.valid, -1) for each in passes], 1)
    return reads, positions


def _widened(pattern: Tensor, width: int) -> Tensor:
    missing = width - pattern.shape[3]
    return torch.nn.functional.pad(pattern, (0, missing)) if missing else pattern


def _blanked(result: Tensor, valid: Tensor, dim: int) -> Tensor:
    """NaN in the rows that only pad a ragged batch, so that they cannot be mistaken for values."""
    if not result.is_floating_point():
        return result
    shape = [1] * result.ndim
    shape[0], shape[dim] = valid.shape
    return result.masked_fill(~valid.reshape(shape), torch.nan)
