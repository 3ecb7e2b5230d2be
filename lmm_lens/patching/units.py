"""What is patched at once: the tokens of one span, one visual token of each row, or one head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import HookError, ScoreError, unknown
from ..hooks.points import check_site
from ..prompts.named_spans import named_spans
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows

GroupsLike = Mapping[str, Sequence[Sequence[int]] | Tensor]
"""Name to the positions of each batch row, or to Bool[batch, position]."""

RESIDUAL = ("span", "patch")
UNITS = {
    "resid_pre": RESIDUAL,
    "pattern": ("head",),
    "z": ("span", "patch", "head"),
    "attn_out": RESIDUAL,
    "mlp_out": RESIDUAL,
    "resid_post": RESIDUAL,
}
"""What each hook point can be patched by. z by span or patch means all heads at these rows."""


def check_units(site: str, by: str) -> None:
    """ScoreError or HookError for a hook point or a unit that does not exist, or two that do not go together."""
    check_site(site)
    known = UNITS["z"]
    if by not in known:
        raise ScoreError(unknown("unit to patch by", by, known))
    if by not in UNITS[site]:
        why = "it has no heads" if by == "head" else "its queries or its keys could be meant"
        raise ScoreError(
            f"{site} cannot be patched by {by}: {why}\n"
            f"  valid for {site}: {', '.join(UNITS[site])}; by {by}: {', '.join(s for s in UNITS if by in UNITS[s])}"
        )


@dataclass(frozen=True, eq=False)
class Units:
    """The units of an experiment, bound to a prompt.

    Attributes:
        by: "span", "patch" or "head".
        names: their names.
        masks: which rows each unit has; heads share one mask.
        label: the row scope of heads, empty for others.
    """

    by: str
    names: tuple[str, ...]
    masks: Bool[Tensor, "unit batch position"]
    label: str = ""

    @classmethod
    def of(
        cls, by: str, prompt: Prompt, n_heads: int, rows: RowsLike = "all", groups: GroupsLike | None = None
    ) -> Units:
        """The units of a prompt.

        Raises:
            ScoreError: `rows` or `groups` that this kind of unit does not take, rows that select nothing, groups that
                are not positions of the prompt, visual tokens that differ from row to row.
            HookError: no such row scope.
        """
        if by == "head":
            scope = bind_rows(rows, prompt).prompt_only()
            if not bool(scope.prompt.any()):
                raise ScoreError(
                    f"rows {scope.label!r} select no token of this prompt, so no head can be patched there"
                )
        elif not (isinstance(rows, str) and rows == "all"):
            raise ScoreError(f"rows={rows!r} is for by='head': by {by}, the {by} itself is the rows")
        if groups is not None and by != "span":
            raise ScoreError(f"groups={list(groups)} is for by='span', given by={by!r}")
        if by == "head":
            return cls(by, tuple(str(head) for head in range(n_heads)), scope.prompt[None], scope.label)
        found = _spans(prompt, groups or {}) if by == "span" else _patches(prompt)
        return cls(by, tuple(found), torch.stack(list(found.values())))

    @property
    def scope(self) -> Bool[Tensor, "batch position"]:
        """All rows of all units."""
        return self.masks.any(0)

    @property
    def reached(self) -> Bool[Tensor, "batch unit"]:
        """Whether a unit has any token in a batch row."""
        return self.masks.any(2).expand(len(self.names), -1).T

    def mask(self, unit: int) -> Bool[Tensor, "batch position"]:
        """The rows of one unit."""
        return self.masks[0 if self.by == "head" else unit]

    def rows_of(self, part: Sequence[int]) -> Bool[Tensor, "copy_and_row position"]:
        """The rows of some units, one copy of the batch a unit."""
        masks = self.masks.expand(len(self.names), -1, -1)[list(part)]
        return masks.flatten(0, 1)


def _spans(prompt: Prompt, groups: GroupsLike) -> dict[str, Tensor]:
    """The roles that occur, each picture for itself, a partition of the real tokens; then the user's groups."""
    found = named_spans(prompt)
    for name, given in groups.items():
        if name in found:
            raise ScoreError(f"a span is called {name!r} already: {', '.join(found)}\n  give your group another name")
        found[name] = group_mask(name, given, prompt)
    return found


AS_IN = "  as in groups={'object': [prompt.positions_in_box(box, row=i) for i, box in enumerate(boxes)]}"


def group_mask(
    name: str, given: Sequence[Sequence[int]] | Tensor, prompt: Prompt, as_in: str = AS_IN
) -> Bool[Tensor, "batch position"]:
    """The tokens of a user's group.

    Args:
        name: of the group.
        given: positions of each row, or a mask.
        prompt: the prompt, or what a vision tower ran.
        as_in: how to give one, for errors.

    Raises:
        ScoreError: it is no mask of this prompt and no positions of each row, or holds padding, or nothing.
        HookError: positions outside the prompt.
    """
    real = prompt.mask("all")
    if isinstance(given, Tensor) and given.dtype == torch.bool:
        if given.shape != real.shape:
            raise ScoreError(
                f"group {name!r}: a mask is Bool[batch, position] = {tuple(real.shape)}, given {tuple(given.shape)}"
            )
        mask = given.cpu()
    else:
        rows = given.tolist() if isinstance(given, Tensor) else given
        if len(rows) != prompt.n_rows or any(isinstance(row, int) for row in rows):
            raise ScoreError(
                f"group {name!r}: expected the positions of each of the {prompt.n_rows} rows, given {given!r}\n{as_in}"
            )
        mask = torch.zeros_like(real)
        for row, positions in enumerate(rows):
            outside = [p for p in positions if not 0 <= p < prompt.n_tokens]
            if outside:
                raise HookError(
                    f"group {name!r}: positions {outside} of row {row} lie outside the prompt, "
                    f"which has positions 0 to {prompt.n_tokens - 1}"
                )
            mask[row, list(positions)] = True
    if bool((mask & ~real).any()) or not bool(mask.any()):
        what = "holds padding" if bool(mask.any()) else "holds no token"
        raise ScoreError(f"group {name!r} {what}: it is made of the real tokens of each row")
    return mask


def _patches(prompt: Prompt) -> dict[str, Tensor]:
    """The i-th visual token of each row."""
    visual = prompt.mask("visual")
    layouts = [
        [(s.kind, s.source, s.frame, s.tile, s.grid, len(s)) for s in row if s.kind != "marker"] for row in prompt.spans
    ]
    for row, layout in enumerate(layouts):
        if not layout:
            raise ScoreError(f"row {row} has no visual tokens, so it has no patches\n  leave text-only pairs out")
        if layout != layouts[0]:
            raise ScoreError(
                f"by patch, the visual tokens of all rows must have the same layout: row 0 has {_said(prompt, 0)}, "
                f"row {row} has {_said(prompt, row)}\n  run pairs of one layout at a time, or by span"
            )
    number = visual.cumsum(1) - 1  # counts the visual tokens of a row
    return {str(i): visual & (number == i) for i in range(int(visual[0].sum()))}


def _said(prompt: Prompt, row: int) -> str:
    spans = [span for span in prompt.spans[row] if span.kind != "marker"]
    return " + ".join(f"{s.grid[0]} x {s.grid[1]}" if s.grid else f"{len(s)} tokens" for s in spans)
