"""Draws scenes: every shape as a soft-edged signed distance field, on a shaded background, with noise.

What varies from picture to picture: background colour and gradient, contrast (.6 to 1), noise (0 to .08 of
full scale), and for each thing its position (one pixel), size, rotation (ten degrees) and shade.
All random numbers are drawn whatever `noise` and `contrast` say, so the same seed gives the same picture
but for what was asked to change.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmm_lens.bundled.shapes.scenes import CELL, COLORS, SHAPES, SIZE, Scene
from lmm_lens.bundled.worlds import GRID

if TYPE_CHECKING:
    from PIL import Image

RGB = np.array(
    [
        [0.90, 0.15, 0.15],  # red
        [0.15, 0.75, 0.20],  # green
        [0.20, 0.30, 0.95],  # blue
        [0.95, 0.85, 0.15],  # yellow
        [0.65, 0.20, 0.80],  # purple
        [0.20, 0.85, 0.90],  # cyan
    ],
    np.float32,
)
EDGE_SHARPNESS = 3.0  # per pixel


def _star(rho: np.ndarray, angle: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Distance to a five-pointed star, along the ray from its centre; straight edges from tip to notch."""
    tip, notch, half_turn = 1.08, 0.45, math.pi / 5
    from_tip = half_turn - np.abs((angle + half_turn) % (2 * half_turn) - half_turn)
    edge = tip * notch * math.sin(half_turn) / (notch * np.sin(from_tip) + tip * np.sin(half_turn - from_tip))
    distance: np.ndarray = rho - edge * radius
    return distance


def _coverage(shape: np.ndarray, center: np.ndarray, radius: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """How much of each pixel a shape covers.

    shape [thing] int, center [thing, 2] (x, y), radius [thing] pixels, rotation [thing] radians
    -> [thing, CELL, CELL] in 0..1
    """
    pixel = np.arange(CELL, dtype=np.float32) + 0.5
    dx = pixel[None, None, :] - center[:, 0, None, None]
    dy = pixel[None, :, None] - center[:, 1, None, None]
    cos, sin = np.cos(rotation)[:, None, None], np.sin(rotation)[:, None, None]
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    r = radius[:, None, None]
    rho = np.hypot(x, y)
    across, down = np.abs(x), np.abs(y)
    distance = np.stack(  # [shape, thing, CELL, CELL], negative inside; the order of SHAPES
        [
            rho - 0.92 * r,
            np.maximum(across, down) - 0.80 * r,
            np.maximum(y - 0.55 * r, 0.87 * across - 0.5 * (y + r)),
            _star(rho, np.arctan2(x, -y), r),
            np.minimum(
                np.maximum(across - 0.30 * r, down - r),
                np.maximum(down - 0.30 * r, across - r),
            ),
        ]
    )
    own = distance[shape, np.arange(len(shape))]
    covered: np.ndarray = 1 / (1 + np.exp(np.clip(EDGE_SHARPNESS * own, -30, 30)))
    return covered


def _background(n: int, rng: np.random.Generator) -> np.ndarray:
    """Dark, slightly coloured, with a linear gradient: [picture, SIZE, SIZE, 3] in 0..1."""
    gray = rng.uniform(0.08, 0.40, (n, 1, 1, 1))
    tint = rng.uniform(-0.04, 0.04, (n, 1, 1, 3))
    slope_x, slope_y = rng.uniform(-0.08, 0.08, (2, n, 1, 1, 1))
    ramp = np.linspace(-1, 1, SIZE)
    shade = slope_x * ramp[None, None, :, None] + slope_y * ramp[None, :, None, None]
    drawn: np.ndarray = (gray + tint + shade).astype(np.float32)
    return drawn


def render(
    scenes: Sequence[Scene],
    rng: np.random.Generator,
    noise: float | None = None,
    contrast: float | None = None,
) -> np.ndarray:
    """Draw scenes: uint8 [scene, SIZE, SIZE, 3].

    noise: standard deviation of the pixel noise, of full scale; None draws it from 0 to .08.
    contrast: opacity of the things; None draws it from .6 to 1.
    """
    n = len(scenes)
    image = _background(n, rng)
    drawn_contrast = rng.uniform(0.6, 1.0, n)
    drawn_noise = rng.uniform(0.0, 0.08, n)
    opacity = drawn_contrast if contrast is None else np.full(n, contrast)
    spread = drawn_noise if noise is None else np.full(n, noise)

    owner = np.array([i for i, scene in enumerate(scenes) for _ in scene.things], int)  # [thing]
    things = [thing for scene in scenes for thing in scene.things]
    count = len(things)
    center = CELL / 2 + rng.uniform(-1, 1, (count, 2)).astype(np.float32)
    radius = rng.uniform(5.6, 7.0, count).astype(np.float32)
    rotation = rng.uniform(-0.17, 0.17, count).astype(np.float32)
    shade = rng.uniform(-0.06, 0.06, (count, 3)).astype(np.float32)
    if count:
        cell = np.array([thing.cell for thing in things])
        shape = np.array([SHAPES.index(thing.shape) for thing in things])
        color = RGB[[COLORS.index(thing.color) for thing in things]] + shade
        alpha = _coverage(shape, center, radius, rotation) * opacity[owner, None, None]
        cells = image.reshape(n, GRID, CELL, GRID, CELL, 3)  # a view
        under = cells[owner, cell // GRID, :, cell % GRID]  # [thing, CELL, CELL, 3]
        over = under + alpha[..., None] * (color[:, None, None] - under)
        cells[owner, cell // GRID, :, cell % GRID] = over

    image += spread[:, None, None, None] * rng.standard_normal(image.shape, np.float32)
    pixels: np.ndarray = np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
    return pixels


def picture(scene: Scene, seed: int, noise: float | None = None, contrast: float | None = None) -> "Image.Image":
    """One scene as a 48 x 48 RGB picture; the same seed draws the same background, positions and noise."""
    from PIL import Image

    return Image.fromarray(render([scene], np.random.default_rng(seed), noise, contrast)[0])


def blank(seed: int) -> "Image.Image":
    """A picture of nothing: background and noise only."""
    return picture(Scene(()), seed)
