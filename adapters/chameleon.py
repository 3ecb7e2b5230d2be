"""Chameleon, when it reads pictures: one square between begin and end, a token of a codebook for each of its cells.

The encoder's convolutions and its attention look beyond a cell: a token's box is where it lies.
"""

from .square import Square


class Chameleon(Square):
    """Chameleon 7B and 30B."""

    family = "chameleon"
    model_types = ("chameleon",)
    has_tower_heads = False

    @property
    def marker_ids(self) -> frozenset[int]:
        return self.ids_of(*(getattr(self.processor, name, "") for name in ("image_start_token", "image_end_token")))

    @property
    def edge(self) -> int:
        return int(self.config.vq_config.resolution)

    @property
    def cell(self) -> int:
        return int(2 ** (len(self.config.vq_config.channel_multiplier) - 1))
