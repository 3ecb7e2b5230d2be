"""What an adapter is: the few facts about one model family that everything else is built on.

A family is usually declared by its `model_types` and a `layout` method; the rest has defaults that hold for most of
the field. To support a new family, subclass `Adapter`, override what differs, and register the class under the
entry-point group `lmm_lens.adapters`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from lmm_lens.errors import ModelError, PromptError
from lmm_lens.spans import Box, Span, runs

from .walker import Layer, find_layers


@dataclass(frozen=True)
class Picture:
    """What an adapter knows of one picture when it lays out its tokens.

    Attributes:
        index: which picture of its batch row, from 0.
        size: (width, height) of the picture as the user gave it; None where only tensors were given.
        order: which picture of the whole batch, from 0: the index into per-picture tensors.
    """

    index: int
    size: tuple[int, int] | None
    order: int


class Adapter:
    """One model family. Subclasses override class attributes and, where the layout is known, `layout`.

    Args:
        model: an already loaded Hugging Face model, never changed.
        processor: its processor, or None where the user processes inputs alone.
    """

    family: ClassVar[str]
    """Name shown to people."""
    model_types: ClassVar[tuple[str, ...]] = ()
    """The `config.model_type` values of the family."""
    has_grid: ClassVar[bool] = False
    """Whether tokens are mapped to pixels."""

    def __init__(self, model: Any, processor: Any = None) -> None:
        self.model: Any = model
        self.processor = processor
        self.config: Any = model.config
        if self.image_token_id is None:
            raise ModelError(
                f"{type(model).__name__} ({self.config.model_type}) has no image token, so it has no visual tokens\n"
                "  expected a multimodal model whose config names image_token_id (or image_token_index)\n"
                "  for a text-only model use TransformerLens or nnsight directly"
            )
        self.layers: tuple[Layer, ...] = self.find_layers()

    def find_layers(self) -> tuple[Layer, ...]:
        """The decoder layers; override for a model whose parts have unusual names."""
        return find_layers(self.model)

    @property
    def image_token_id(self) -> int | None:
        """The id of the tokens that image features replace."""
        return self._token_id("image_token_id", "image_token_index")

    @property
    def video_token_id(self) -> int | None:
        """The id of the tokens that video features replace, None without video."""
        return self._token_id("video_token_id", "video_token_index")

    def _token_id(self, *names: str) -> int | None:
        values = (getattr(self.config, name, None) for name in names)
        return next((int(value) for value in values if value is not None), None)

    @property
    def image_slot(self) -> str | None:
        """The text that marks a picture's place in a prompt, before it is expanded; None without a processor."""
        token = getattr(self.processor, "image_token", None)
        if token is None and self.processor is not None:
            token = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return token if token is None or isinstance(token, str) else token.content

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer; None without a processor."""
        return getattr(self.processor, "tokenizer", self.processor)

    @cached_property
    def answer_turn(self) -> list[int]:
        """The token ids with which the chat template opens the answer turn; empty where there is no template.

        Found by rendering a conversation with and without them, so that no template is known by name.
        """
        if getattr(self.processor, "chat_template", None) is None:
            return []
        chat = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
        rendered = (
            self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=open_answer)
            for open_answer in (True, False)
        )
        opened, plain = (self.tokenizer(text)["input_ids"] for text in rendered)
        pairs = enumerate(zip(opened, plain, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(opened), len(plain)))
        return opened[shared:]

    def spans(
        self, ids: Sequence[int], inputs: Mapping[str, Any], pictures: Sequence[Picture] | None, row: int
    ) -> list[Span]:
        """The visual runs of one batch row, in order.

        Args:
            ids: the row's token ids, padding included.
            inputs: all tensors of the batch.
            pictures: the row's pictures, or None where the user processed them.
            row: which batch row this is.
        """
        spans: list[Span] = []
        kinds: tuple[tuple[Literal["image", "video"], int | None], ...] = (
            ("image", self.image_token_id),
            ("video", self.video_token_id),
        )
        for kind, token in kinds:
            positions = [position for position, id_ in enumerate(ids) if id_ == token]
            if positions:
                spans += self.layout(kind, runs(positions), inputs, pictures)
        return sorted(spans, key=lambda span: span.positions)

    def layout(
        self,
        kind: Literal["image", "video"],
        found: list[tuple[int, ...]],
        inputs: Mapping[str, Any],
        pictures: Sequence[Picture] | None,
    ) -> list[Span]:
        """Turn runs of placeholder tokens into spans. The default knows no grid: one span a run.

        A run is ascribed to a picture only where the counts leave no doubt.
        """
        certain = len(found) == (1 if pictures is None else len(pictures))
        return [Span(kind, run, image=index if certain else None) for index, run in enumerate(found)]


def square_spans(
    found: list[tuple[int, ...]], side: int, regions: Sequence[Box | None], whole: Box, lead: int = 0
) -> list[Span]:
    """Spans of a family whose every picture is one square of side x side tokens.

    Pictures that follow each other without a token between form one run, which is cut into squares.

    Args:
        found: runs of image tokens.
        side: patches along one edge.
        regions: the part of each picture that the tokens cover, as far as known.
        whole: the region to use where it is not.
        lead: tokens before the patches of each picture that lie nowhere in it (a class token).

    Raises:
        PromptError: a run is not a whole number of pictures.
    """
    size = lead + side * side
    spans: list[Span] = []
    index = 0
    for run in found:
        if len(run) % size:
            raise PromptError(
                f"a run of {len(run)} image tokens at positions {run[0]} to {run[-1]} is no whole number of pictures\n"
                f"  this model makes {size} tokens of each picture, {side} x {side} patches\n"
                "  process text and pictures with the model's own processor"
            )
        for start in range(0, len(run), size):
            region = regions[index] if index < len(regions) else None
            if lead:
                spans.append(Span("marker", run[start : start + lead], index))
            spans.append(Span("image", run[start + lead : start + size], index, 0, (side, side), region or whole))
            index += 1
    return spans
