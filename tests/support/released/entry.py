"""What is known of a released checkpoint, and a tiny model of its numbers behind its real processor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf

from lmm_lens import Lens
from tests.support.classes.shrunk import tiny_model
from tests.support.classes.table import SETTINGS
from tests.support.tokenizer import byte_tokenizer

Grid = tuple[int, int]
Size = tuple[int, int]
WIDE, BROAD, TINY = (640, 480), (1200, 300), (28, 28)
IMAGE_IDS = ("image_token_id", "image_token_index", "image_patch_id")


@dataclass(frozen=True, eq=False)
class Released:
    """One checkpoint.

    Attributes:
        model_type: of its configuration.
        config: its numbers that say what a picture becomes.
        images, preprocessor: its image processor and the settings of that.
        processor, processing: its processor and the settings of that.
        seen: what its authors' rule makes of a picture: (width, height) -> the grids of its tiles, (rows, columns), in
            the order of the sequence. Worked out by hand for most; those of command-a-vision, Ovis2, Perception-LM,
            Molmo2 and MiniCPM are what was seen, and hold it.
        image: the placeholder.
        specials: further tokens, and `named` those that the tokenizer has to know by name.
        films: its processor of videos, if it must have one.
        ids: further settings of the configuration that are tokens' ids, by the tokens.
    """

    model_type: str
    config: Mapping[str, Any]
    images: type
    preprocessor: Mapping[str, Any]
    processor: type
    processing: Mapping[str, Any]
    seen: Mapping[Size, tuple[Grid, ...]]
    image: str = "<image>"
    specials: tuple[str, ...] = ()
    named: Mapping[str, str] = field(default_factory=dict)
    films: type | None = None
    ids: Mapping[str, tuple[str, ...] | str] = field(default_factory=dict)

    def lens(self) -> Lens:
        """A lens on a tiny model of these numbers."""
        tokens = byte_tokenizer(*dict.fromkeys((self.image, *self.specials)), **self.named)
        known = hf.CONFIG_MAPPING[self.model_type]().to_dict()
        ids = {**dict.fromkeys(IMAGE_IDS, self.image), **{f"{name}_id": token for name, token in self.named.items()}}
        ids |= {name: [*token] if isinstance(token, tuple) else token for name, token in self.ids.items()}
        given = {name: tokens.convert_tokens_to_ids(token) for name, token in ids.items() if name in known}
        parts = {"image_processor": self.images(**self.preprocessor), "tokenizer": tokens}
        parts |= {"video_processor": self.films()} if self.films else {}
        processor = self.processor(**parts, **self.processing)
        processor.chat_template = None
        own = {**SETTINGS.get(self.model_type, {}), **given, **self.config}
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            model = tiny_model(self.model_type, **own)
            for weight in model.parameters():  # a fresh projector of zeros would hide the picture
                if weight.ndim > 1 and not weight.any():
                    weight.normal_(std=0.02)
        return Lens(model, processor)


def edge(pixels: int) -> dict[str, int]:
    """A square, as settings have it."""
    return {"height": pixels, "width": pixels}


def middle(pixels: int) -> dict[str, Any]:
    """A square of the middle, as settings have it."""
    return {"size": {"shortest_edge": pixels}, "crop_size": edge(pixels)}


def everywhere(*grids: Grid) -> dict[Size, tuple[Grid, ...]]:
    """Any picture becomes this."""
    return dict.fromkeys((WIDE, BROAD), grids)


def siglip(size: int, patch: int = 14, **own: Any) -> dict[str, Any]:
    """The numbers of a SigLIP tower."""
    return {
        "model_type": "siglip_vision_model",
        "image_size": size,
        "patch_size": patch,
        "vision_use_head": False,
        **own,
    }
