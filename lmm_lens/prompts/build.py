"""Text and pictures in, `Prompt` out: slots, chat template, processor, spans, and the refusals.

The refusals matter most. Several models accept image placeholders without pixels and answer, wrongly and without a
word; here that is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import PromptError
from . import media
from .family import Clip, Family, Picture
from .prompt import Prompt, annotate
from .text_config import text_config_of

if TYPE_CHECKING:
    from PIL.Image import Image


def from_text(
    adapter: Family,
    text: str | Sequence[str],
    images: Any,
    videos: Any,
    template: bool,
    device: torch.device,
) -> Prompt:
    """A prompt from one text or a batch of them; `Lens.prompt` documents the arguments."""
    if adapter.processor is None:
        raise PromptError(
            "text was given, but this lens has no processor\n"
            "  load one with Lens(model, processor), or give tensors with lens.prompt(inputs=...)"
        )
    texts = [text] if isinstance(text, str) else list(text) if isinstance(text, Sequence) else []
    if not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise PromptError(f"expected a text or a list of texts, none of them empty, given {text!r}")
    batched = not isinstance(text, str)
    pictures = media.rows_of_images(images, len(texts), batched)
    clips = media.rows_of_videos(videos, len(texts), batched)
    if any(clips) and adapter.video_slot is None:
        raise PromptError(
            f"videos were given, but {type(adapter.processor).__name__} of family {adapter.family} takes none\n"
            "  give some of their frames as images"
        )
    rendered = [
        render(adapter, row_text, len(row_images), template, len(row_clips))
        for row_text, row_images, row_clips in zip(texts, pictures, clips, strict=True)
    ]
    bos = adapter.tokenizer.bos_token
    special: dict[str, Any] = {}
    if bos and any(row.startswith(bos) for row in rendered):  # the tokenizer must not add a second one
        rendered = [row if row.startswith(bos) else bos + row for row in rendered]
        special = {"add_special_tokens": False}
    if any(clips):
        special["videos"] = media.for_processor(clips)
        special["do_sample_frames"] = False  # the frames given are the frames seen
    images = adapter.arranged(pictures) if any(pictures) else None
    try:
        inputs = adapter.processor(text=rendered, images=images, padding=len(texts) > 1, return_tensors="pt", **special)
    except ZeroDivisionError as error:  # of a picture so thin that a part of it has no pixel
        sizes = [picture.size for row in pictures for picture in row]
        raise PromptError(
            f"{type(adapter.processor).__name__} cannot process pictures of {sizes}: {error}\n  make them less thin"
        ) from error
    dtype = adapter.model.dtype  # processors do not know the model's, and some towers do not cast
    inputs = {n: v.to(dtype) if isinstance(v, Tensor) and _holds_pixels(n, v) else v for n, v in inputs.items()}
    prompt = from_tensors(adapter, inputs, device, pictures, clips)
    return replace(prompt, texts=tuple(texts), template=template)


def render(adapter: Family, text: str, n_images: int, template: bool, n_videos: int = 0) -> str:
    """The text with one placeholder for each picture and video, in the model's chat format where it has one.

    Raises:
        PromptError: the text's slots and what was given do not match.
    """
    slots = {"image": adapter.image_slot or "", "video": adapter.video_slot or ""}
    given = {"image": n_images, "video": n_videos}
    missing = ""  # slots that the text lacks, which come before it
    parts: list[dict[str, str]] = []
    for kind, slot in slots.items():
        n_slots = text.count(slot) if slot else 0
        if n_slots and n_slots != given[kind]:
            raise PromptError(
                f"the text has {n_slots} {kind} slot{'s' * (n_slots > 1)} ({slot!r}) "
                f"but {given[kind]} {kind}{'s were' if given[kind] != 1 else ' was'} given\n"
                f"  give one {kind} per slot, or leave the slots out: {kind}s then come before the text"
            )
        if not n_slots:
            missing += adapter.standing(kind) * given[kind]
            parts += [{"type": kind}] * given[kind]
    if not template or getattr(adapter.processor, "chat_template", None) is None:
        bos = adapter.tokenizer.bos_token or ""
        start = bos if bos and text.startswith(bos) else ""
        return f"{start}{missing}{text.removeprefix(start)}"
    named = {slot: kind for kind, slot in slots.items() if slot}
    pieces = re.split("(" + "|".join(re.escape(slot) for slot in named) + ")", text) if named else [text]
    for piece in pieces:
        if piece in named:
            parts.append({"type": named[piece]})
        elif piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    _check_order(adapter, parts, slots)
    return _templated(adapter, parts)


def _templated(adapter: Family, parts: list[dict[str, str]]) -> str:
    chat = [{"role": "user", "content": parts}]
    return str(adapter.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))


def _check_order(adapter: Family, parts: list[dict[str, str]], slots: Mapping[str, str]) -> None:
    """PromptError where a chat template moves pictures past words, as those of LLaVA put all pictures first."""
    texts = [part["text"] for part in parts if part["type"] == "text"]
    marks = iter(f"(text {index})" for index in range(len(texts)))  # words may also be the template's own
    marked = [{"type": "text", "text": next(marks)} if part["type"] == "text" else part for part in parts]
    rendered, n_before = _templated(adapter, marked), 0
    for part in marked:
        if part["type"] != "text":
            n_before += 1
            continue
        start = rendered.find(part["text"])
        n_shown = sum(rendered.count(slot, 0, max(start, 0)) for slot in slots.values() if slot)
        if start >= 0 and n_shown != n_before:
            name, words = type(adapter.processor).__name__, texts[int(part["text"][6:-1])]
            raise PromptError(
                f"the chat template of {name} moves pictures past words: {n_before} stand before {words!r} in the "
                f"text, {n_shown} in the prompt it makes\n"
                "  give template=False and the chat format in the text, or leave the slots out: pictures come first"
            )


def from_tensors(
    adapter: Family,
    inputs: Mapping[str, Any],
    device: torch.device,
    pictures: Sequence[Sequence[Image]] | None = None,
    clips: Sequence[Sequence[Sequence[Image]]] | None = None,
) -> Prompt:
    """A prompt from processed tensors, checked and annotated."""
    # labels are for training: the model would compute a loss of all positions, whatever logits were asked for
    inputs = {name: value for name, value in dict(inputs).items() if value is not None and name != "labels"}
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        raise PromptError(
            "expected inputs with input_ids, an integer tensor [batch, position]\n"
            f"  given {sorted(inputs)}, input_ids {tuple(ids.shape) if isinstance(ids, Tensor) else ids}"
        )
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    if mask.shape != ids.shape:
        raise PromptError(
            f"attention_mask must be [batch, position] like input_ids {tuple(ids.shape)}, given {tuple(mask.shape)}"
        )
    real = (mask != 0).cpu()
    if not bool(real.any(1).all()):
        raise PromptError(f"batch rows {(~real.any(1)).nonzero().flatten().tolist()} hold padding only")
    rows = ids.cpu().tolist()
    sizes = clip_sizes = None
    if pictures is not None:
        sizes = [[Picture(i, image.size) for i, image in enumerate(row)] for row in pictures]
        clip_sizes = [
            [Clip(i, film[0].size, len(film)) for i, film in enumerate(row)] for row in clips or [[]] * len(rows)
        ]
    spans = adapter.spans(rows, inputs, sizes, clip_sizes)
    _check_pixels(adapter, inputs, spans)
    answer_turn = [_ends_with(row, real[i], adapter.answer_turn) for i, row in enumerate(rows)]
    return Prompt(
        inputs={k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()},
        spans=tuple(spans),
        images=tuple(tuple(row) for row in pictures) if pictures is not None else ((),) * len(rows),
        tokens=tuple(_token_texts(adapter, row) for row in rows),
        videos=tuple(tuple(tuple(film) for film in row) for row in clips) if clips is not None else (),
        cross_keys=adapter.cross_keys(inputs),
        masks=annotate(spans, real, _bos(adapter, ids.cpu(), real), answer_turn),
    )


def from_call(adapter: Family, kwargs: Mapping[str, Any], device: torch.device) -> Prompt:
    """The prompt of a direct call of the model inside `Lens.apply`, from what the call is given.

    Raises:
        PromptError: there are no token ids, or as in `from_tensors`.
    """
    if not isinstance(kwargs.get("input_ids"), Tensor):
        raise PromptError(
            "inside lens.apply the model must be called with input_ids, by which its visual tokens are found\n"
            f"  given {sorted(k for k, v in kwargs.items() if v is not None)}"
        )
    tensors = {k: v for k, v in kwargs.items() if isinstance(v, Tensor) or k == "mm_encoder_outputs"}
    mask = tensors.get("attention_mask")
    if mask is not None and mask.shape != tensors["input_ids"].shape:
        del tensors["attention_mask"]
    return from_tensors(adapter, tensors, device)


def _check_pixels(adapter: Family, inputs: Mapping[str, Any], spans: Sequence[Sequence[Any]]) -> None:
    """Placeholders without pixels, or pixels without placeholders, would be answered without the image."""
    n_visual = sum(len(span) for row in spans for span in row if span.kind != "marker")
    pixels = [name for name, value in inputs.items() if _holds_pixels(name, value)]
    if n_visual and not pixels:
        raise PromptError(
            f"the text has {n_visual} image tokens but no pixels were given: the model would answer without the image\n"
            f"  give images=..., or pixel_values beside the token ids; given {sorted(inputs)}"
        )
    if pixels and not n_visual:
        raise PromptError(
            f"pixels were given ({', '.join(pixels)}) but the text has no image token {adapter.image_slot!r}, "
            "so the model would not look at them\n"
            "  put a slot in the text, or use a processor that does"
        )


def _holds_pixels(name: str, value: Any) -> bool:
    if name == "mm_encoder_outputs":
        return True
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return is_float and ("pixel" in name or value.ndim > 2) and "mask" not in name


def _token_texts(adapter: Family, ids: Sequence[int]) -> tuple[str, ...]:
    if adapter.processor is None:
        return tuple(f"#{id_}" for id_ in ids)
    tokens = adapter.tokenizer.convert_ids_to_tokens(list(ids))
    # byte-level and sentencepiece vocabularies write a leading space as one of these
    return tuple(str(token).replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\\n").strip() or "␣" for token in tokens)


def _bos(adapter: Family, ids: Int[Tensor, "batch position"], real: Bool[Tensor, "batch position"]) -> Tensor:
    text_config = text_config_of(adapter.config)
    known = [getattr(adapter.tokenizer, "bos_token_id", None), getattr(text_config, "bos_token_id", None)]
    bos_id = next((i for i in known if isinstance(i, int)), None)
    found = real & (ids == bos_id) if bos_id is not None else torch.zeros_like(real)
    return found & (found.cumsum(1) == 1)  # the first: not always the first token (PaliGemma's follows the image)


def _ends_with(ids: Sequence[int], real: Bool[Tensor, " position"], turn: Sequence[int]) -> int:
    """How many of a row's last tokens open the answer turn: all of `turn` or none."""
    tokens = [id_ for id_, keep in zip(ids, real.tolist(), strict=True) if keep]
    return len(turn) if turn and tokens[-len(turn) :] == list(turn) else 0
