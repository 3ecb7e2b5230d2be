"""BLIP-2 and InstructBLIP: a Q-Former asks every picture the same few questions; their answers are the visual tokens.

A query looks at the whole picture, so that there is no grid. The processor itself puts the tokens at the start of every
row, before everything else, and so takes exactly one picture a row and no slot in the text.
"""

from __future__ import annotations

from typing import Any

from lmm_lens.errors import ModelError, PromptError
from lmm_lens.prompts.spans import Span

from .base import Adapter
from .row import BatchRow, TokenRun
from .walker import Layer, find_layers


class Blip2(Adapter):
    """BLIP-2 on a decoder (OPT)."""

    family = "blip-2"
    model_types = ("blip-2",)
    images_in = ("pixel_values",)

    @property
    def image_token_id(self) -> int | None:
        found = super().image_token_id
        if found is None:
            raise ModelError(
                f"the config of this {type(self.model).__name__} names no image token, as those of old checkpoints\n"
                "  set model.config.image_token_index to the id of '<image>' in the tokenizer, give it a row of the\n"
                "  embeddings, and set processor.num_query_tokens to model.config.num_query_tokens"
            )
        return found

    @property
    def image_slot(self) -> str | None:
        return None  # the processor marks the place itself

    def find_layers(self) -> tuple[Layer, ...]:
        if self.config.text_config.is_encoder_decoder:
            raise ModelError(
                f"{type(self.model).__name__} on {self.config.text_config.model_type} is an encoder with a decoder\n"
                "  expected a decoder alone, such as OPT or LLaMA: heads and rows mean other things in the two parts"
            )
        return find_layers(self.model.get_decoder())

    def arranged(self, pictures: list[list[Any]]) -> Any:
        if any(len(row) != 1 for row in pictures):
            raise PromptError(
                f"{self.family} takes exactly one picture a row, given {[len(row) for row in pictures]}\n"
                "  its processor puts the tokens of one picture before every row of a batch\n"
                "  ask texts without pictures in a prompt of their own"
            )
        return [row[0] for row in pictures]

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        if [len(run) for run in found] != [self.config.num_query_tokens]:
            raise PromptError(
                f"expected one run of {self.config.num_query_tokens} image tokens a row, "
                f"given runs of {[len(run) for run in found]}\n"
                "  the processor puts them there; leave '<image>' out of the text"
            )
        return [Span("image", found[0], 0)]
