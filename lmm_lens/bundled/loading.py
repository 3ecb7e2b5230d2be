"""How the models in the box are opened: pictures cut to their tower, and no progress bar for a few megabytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def llava_processor(tokenizer: Any, size: int, patch: int, image_token: str, chat_template: str) -> Any:
    """A LlavaProcessor whose pictures come out as [image, 3, size, size] in -1..1, in patches of so many pixels."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image_processor = CLIPImageProcessorPil(  # the variant that needs no torchvision
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        image_token=image_token,
        num_additional_image_tokens=1,  # the tower's class token, which "default" then drops
        chat_template=chat_template,
    )


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Inside, transformers shows none."""
    from transformers.utils import logging

    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()
