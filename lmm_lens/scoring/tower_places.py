"""Where the tokens of a vision tower lie: with the visual tokens that they are part of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import ScoreError
from ..figures.canvas import canvases_of
from ..lens.patch_map import PatchMap
from ..prompts.prompt import Prompt

if TYPE_CHECKING:
    from ..lens import Lens


@dataclass(frozen=True, eq=False)
class TowerPlaces:
    """The places of one prompt's tower tokens.

    Attributes:
        prompt: of one row.
        patches: which of them each visual token is made of.
        centres: x and y of the middle of the visual token that each is part of, in diagonals of its picture; NaN for
            class and register tokens, for padding, and where a token is part of several.
    """

    prompt: Prompt
    patches: PatchMap
    centres: Float[Tensor, "tower_row token 2"]

    @classmethod
    def of(cls, lens: Lens, prompt: Prompt, patches: PatchMap | None = None) -> TowerPlaces:
        """Those of a prompt, whose patches may be known already.

        Raises:
            ScoreError: the visual tokens lie nowhere that is known, or mix all patches.
        """
        canvases = canvases_of(prompt, 0)
        patches = lens.vision.patches(prompt) if patches is None else patches
        if not canvases or patches.is_mixed:
            raise ScoreError(
                f"it is not known where the patches of {type(lens.model).__name__} lie in its pictures, so neither "
                "distances nor boxes mean anything\n  score its heads by entropy, or by the mass on other tokens"
            )
        centre = torch.full((prompt.n_tokens, 2), torch.nan)
        for canvas in canvases:
            whole = canvas.frame or canvas.extent
            diagonal = ((whole.x1 - whole.x0) ** 2 + (whole.y1 - whole.y0) ** 2) ** 0.5
            for position in canvas.positions:
                box = canvas.box(position)
                centre[position] = torch.tensor([box.x0 + box.x1, box.y0 + box.y1]) / 2 / diagonal
        visual = prompt.mask("visual")[0].nonzero().flatten()
        owners = patches.made_of.sum(0)
        owner = visual[patches.made_of.int().argmax(0)]
        return cls(prompt, patches, centre[owner].masked_fill((owners != 1)[..., None], torch.nan))

    def under(self, region: Bool[Tensor, " position"]) -> Bool[Tensor, "tower_row token"]:
        """The tokens of the tower that visual tokens of a region are made of."""
        return self.patches.made_of[region[self.prompt.mask("visual")[0]]].any(0)
