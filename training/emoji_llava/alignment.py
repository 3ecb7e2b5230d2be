"""The alignment: the patches of a thing point to the input embedding of its name, without the language model.

A frozen language model reads patches that point to the embedding of a name and to nothing else beside it; with the
words of row and column added to it, even at a quarter of their size, it no longer says the name.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from lmm_lens.bundled.emoji.render import render
from lmm_lens.bundled.emoji.scenes import BACKGROUNDS, NAMES, Scene, random_scene
from lmm_lens.bundled.worlds import N_PATCHES, cell_patches

SHARPNESS = 20.0
BACKGROUND_WEIGHT = 0.3


class Aligned(NamedTuple):
    """Losses, and the share of the things' patches whose nearest name is right."""

    contrast: Tensor  # cross-entropy of the cosines with all names and colours
    regression: Tensor  # squared distance from the name's embedding, in units of the embeddings' variance
    right: Tensor


class Alignment:
    """The embeddings that patches are to point to, [word, d_model], names first and then colours."""

    def __init__(self, table: Float[Tensor, "vocab d_model"], tokenizer: Any) -> None:
        words = [*NAMES, *BACKGROUNDS]
        ids = [tokenizer.encode(" " + word, add_special_tokens=False) for word in words]
        long = [word for word, tokens in zip(words, ids, strict=True) if len(tokens) != 1]
        if long:
            raise ValueError(f"words of one token each are needed; {', '.join(long)} have more")
        table = table.detach().float()
        self.words = {word: i for i, word in enumerate(words)}
        self.embedded = table[[tokens[0] for tokens in ids]]
        self.mean = table.mean(0)
        self.variance = (self.embedded - self.mean).pow(2).mean()

    def labels(self, scenes: Sequence[Scene]) -> Int[Tensor, "scene patch"]:
        """Which word each patch is to point to."""
        labels = torch.empty(len(scenes), N_PATCHES, dtype=torch.long)
        for row, scene in enumerate(scenes):
            labels[row] = self.words[scene.background]
            for thing in scene.things:
                labels[row, list(cell_patches(thing.cell))] = self.words[thing.name]
        return labels

    def loss(self, visual: Float[Tensor, "scene patch d_model"], labels: Int[Tensor, "scene patch"]) -> Aligned:
        visual = visual.float()
        regression = (visual - self.embedded[labels]).pow(2).mean() / self.variance
        logits = self._likeness(visual)
        thing = labels < len(NAMES)
        contrast = functional.cross_entropy(logits[thing], labels[thing])
        contrast = contrast + BACKGROUND_WEIGHT * functional.cross_entropy(logits[~thing], labels[~thing])
        right = (logits.argmax(-1) == labels)[thing].float().mean()
        return Aligned(contrast, regression, right)

    def nearest(self, visual: Float[Tensor, "scene patch d_model"]) -> Int[Tensor, "scene patch"]:
        """The word whose embedding each patch points to most nearly, as in `labels`."""
        return self._likeness(visual.float()).argmax(-1)

    def _likeness(self, visual: Float[Tensor, "scene patch d_model"]) -> Float[Tensor, "scene patch word"]:
        """Cosines with all words, from the mean of the language model's embeddings, times `SHARPNESS`."""
        directions = functional.normalize(self.embedded - self.mean, dim=-1)
        return SHARPNESS * functional.normalize(visual - self.mean, dim=-1) @ directions.T


def to_pixels(pictures: Sequence[np.ndarray]) -> Float[Tensor, "picture 3 height width"]:
    """What the image processor does: uint8 [96, 96, 3] each to -1..1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def drawn(scenes: Sequence[Scene], rng: random.Random) -> Float[Tensor, "picture 3 height width"]:
    return to_pixels([render(scene, rng.randrange(2**31)) for scene in scenes])


def pictures_of_everything(rng: random.Random, n: int, things: tuple[int, int]) -> tuple[list[Scene], Tensor]:
    """Scenes with all things, those that the language model is never shown too, and their pixels."""
    scenes = [random_scene(rng, things, "train", NAMES) for _ in range(n)]
    return scenes, drawn(scenes, rng)


def look(model: Any, pixels: Float[Tensor, "picture 3 height width"]) -> Float[Tensor, "picture patch d_model"]:
    """The visual tokens as the language model gets them."""
    hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    visual: Tensor = model.model.multi_modal_projector(hidden)
    return visual
