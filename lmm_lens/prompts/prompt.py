"""A prompt: the tensors a model takes, with every token's role annotated.

Batch rows may be padded on either side and hold any number of pictures, so a role is a boolean mask per
batch row, never a (start, end) pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import PromptError, unknown
from .spans import Box, Span
from .words import find

if TYPE_CHECKING:
    from PIL.Image import Image

MASKS = {
    "image": "patch tokens of pictures",
    "video": "patch tokens of video frames",
    "marker": "tokens that only frame the visual ones: row breaks, tile tags, begin and end, newline vectors",
    "text": "every other real token, the beginning-of-sequence token included",
    "pad": "padding",
    "visual": "image and video tokens",
    "bos": "the beginning-of-sequence token",
    "after_image": "text after the batch row's last visual token (generated tokens too, while generating)",
    "question": "those of them before the answer turn that the chat template did not write",
    "template": "those of them before the answer turn that it did: soft prompts, newlines, what closes the turn",
    "last": "the last real prompt token",
    "all": "every token but padding (generated tokens too, while generating)",
}
"""Name and meaning of every mask. image, video, marker, text and pad partition the sequence."""


ROLES = ("pad", "bos", "visual", "marker", "before_image", "question", "answer_turn", "template")
"""What a token is for, one role each; generated tokens count as answer_turn. Text without an image before it, and all
text of a prompt without images, is before_image. In a conversation that goes on after the last picture, what names the
speakers of its later turns is in question, their special tokens are in template."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """Model inputs with their visual spans. Made by `Lens.prompt`, not by hand.

    Attributes:
        inputs: the tensors the model takes, on the model's device.
        spans: per batch row, the runs of visual tokens and of markers.
        images: per batch row, the pictures as given; empty where only processed tensors were given.
        videos: per batch row, the frames of each video as given; empty where there is none.
        cross_keys: Bool[batch, key], on the CPU: which keys of cross-attention layers are of the row's pictures, not
            padding; None for models without such layers, and where the inputs do not tell.
        tokens: per batch row, the text of every token.
        texts: per batch row, the text as given; None where only processed tensors were given.
        template: whether the texts were put into the chat format.
        pieces: per batch row, the text of every token as bytes, spaces included, empty for visual tokens, markers,
            padding and special tokens; no rows without a processor.
        masks: name to Bool[batch, position], on the CPU; see `MASKS`.
    """

    inputs: Mapping[str, Any]
    spans: tuple[tuple[Span, ...], ...]
    images: tuple[tuple[Image, ...], ...]
    tokens: tuple[tuple[str, ...], ...]
    masks: Mapping[str, Bool[Tensor, "batch position"]] = field(repr=False)
    texts: tuple[str, ...] | None = None
    template: bool = True
    videos: tuple[tuple[tuple[Image, ...], ...], ...] = ()
    cross_keys: Bool[Tensor, "batch key"] | None = field(default=None, repr=False)
    pieces: tuple[tuple[bytes, ...], ...] = field(default=(), repr=False)

    @property
    def n_rows(self) -> int:
        """Batch size."""
        return self.masks["all"].shape[0]

    @property
    def n_tokens(self) -> int:
        """Length of the padded sequence."""
        return self.masks["all"].shape[1]

    def __len__(self) -> int:
        return self.n_rows

    def mask(self, name: str) -> Bool[Tensor, "batch position"]:
        """Which tokens play a role; `MASKS` lists the names.

        Raises:
            PromptError: there is no such mask.
        """
        if name not in self.masks:
            raise PromptError(unknown("mask", name, self.masks if MASKS.keys() - self.masks else MASKS))
        return self.masks[name]

    @property
    def roles(self) -> Int[Tensor, "batch position"]:
        """The role of every token, as an index into `ROLES`."""
        roles = torch.full(self.masks["all"].shape, ROLES.index("before_image"))
        answer_turn = self.masks["after_image"] & ~self.masks["question"] & ~self.masks["template"]
        for name, mask in {**self.masks, "answer_turn": answer_turn}.items():
            if name in ROLES:
                roles[mask] = ROLES.index(name)
        return roles

    def role_names(self, row: int = 0) -> list[str]:
        """The role of every token of a batch row by name, as in `ROLES`; a visual token's is its kind of span."""
        names = [ROLES[role] for role in self.roles[row].tolist()]
        for kind in ("image", "video"):
            for position in self.mask(kind)[row].nonzero().flatten().tolist():
                names[position] = kind
        return names

    def patch_at(
        self, x: float, y: float, image: int = 0, row: int = 0, *, video: int | None = None, frame: int = 0
    ) -> int:
        """The token whose patch holds pixel (x, y) of a picture, or of a video's frame. With several crops, the finest.

        Raises:
            PromptError: no such picture, no patch covers the pixel, or the layout is unknown.
        """
        spans = sorted(self._of(image, row, video, frame), key=lambda span: span.tile)
        hits = [span.at(x, y) for span in spans]
        covered = [position for position in hits if position is not None]
        if not covered:
            raise PromptError(
                f"no visual token covers pixel ({x:g}, {y:g}) of {_named(image, video, frame)}\n"
                f"  the model sees {', '.join(str(tuple(s.region or ())) for s in spans)}"
            )
        return covered[-1]

    def box(self, position: int, row: int = 0) -> Box:
        """The pixels that a visual token covers, in its own picture.

        Raises:
            PromptError: the token at this position is not visual, or the layout is unknown.
        """
        for span in self._row(row):
            if span.kind != "marker" and position in span.positions:
                return span.box(position)
        raise PromptError(
            f"the token at position {position} of row {row} is not a visual token\n"
            f"  visual tokens of that row: {_ranges(self.spans[row])}"
        )

    def positions_in_box(
        self, box: Sequence[float], image: int = 0, row: int = 0, *, video: int | None = None, frame: int = 0
    ) -> tuple[int, ...]:
        """The tokens whose patch overlaps the box (x0, y0, x1, y1) with a positive area, in every crop.

        Raises:
            PromptError: the box is empty or not four numbers, no such picture, or the layout is unknown.
        """
        if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
            raise PromptError(f"a box is (x0, y0, x1, y1) in pixels with x0 < x1 and y0 < y1, given {tuple(box)}")
        target = Box(*box)
        return tuple(p for span in self._of(image, row, video, frame) for p in span.inside(target))

    def words(self, text: str | Sequence[str], row: int = 0, *, occurrence: int | None = None) -> tuple[int, ...]:
        """The positions of a word's tokens, all of its subwords, wherever it occurs in the row.

        Args:
            text: a word, or a phrase; or several of them. Whether a space stands before it counts for nothing.
            row: batch row.
            occurrence: of each word only this one, counted from 0; -1 is the last. All by default.

        Returns:
            Positions in the padded sequence, ascending; `rows=` of a read or an edit takes them.

        Raises:
            PromptError: a word does not occur (the error lists near ones) or not that often, or there is no processor.
        """
        self._row(row)
        if not self.pieces:
            raise PromptError(
                "which words the tokens are is not known: this lens has no processor\n"
                "  make it with Lens(model, processor), or give positions"
            )
        found: set[int] = set()
        for word in [text] if isinstance(text, str) else text:
            places = find(self.pieces[row], word, row)
            if occurrence is not None and not -len(places) <= occurrence < len(places):
                raise PromptError(
                    f"{word!r} occurs {len(places)} time{'s' * (len(places) != 1)} in row {row} of the prompt, "
                    f"expected an occurrence below that, given {occurrence}"
                )
            found.update(p for place in (places if occurrence is None else [places[occurrence]]) for p in place)
        return tuple(sorted(found))

    def _row(self, row: int) -> tuple[Span, ...]:
        if not 0 <= row < self.n_rows:
            raise PromptError(f"row {row} is out of range: the prompt has rows 0 to {self.n_rows - 1}")
        return self.spans[row]

    def _of(self, image: int, row: int, video: int | None, frame: int) -> list[Span]:
        """The spans of one picture, or of one frame of a video."""
        visual = [span for span in self._row(row) if span.kind != "marker"]
        if video is None:
            found = [span for span in visual if span.kind == "image" and span.image == image]
            known = sorted({span.image for span in visual if span.image is not None})
        else:
            found = [s for s in visual if s.kind == "video" and s.video == video and s.frame in (frame, None)]
            known = sorted({s.frame for s in visual if s.video == video and s.frame is not None})
        if not found and visual and not known and video is None:
            raise PromptError(
                f"which of row {row}'s visual tokens belong to {_named(image, video, frame)} is not known, nor where "
                "they lie in it\n  the family has no adapter with a grid; `lmm-lens families` lists those that have"
            )
        if not found:
            kind = "images" if video is None else f"frames of video {video}"
            raise PromptError(f"row {row} has no {_named(image, video, frame)}: its {kind} are {known or 'none'}")
        return found

    def __str__(self) -> str:
        from .view import as_text

        return as_text(self)

    def __repr__(self) -> str:
        return f"Prompt of {self.n_rows} rows x {self.n_tokens} tokens\n{self}"

    def _repr_html_(self) -> str:
        from .view import as_html

        return as_html(self)


def _named(image: int, video: int | None, frame: int) -> str:
    return f"image {image}" if video is None else f"frame {frame} of video {video}"


def _ranges(spans: tuple[Span, ...]) -> str:
    parts = [f"{s.positions[0]} to {s.positions[-1]}" for s in spans if s.kind != "marker"]
    return ", ".join(parts) or "none"


def annotate(
    spans: Sequence[Sequence[Span]],
    real: Bool[Tensor, "batch position"],
    bos: Bool[Tensor, "batch position"],
    answer_turn: Sequence[int],
    written: Sequence[Sequence[int]] | None = None,
) -> dict[str, Bool[Tensor, "batch position"]]:
    """All masks of a batch.

    Args:
        spans: per row, visual runs and markers.
        real: which tokens are not padding.
        bos: where the beginning-of-sequence token is.
        answer_turn: per row, how many of the last real tokens open the answer turn.
        written: per row, positions that are the chat template's; none by default.
    """
    names = ("image", "video", "marker", "after_image", "question", "template", "last")
    masks = {kind: torch.zeros_like(real) for kind in names}
    position = torch.arange(real.shape[1])
    for row, row_spans in enumerate(spans):
        for span in row_spans:
            masks[span.kind][row, list(span.positions)] = True
        last = int(position[real[row]].max())
        masks["last"][row, last] = True
        visual = [span.positions[-1] for span in row_spans if span.kind != "marker"]
        if visual:
            masks["after_image"][row] = real[row] & (position > max(visual))
            masks["question"][row] = masks["after_image"][row] & (position <= last - answer_turn[row])
    visual_mask = masks["image"] | masks["video"]
    text = real & ~visual_mask & ~masks["marker"]
    # markers that trail the image (an end tag, the last newline vector) are not text
    masks["after_image"] &= text
    masks["question"] &= text
    for row, positions in enumerate(written or ()):
        masks["template"][row, list(positions)] = True
    masks["template"] &= masks["question"]
    masks["question"] &= ~masks["template"]
    return {**masks, "text": text, "pad": ~real, "visual": visual_mask, "bos": bos, "all": real}


def check_prompt(given: object) -> None:
    """PromptError for anything but a prompt."""
    if not isinstance(given, Prompt):
        raise PromptError(f"expected a prompt made by lens.prompt(...), given {type(given).__name__}")
