"""Draws scenes with sprites.png: Noto Color Emoji, 64 x 64 pixels a tile, ten a row, in the order of NAMES.

What varies from picture to picture: the background's shade, noise (0 to .03 of full scale), and for each thing its size
(25 to 31 pixels), its place in its cell, and whether it is mirrored. A thing is drawn with randomness of its own, so a
picture in which one thing was exchanged equals the first everywhere else.
"""

import random
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from lmm_lens.bundled.emoji.scenes import BACKGROUNDS, CELL, NAMES, SIZE, Scene
from lmm_lens.bundled.worlds import GRID

if TYPE_CHECKING:
    from PIL import Image

SPRITES = Path(__file__).parent / "sprites.png"
TILE = 64  # pixels a side
TILES_PER_ROW = 10


@cache
def sprite(name: str) -> "Image.Image":
    """One emoji, RGBA, cut to what is drawn of it."""
    from PIL import Image

    row, column = divmod(NAMES.index(name), TILES_PER_ROW)
    with Image.open(SPRITES) as sheet:
        box = (column * TILE, row * TILE, (column + 1) * TILE, (row + 1) * TILE)
        tile = sheet.convert("RGBA").crop(box)
    return tile.crop(tile.getbbox())


@lru_cache(4096)
def _scaled(name: str, size: int, mirrored: bool) -> np.ndarray:
    """The sprite, [height, width, 4] in 0..1, its longer side `size` pixels."""
    from PIL import Image

    image = sprite(name).copy()
    image.thumbnail((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32) / 255
    return pixels[:, ::-1] if mirrored else pixels


def render(scene: Scene, seed: int) -> UInt8[np.ndarray, "96 96 3"]:
    """The picture of a scene; the same seed draws the same background, noise, and things where they are the same."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    color = np.array(BACKGROUNDS[scene.background], np.float32) / 255
    picture = np.ones((SIZE, SIZE, 3), np.float32) * (color + noise.normal(0, 0.02, 3)).astype(np.float32)
    for thing in scene.things:
        own = random.Random(f"{seed} {thing.cell}")
        drawn = _scaled(thing.name, own.randint(25, 31), own.random() < 0.5)
        height, width = drawn.shape[:2]
        row, column = divmod(thing.cell, GRID)
        y, x = row * CELL + own.randint(0, CELL - height), column * CELL + own.randint(0, CELL - width)
        under, alpha = picture[y : y + height, x : x + width], drawn[..., 3:]
        picture[y : y + height, x : x + width] = alpha * drawn[..., :3] + (1 - alpha) * under
    picture += rng.uniform(0, 0.03) * noise.standard_normal(picture.shape, np.float32)
    pixels: np.ndarray = np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)
    return pixels


def picture(scene: Scene, seed: int) -> "Image.Image":
    """One scene as a 96 x 96 RGB picture."""
    from PIL import Image

    return Image.fromarray(render(scene, seed))


def blank(seed: int) -> "Image.Image":
    """A picture of nothing: a white background and noise."""
    return picture(Scene(()), seed)
