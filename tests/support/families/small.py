"""Enters families whose tiny model is made of their own defaults, with the real processor."""

from collections.abc import Callable
from typing import Any

import transformers as hf

from tests.support.classes.shrunk import tiny_model
from tests.support.classes.table import SETTINGS
from tests.support.families.table import Built, family
from tests.support.tokenizer import byte_tokenizer

Make = Callable[[str, Any], tuple[dict[str, Any], Any]]
OF_IMAGES = ("image_token_id", "image_token_index", "image_patch_id")
OF_VIDEOS = ("video_token_id", "video_token_index")


def small(
    name: str, *specials: str, image: str, video: str = "", variant: str = "", **named: str
) -> Callable[[Make], Make]:
    """Enters a family; the function below gives settings of the model and the processor, of name and tokenizer.

    Args:
        specials: further tokens.
        image, video: the placeholders.
        variant: a word that keeps it out of the tests of families, for what the generic adapter serves.
        named: tokens that the tokenizer has to know by name.
    """

    def enter(make: Make) -> Make:
        def build() -> Built:
            tokens = byte_tokenizer(*dict.fromkeys((image, *specials, *([video] if video else []))), **named)
            own, processor = make(name, tokens)
            ids = {**dict.fromkeys(OF_IMAGES, image), **dict.fromkeys(OF_VIDEOS, video or image)}
            known = hf.CONFIG_MAPPING[name]().to_dict()
            given = {setting: tokens.convert_tokens_to_ids(token) for setting, token in ids.items() if setting in known}
            return tiny_model(name, **{**SETTINGS[name], **given, **own}), processor

        family(f"{name} {variant}" if variant else name)(build)
        return make

    return enter
