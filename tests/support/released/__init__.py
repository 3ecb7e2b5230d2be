"""Released checkpoints by their numbers: what pictures become, on tiny models behind the real processors.

Each entry holds the numbers of the checkpoint's configs that say what a picture becomes; `sources` says where each was
confirmed. Widths and depths are those of a tiny model.
"""

from functools import cache

from lmm_lens import Lens
from tests.support.released.entry import Released
from tests.support.released.grids import GRIDS
from tests.support.released.own_ways import OWN_WAYS
from tests.support.released.sources import SOURCES
from tests.support.released.squares import SQUARES
from tests.support.released.tiles import TILES

RELEASED: dict[str, Released] = {**SQUARES, **GRIDS, **TILES, **OWN_WAYS}


@cache
def lens_of(name: str) -> Lens:
    """The lens of a checkpoint's numbers."""
    return RELEASED[name].lens()


__all__ = ["GRIDS", "RELEASED", "SOURCES", "SQUARES", "Released", "lens_of"]
