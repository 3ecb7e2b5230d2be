"""From visual tokens of the decoder to the tower's patches they are made of, and back: found by the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.bits import told_apart
from ..core.taps import Tap, TapContext
from ..errors import HookError
from ..hooks.heads import VISION
from ..hooks.points import ModelShape, Read
from ..interventions.base import Intervention
from ..prompts.prompt import Prompt
from ..prompts.rows import bind_rows

if TYPE_CHECKING:
    from .lens import Lens


@dataclass(frozen=True, eq=False)
class PatchMap:
    """Which tokens of the vision tower each visual token of the decoder is made of.

    Between them stands a projector alone: it takes a patch each, merges two by two, shuffles pixels, pools, or, as a
    Q-former does, mixes all of them.

    Attributes:
        prompt: the prompt.
        made_of: Bool[visual, tower_row, token], of every visual token, batch row by batch row in order of position.
    """

    prompt: Prompt
    made_of: Bool[Tensor, "visual tower_row token"]

    def of(self, position: int, row: int = 0) -> list[tuple[int, int]]:
        """The (row, token)s of the tower that the visual token at a position of a batch row is made of.

        Raises:
            HookError: there is no such row, or the position holds no visual token.
        """
        visual = self.prompt.mask("visual")
        _check_place("batch row", row, self.prompt.n_rows)
        if not 0 <= position < self.prompt.n_tokens or not bool(visual[row, position]):
            raise HookError(f"position {position} of batch row {row} holds no visual token")
        number = int(visual[:row].sum()) + int(visual[row, :position].sum())
        return [(int(a), int(b)) for a, b in self.made_of[number].nonzero()]

    def seen_from(self, token: int, tower_row: int = 0) -> list[tuple[int, int]]:
        """The (batch row, position)s of the visual tokens that a token of a row of the tower is part of.

        Raises:
            HookError: the tower ran no such row, or its rows have no such token.
        """
        n_rows, n_tokens = self.made_of.shape[1:]
        _check_place("row of the tower", tower_row, n_rows)
        _check_place("token of the tower", token, n_tokens)
        where = self.prompt.mask("visual").nonzero()
        return [(int(a), int(b)) for a, b in where[self.made_of[:, tower_row, token]]]

    def in_box(
        self, box: tuple[float, float, float, float], image: int = 0, row: int = 0
    ) -> Bool[Tensor, "tower_row token"]:
        """The tokens of the tower that the visual tokens under a box of a picture are made of.

        Args:
            box: (x0, y0, x1, y1) in pixels.
            image, row: which picture of which batch row.

        Raises:
            HookError: every visual token is made of all patches, so that none lies under a box.
            PromptError: there is no such picture, its layout is not known, or the box lies outside.
        """
        if self.is_mixed:
            raise HookError("each visual token is made of all patches of the tower, so that none lies under a box")
        wanted = torch.zeros_like(self.prompt.mask("visual"))
        wanted[row, list(self.prompt.positions_in_box(box, image, row))] = True
        return self.made_of[wanted[self.prompt.mask("visual")]].any(0)

    @property
    def is_mixed(self) -> bool:
        """Whether every visual token is made of all the patches that any is: no place is left."""
        used = self.made_of.any(0)
        return bool((self.made_of == used).all()) and int(used.sum()) > 1 and len(self.made_of) > 1

    def __repr__(self) -> str:
        n = self.made_of.flatten(1).sum(1)
        each = "all mixed" if self.is_mixed else f"{int(n.min())} to {int(n.max())} each"
        rows, tokens = self.made_of.shape[1:]
        return f"PatchMap: {len(self.made_of)} visual tokens of {rows} x {tokens} tokens of the tower, {each}"


@dataclass(frozen=True, eq=False)
class _Probe(Intervention):
    """Adds a leaf of zeros to what leaves a layer of the tower."""

    layer: int
    leaves: list[Tensor]
    part: str = VISION

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        def add(x: Tensor, context: TapContext) -> Tensor:
            leaf = torch.zeros_like(x).requires_grad_()
            self.leaves.append(leaf)
            return x + leaf

        return [Tap("resid_post", self.layer, bind_rows("all", prompt), add, edits=True)]


def patch_map(lens: Lens, prompt: Prompt) -> PatchMap:
    """Find which patches each visual token is made of: those on which it has a gradient.

    One forward, and a few backward passes through the projector; one for each visual token where tokens share patches.
    Of the model as it is, also inside an `apply` block: an edit that writes over visual tokens would cut them off from
    the tower.

    Args:
        lens: the model; not on a server.
        prompt: with pictures.

    Raises:
        ModelError: the model has no tower with heads.
        HookError: the tower does not run on the prompt, or what it gives enters by cross-attention.
    """
    leaves: list[Tensor] = []
    entering = Read("resid_pre", layers=[0], rows="visual")
    with torch.enable_grad(), lens.nothing_applied():
        run = lens.run(prompt, [_Probe(lens.vision.n_used - 1, leaves)], [entering], logits="last", grad=True)
    features = run.reads["resid_pre", 0]
    (leaf,) = leaves
    draw = torch.Generator().manual_seed(0)
    direction = torch.randn(features.shape[-1], generator=draw).to(features)  # no cancelling by chance
    sums = (features @ direction)[(run.positions["resid_pre"] >= 0).to(features.device)]
    made_of = _made_of(sums, leaf)
    if not bool(made_of.any()):
        raise HookError(
            f"the visual tokens of {type(lens.model).__name__} take nothing from its vision tower: layers of "
            "cross-attention read it\n  its patches are the keys of those layers"
        )
    return PatchMap(prompt, made_of)


def _made_of(sums: Float[Tensor, " visual"], leaf: Tensor) -> Bool[Tensor, "visual tower_row token"]:
    """Which tokens of the tower each sum depends on."""
    ((number, shared),) = told_apart(sums, [leaf])
    if not bool(shared.any()):
        each = number.amax(-1)  # of a patch whose features do not all count
        alone = bool(((number == each[..., None]) | (number < 0)).all())
        if alone:
            return torch.stack([each == visual for visual in range(len(sums))])
    found = []
    for token in sums:
        (gradient,) = torch.autograd.grad(token, leaf, retain_graph=True, materialize_grads=True, allow_unused=True)
        found.append((gradient != 0).any(-1).cpu())
    return torch.stack(found)


def _check_place(what: str, number: int, n: int) -> None:
    """HookError for a number that counts nothing."""
    if not 0 <= number < n:
        raise HookError(f"{what} {number} is out of range: there are 0 to {n - 1}")
