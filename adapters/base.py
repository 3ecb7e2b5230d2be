"""What an adapter is: the few facts about one model family that everything else is built on.

A family is usually declared by its `model_types` and an `images` method; the rest has defaults that hold for most of
the field. To support a new family, subclass `Adapter`, override what differs, and register the class under the
entry-point group `lmm_lens.adapters`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from lmm_lens.errors import ModelError, PromptError
from lmm_lens.prompts.family import Clip, Picture
from lmm_lens.prompts.framing import special_ids
from lmm_lens.prompts.spans import Span, runs
from lmm_lens.prompts.text_config import text_config_of
from lmm_lens.prompts.turns import Turns

from .calls import Calls
from .row import BatchRow, TokenRun
from .towers import Tower, find_tower
from .walker import Layer, every_module, find_layers


class Adapter(Calls):
    """One model family. Subclasses override class attributes and, where the layout is known, `images` and `videos`.

    Args:
        model: an already loaded Hugging Face model, never changed.
        processor: its processor, or None where the user processes inputs alone.

    Attributes:
        layers: the decoder layers.
        modules: all modules of the model, as `look_again` found them last.
    """

    family: ClassVar[str]
    """Name shown to people."""
    model_types: ClassVar[tuple[str, ...]] = ()
    """The `config.model_type` values of the family."""
    has_grid: ClassVar[bool] = False
    """Whether tokens are mapped to pixels."""
    takes_videos: ClassVar[bool] = False
    """Whether videos are understood."""
    images_in: ClassVar[tuple[str, ...]] = ()
    """The inputs that have one entry for each picture of a batch."""
    videos_in: ClassVar[tuple[str, ...]] = ()
    """The same for videos."""
    has_bridge: ClassVar[bool] = True
    """Whether a TransformerBridge of the family runs."""
    has_tower_heads: ClassVar[bool] = True
    """Whether pictures go through a vision tower whose tokens stand in a row, so that its heads are read and edited."""

    def __init__(self, model: Any, processor: Any = None) -> None:
        self.model = model
        self.processor = processor
        self.config: Any = model.config
        if getattr(self.config, "is_encoder_decoder", False) or getattr(
            text_config_of(self.config), "is_encoder_decoder", False
        ):
            raise ModelError(
                f"{type(model).__name__} ({self.config.model_type}) is an encoder-decoder: pictures and question "
                "go through an encoder, and a decoder reads them by cross-attention\n"
                "  lmm-lens reads decoders whose sequence holds the visual tokens"
            )
        if self.image_token_id is None:
            raise ModelError(
                f"{type(model).__name__} ({self.config.model_type}) has no image token, so it has no visual tokens\n"
                "  expected a multimodal model whose config names image_token_id (or image_token_index)\n"
                "  for remote code give an adapter that names it, Lens(model, adapter=...); for a text-only model use "
                "TransformerLens or nnsight directly"
            )
        self.layers = self.find_layers()
        self.modules = every_module(model)

    @classmethod
    def variant(cls, model: Any) -> type[Adapter]:
        """The adapter for this very model, where one `model_type` covers several layouts; by default this one."""
        return cls

    def find_layers(self) -> tuple[Layer, ...]:
        """The decoder layers; override for a model whose parts have unusual names."""
        return find_layers(self.model)

    def find_tower(self) -> Tower:
        """The vision tower; override for a model whose parts have unusual names.

        Raises:
            ModelError: it has none, or one without attention heads.
        """
        return find_tower(self.model, self.layers)

    @property
    def tower(self) -> Tower:
        """The vision tower, looked for once; ModelError where there is none with heads."""
        if "_tower" not in self.__dict__:
            self.__dict__["_tower"] = self.find_tower()
        tower: Tower = self.__dict__["_tower"]
        return tower

    def look_again(self) -> None:
        """Find the layers anew where modules of the model were exchanged: an adapter put in, a layer replaced."""
        modules = every_module(self.model)
        if len(modules) == len(self.modules) and all(map(operator.is_, modules, self.modules)):
            return
        self.layers, self.modules = self.find_layers(), modules
        for found in ("runs_alone", "_tower"):
            self.__dict__.pop(found, None)

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
        if token is None and self.processor is not None and (self.image_token_id or 0) >= 0:
            token = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return token if token is None or isinstance(token, str) else token.content

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer; None without a processor."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def turns(self) -> Turns:
        """What the chat template writes around questions and answers, by the template that the processor has now."""
        template = getattr(self.processor, "chat_template", None)
        known = self.__dict__.get("_turns")
        if known is None or known[0] != template:
            known = self.__dict__["_turns"] = (template, Turns.of(self.processor, self.tokenizer))
        turns: Turns = known[1]
        return turns

    @property
    def special_ids(self) -> frozenset[int]:
        """The tokens that the tokenizer calls special, none of which is a user's word."""
        known = self.__dict__.get("_special_ids")
        if known is None or known[0] is not self.tokenizer:
            known = self.__dict__["_special_ids"] = (self.tokenizer, special_ids(self.tokenizer))
        special: frozenset[int] = known[1]
        return special

    @property
    def answer_turn(self) -> list[int]:
        """The token ids with which the chat template opens the answer turn; empty where there is no template."""
        return list(self.turns.ids)

    @property
    def video_slot(self) -> str | None:
        """The text that marks a video's place in a prompt; None for a model or processor that takes no videos."""
        token = getattr(self.processor, "video_token", None)
        return token if token is None or isinstance(token, str) else token.content

    def standing(self, kind: str) -> str:
        """How a picture or a video stands in a text without a chat template, where the text has no slot for it."""
        return (self.image_slot if kind == "image" else self.video_slot) or ""

    def arranged(self, pictures: list[list[Any]]) -> Any:
        """The pictures of a batch as the processor takes them; by default one list a row."""
        return pictures

    @property
    def marker_ids(self) -> frozenset[int]:
        """Ids of tokens that only stand around and between visual tokens: begin, end, row breaks, tile tags."""
        return frozenset()

    def ids_of(self, *tokens: str) -> frozenset[int]:
        """The ids of those of these tokens that the processor's vocabulary has; empty without a processor."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            return frozenset()
        ids = ((token, tokenizer.convert_tokens_to_ids(token)) for token in tokens)
        # what the vocabulary lacks has the id of the unknown token, or None
        return frozenset(x for token, x in ids if x is not None and tokenizer.convert_ids_to_tokens(x) == token)

    def spans(
        self,
        ids: Sequence[Sequence[int]],
        inputs: Mapping[str, Any],
        pictures: Sequence[Sequence[Picture]] | None = None,
        clips: Sequence[Sequence[Clip]] | None = None,
    ) -> list[tuple[Span, ...]]:
        """The visual runs and markers of every batch row, in order.

        Args:
            ids: token ids of each row, padding included.
            inputs: all tensors of the batch.
            pictures, clips: of each row; None where the user processed them.
        """
        spans: list[tuple[Span, ...]] = []
        n_pictures = n_clips = 0
        for index, row_ids in enumerate(ids):
            own, films = pictures[index] if pictures else None, clips[index] if clips else None
            found = self.row_spans(BatchRow(row_ids, inputs, own, films, n_pictures, n_clips))
            spans.append(tuple(sorted(found, key=lambda span: span.positions)))
            n_pictures += _count(own, [span.image for span in found])
            n_clips += _count(films, [span.video for span in found])
        if any(span.kind != "marker" for row in spans for span in row):
            self.check_count("image", inputs, spans)
            self.check_count("video", inputs, spans)
        return spans

    def check_count(self, kind: str, inputs: Mapping[str, Any], spans: Sequence[Sequence[Span]]) -> None:
        """Refuse tensors of more or fewer pictures or videos than the text has tokens of, where that is known.

        Raises:
            PromptError: they do not match.
        """
        found = self.n_found(kind, spans)
        for name, given in self.n_given(kind, inputs).items():
            if found is not None and given != found:
                raise PromptError(
                    f"{name} holds {given} {kind}{'s' * (given != 1)}, but the text has the tokens of {found}\n"
                    f"  process text and {kind}s together, with the model's own processor"
                )

    def n_given(self, kind: str, inputs: Mapping[str, Any]) -> dict[str, int]:
        """How many pictures or videos of a batch each tensor holds that tells."""
        names = self.images_in if kind == "image" else self.videos_in
        return {name: len(inputs[name]) for name in names if isinstance(inputs.get(name), Tensor)}

    def n_found(self, kind: str, spans: Sequence[Sequence[Span]]) -> int | None:
        """How many the text has tokens of; None where it is not known which tokens are of which."""
        sources = [{span.source for span in row if span.kind == kind} for row in spans]
        return None if any(None in row for row in sources) else sum(map(len, sources))

    def row_spans(self, row: BatchRow) -> list[Span]:
        """The visual runs and markers of one batch row, in any order."""
        where: dict[int, list[int]] = {}
        markers = self.marker_ids
        wanted: set[int | None] = {self.image_token_id, self.video_token_id, *markers}
        for position, token in enumerate(row.ids):
            if token in wanted:
                where.setdefault(token, []).append(position)
        spans: list[Span] = []
        for kind, lay_out in ((self.image_token_id, self.images), (self.video_token_id, self.videos)):
            if kind is not None and kind in where:
                spans += lay_out(row, runs(where[kind]))
        around = sorted(position for marker in markers for position in where.get(marker, ()))
        return spans + [Span("marker", run) for run in runs(around)]

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        """Turn a row's runs of image tokens into spans. The default knows no grid: one span a run.

        A run is ascribed to a picture only where the counts leave no doubt.
        """
        certain = len(found) == (1 if row.pictures is None else len(row.pictures))
        return [Span("image", run, image=index if certain else None) for index, run in enumerate(found)]

    def cross_keys(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Which keys of the layers that attend to pictures by cross-attention are visual and real: Bool[batch, key].

        None for models without such layers, and where the inputs do not tell.
        """
        return None

    def videos(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        """Turn a row's runs of video tokens into spans; the default as in `images`."""
        certain = len(found) == (1 if row.clips is None else len(row.clips))
        return [Span("video", run, video=index if certain else None) for index, run in enumerate(found)]


def _count(given: Sequence[Any] | None, found: Sequence[int | None]) -> int:
    """How many pictures or videos a row has: those given, or else those found."""
    return len(given) if given is not None else 1 + max((index for index in found if index is not None), default=-1)
