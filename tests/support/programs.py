"""Edits of the attention pattern, written twice: as interventions, and as loops over single rows for the reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lmm_lens import Intervention
from lmm_lens.core.taps import Tap
from lmm_lens.prompts.rows import bind_rows
from tests.support.models import IMAGE, breaks, patches


class Step(NamedTuple):
    """One edit of a program: what, in which heads (None is all), in which rows."""

    kind: str
    heads: tuple[int, ...] | None
    rows: str


PROGRAMS: dict[str, list[Step]] = {
    "one edit": [Step("away", None, "after_image")],
    "rows within rows": [Step("away", None, "all"), Step("sharpen", None, "after_image")],
    "rows within rows, the other way": [Step("sharpen", None, "last"), Step("away", None, "all")],
    "overlapping heads": [Step("away", (0, 2), "after_image"), Step("sharpen", (2, 1), "after_image")],
    "overlapping heads and rows": [Step("sharpen", (3, 0), "last"), Step("away", (0, 1), "after_image")],
    "nothing shared": [Step("away", (0,), "last"), Step("sharpen", (3, 1), "image")],
    "the same twice": [Step("sharpen", (1,), "after_image"), Step("sharpen", (1,), "after_image")],
}


# ---------------------------------------------------------------------- as interventions


def look_away(pattern: Tensor, visual: Tensor) -> Tensor:
    """Half of what the image receives goes to the other keys, in proportion to what they have."""
    seen = visual[:, None, None].to(pattern.dtype)
    mass = (pattern * seen).sum(-1, keepdim=True)
    more = torch.where(mass < 0.999, (1 - mass / 2) / (1 - mass), 1.0)
    less = torch.where(mass < 0.999, 0.5, 1.0)
    return pattern * (seen * less + (1 - seen) * more)


def sharpen(pattern: Tensor) -> Tensor:
    squared = pattern**2
    return squared / squared.sum(-1, keepdim=True)


@dataclass(frozen=True)
class EditByStep(Intervention):
    """One step of a program, in the given layers."""

    step: Step
    layers: tuple[int, ...]

    def taps(self, prompt, shape):
        visual = prompt.mask("visual")

        def run(pattern, context):
            if self.step.kind == "sharpen":
                return sharpen(pattern)
            return look_away(pattern, context.columns(visual, pattern.shape[-1]))

        rows = bind_rows(self.step.rows, prompt)
        return [Tap("pattern", layer, rows, run, self.step.heads, edits=True) for layer in self.layers]


def interventions(program: Sequence[Step], layers: Sequence[int]) -> list[Intervention]:
    return [EditByStep(step, tuple(layers)) for step in program]


# ---------------------------------------------------------------------- as loops


def reference_edit(
    program: Sequence[Step], layers: Sequence[int], ids: Tensor, real: Tensor
) -> Callable[[int, Tensor, int], Tensor]:
    """The same edits for `Reference.editing(pattern=...)`, one row at a time.

    Args:
        ids: token ids of the prompt [batch, position].
        real: which are not padding.
    """
    n_prompt = ids.shape[1]
    image_tokens = [{i for i in range(n_prompt) if ids[row, i] == IMAGE} for row in range(len(ids))]
    row_breaks = [breaks(ids[row].tolist()) for row in range(len(ids))]
    images = [set(patches(ids[row].tolist())) for row in range(len(ids))]
    tokens = [{i for i in range(n_prompt) if real[row, i]} for row in range(len(ids))]

    def belongs(scope: str, row: int, position: int) -> bool:
        if position >= n_prompt:
            return scope in ("all", "after_image")
        return (
            position in tokens[row]
            and {
                "all": True,
                "after_image": position > max(image_tokens[row]) and position not in row_breaks[row],
                "last": position == max(tokens[row]),
                "image": position in images[row],
            }[scope]
        )

    def edit(layer: int, pattern: Tensor, first: int) -> Tensor:
        if layer not in layers:
            return pattern
        batch, n_heads, n_rows, n_keys = pattern.shape
        # a sliding layer holds the last keys, a static cache has room for keys to come
        oldest = max(0, first + n_rows - n_keys)
        new = pattern.clone()
        for step in program:
            for b in range(batch):
                visual = torch.tensor([k in images[b] for k in range(oldest, oldest + n_keys)])
                for i in range(n_rows):
                    if not belongs(step.rows, b, first + i):
                        continue
                    for h in range(n_heads) if step.heads is None else step.heads:
                        new[b, h, i] = one_row(step.kind, new[b, h, i].clone(), visual)
        return new

    return edit


def one_row(kind: str, row: Tensor, visual: Tensor) -> Tensor:
    if kind == "sharpen":
        return row * row / (row * row).sum()
    on_image, elsewhere = row[visual].sum(), row[~visual].sum()
    if on_image >= 0.999:
        return row
    freed = on_image / 2
    return torch.where(visual, row / 2, row + freed * row / elsewhere)
