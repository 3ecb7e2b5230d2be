"""The vision tower of a lens, as people ask about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..adapters.towers import Tower
from ..hooks.points import ModelShape
from ..prompts.prompt import Prompt
from .patch_map import PatchMap, patch_map

if TYPE_CHECKING:
    from .lens import Lens


@dataclass(frozen=True, eq=False)
class VisionTower:
    """What is in a vision tower.

        lens.run(prompt, [AblateHeads([(3, 1)], part="vision")], read=["vision.resid_post"])

    Attributes:
        lens: of the model.
        tower: its modules.
    """

    lens: Lens
    tower: Tower

    def patches(self, prompt: Prompt) -> PatchMap:
        """Which tokens of the tower each visual token of a prompt is made of, found by the gradient."""
        return patch_map(self.lens, prompt)

    @property
    def shape(self) -> ModelShape:
        """Layers, heads of each and head sizes."""
        return ModelShape.of_tower(self.tower)

    @property
    def n_layers(self) -> int:
        """Its layers, of all stages."""
        return len(self.tower.layers)

    @property
    def n_used(self) -> int:
        """How many of them the model's features come through; what later ones do reaches no answer."""
        return self.tower.n_used

    @property
    def n_heads(self) -> int:
        """Heads a layer."""
        return max(layer.n_heads for layer in self.tower.layers)

    @property
    def d_head(self) -> int:
        """Size of one head's output."""
        return max(layer.d_head for layer in self.tower.layers)

    @property
    def d_model(self) -> int:
        """Width of its residual stream."""
        return self.tower.d_model

    def __repr__(self) -> str:
        tokens = [f"{n} {what} token{'s' * (n > 1)}" for n, what in self._others if n]
        return (
            f"Vision tower {self.tower.name}: {self.n_layers} layers x {self.n_heads} heads of {self.d_head}, "
            f"{self.n_used} used" + "".join(f", {each} a row" for each in tokens)
        )

    @property
    def _others(self) -> tuple[tuple[int, str], ...]:
        return (self.tower.n_class, "class"), (self.tower.n_registers, "register")
