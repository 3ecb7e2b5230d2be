"""Text and pictures in, `Prompt` out: slots, chat template, processor, spans, and the refusals.

The refusals matter most. Several models accept image placeholders without pixels and answer, wrongly and without a
word; here that is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import PromptError
from . import chat, media
from .family import Clip, Family, Picture
from .framing import framing
from .prompt import Prompt, annotate
from .sources import open_image
from .spans import Span
from .tensors import NESTS, holds_pixels, mapped, tensors_of
from .text_config import text_config_of
from .turns import decoder
from .videos import open_video
from .words import NO_TEXT, style_of, text_of

if TYPE_CHECKING:
    from PIL.Image import Image


def from_text(
    adapter: Family,
    text: Any,
    images: Any,
    videos: Any,
    template: bool,
    device: torch.device,
) -> Prompt:
    """A prompt from a text or a conversation, or a batch of either; `Lens.prompt` documents the arguments."""
    if adapter.processor is None:
        raise PromptError(
            "text was given, but this lens has no processor\n"
            "  load one with Lens(model, processor), or give tensors with lens.prompt(inputs=...)"
        )
    if chat.are_messages(text):
        return _from_messages(adapter, text, images, videos, template, device)
    texts = [text] if isinstance(text, str) else list(text) if isinstance(text, Sequence) else []
    if not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise PromptError(f"expected a text or a list of texts, none of them empty, given {text!r}")
    batched = not isinstance(text, str)
    pictures = media.rows_of_images(images, len(texts), batched)
    clips = media.rows_of_videos(videos, len(texts), batched)
    _check_videos(adapter, clips)
    rendered = [
        render(adapter, row_text, len(row_images), template, len(row_clips))
        for row_text, row_images, row_clips in zip(texts, pictures, clips, strict=True)
    ]
    prompt = _processed(adapter, rendered, pictures, clips, device)
    return replace(prompt, texts=tuple(texts), template=template)


def _from_messages(
    adapter: Family, messages: Any, images: Any, videos: Any, template: bool, device: torch.device
) -> Prompt:
    """A prompt from messages. Its text is what the template makes of them, which `template=False` takes as it is."""
    name = type(adapter.processor).__name__
    if not template:
        raise PromptError(
            "messages are put into the model's chat format, so template=False cannot be kept\n  give the text instead"
        )
    if getattr(adapter.processor, "chat_template", None) is None:
        raise PromptError(
            f"{name} has no chat template, so it cannot put messages into the model's chat format\n"
            "  set processor.chat_template, or give the text that the model should read"
        )
    batched = not isinstance(messages[0], Mapping)
    chats = [chat.read(adapter, each) for each in (messages if batched else [messages])]
    sources: dict[str, list[list[Any]]] = {}
    for kind, others in (("image", images), ("video", videos)):
        rows = media.listed_by_row(others, len(chats), batched, kind)
        sources[kind] = [each.filled(kind, row) for each, row in zip(chats, rows, strict=True)]
    pictures = [[open_image(image) for image in row] for row in sources["image"]]
    clips = [[open_video(film) for film in row] for row in sources["video"]]
    _check_videos(adapter, clips)
    rendered = [chat.rendered(adapter, each.messages) for each in chats]
    prompt = _processed(adapter, rendered, pictures, clips, device)
    return replace(prompt, texts=tuple(rendered), template=False)


def _check_videos(adapter: Family, clips: Sequence[Sequence[Any]]) -> None:
    if any(clips) and adapter.video_slot is None:
        raise PromptError(
            f"videos were given, but {type(adapter.processor).__name__} of family {adapter.family} takes none\n"
            "  give some of their frames as images"
        )


def _processed(
    adapter: Family,
    rendered: Sequence[str],
    pictures: list[list[Image]],
    clips: list[list[list[Image]]],
    device: torch.device,
) -> Prompt:
    """What the model's own processor makes of texts with slots, pictures and videos."""
    for row in rendered:
        try:
            row.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text holds half of a character at {error.start}, {row[error.start]!r}, which no tokenizer reads\n"
                "  read the file it comes from as UTF-8, or leave the character out"
            ) from None
    bos = adapter.tokenizer.bos_token
    special: dict[str, Any] = {}
    if bos and any(row.startswith(bos) for row in rendered):  # the tokenizer must not add a second one
        rendered = [row if row.startswith(bos) else bos + row for row in rendered]
        special = {"add_special_tokens": False}
    if any(clips):
        special["videos"] = media.for_processor(clips)
        special["do_sample_frames"] = False  # the frames given are the frames seen
    images = adapter.arranged(pictures) if any(pictures) else None
    if images is not None and "mm_token_type_ids" in getattr(adapter.processor, "model_input_names", ()):
        special["return_mm_token_type_ids"] = (
            True  # Cosmos 3 Edge does not run without, and its processor has to be asked
        )
    try:
        inputs = adapter.processor(
            text=list(rendered), images=images, padding=len(rendered) > 1, return_tensors="pt", **special
        )
    except ZeroDivisionError as error:  # of a picture so thin that a part of it has no pixel
        sizes = [picture.size for row in pictures for picture in row]
        raise PromptError(
            f"{type(adapter.processor).__name__} cannot process pictures of {sizes}: {error}\n  make them less thin"
        ) from error
    dtype = adapter.model.dtype  # processors do not know the model's, and some towers do not cast
    inputs = {n: v.to(dtype) if isinstance(v, Tensor) and holds_pixels(n, v) else v for n, v in inputs.items()}
    return from_tensors(adapter, inputs, device, pictures, clips)


def render(adapter: Family, text: str, n_images: int, template: bool, n_videos: int = 0) -> str:
    """The text with one placeholder for each picture and video, in the model's chat format where it has one.

    Raises:
        PromptError: the text's slots and what was given do not match.
    """
    slots = {"image": adapter.image_slot or "", "video": adapter.video_slot or ""}
    given = {"image": n_images, "video": n_videos}
    missing = ""  # slots that the text lacks, which come before it
    parts: list[chat.Part] = []
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
    return chat.rendered(adapter, [chat.Message("user", (*parts, *chat.split(adapter, text.strip())))])


def from_inputs(adapter: Family, inputs: Any, device: torch.device) -> Prompt:
    """A prompt from what the user's own processor made.

    Raises:
        PromptError: as in `tensors_of` and `from_tensors`.
    """
    model = adapter.model
    own = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    return from_tensors(adapter, tensors_of(inputs, [model.dtype, *own]), device)


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
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise PromptError(
            "expected inputs with input_ids, an integer tensor [batch, position]\n"
            f"  given {sorted(inputs)}, input_ids {tuple(ids.shape) if isinstance(ids, Tensor) else ids}"
        )
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        given = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise PromptError(f"attention_mask must be [batch, position] like input_ids {tuple(ids.shape)}, given {given}")
    if bool((mask < 0).any()):
        raise PromptError("attention_mask must be 1 for tokens and 0 for padding, given negative numbers")
    where = torch.device("cpu") if device.type == "meta" else device  # a model without weights says so when it runs
    there = {name: mapped(value, lambda x: x.to(where)) for name, value in inputs.items()}
    running, is_real = adapter.sequence(there)
    ids, real = running.cpu(), is_real.cpu()
    if not bool(real.any(1).all()):
        raise PromptError(f"batch rows {(~real.any(1)).nonzero().flatten().tolist()} hold padding only")
    rows = ids.tolist()
    sizes = clip_sizes = None
    if pictures is not None:
        sizes = [[Picture(i, image.size) for i, image in enumerate(row)] for row in pictures]
        clip_sizes = [
            [Clip(i, film[0].size, len(film)) for i, film in enumerate(row)] for row in clips or [[]] * len(rows)
        ]
    spans = adapter.spans(rows, inputs, sizes, clip_sizes)
    _check_pixels(adapter, inputs, spans)
    answer_turn = [_n_answer(adapter, row, real[i], spans[i]) for i, row in enumerate(rows)]
    written = [_written(adapter, row, real[i], spans[i], answer_turn[i]) for i, row in enumerate(rows)]
    masks = annotate(spans, real, _bos(adapter, ids, real), answer_turn, written)
    return Prompt(
        inputs=there,
        spans=tuple(spans),
        images=tuple(tuple(row) for row in pictures) if pictures is not None else ((),) * len(rows),
        tokens=tuple(_token_texts(adapter, row) for row in rows),
        videos=tuple(tuple(tuple(film) for film in row) for row in clips) if clips is not None else (),
        cross_keys=adapter.cross_keys(inputs),
        masks=masks,
        pieces=_pieces(adapter, rows, masks["text"]),
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
    own = {k: v for k, v in kwargs.items() if k != "past_key_values" and v is not None}
    tensors = {k: v for k, v in own.items() if isinstance(v, (Tensor, *NESTS)) or k == "mm_encoder_outputs"}
    mask = tensors.get("attention_mask")
    if mask is not None and mask.shape != tensors["input_ids"].shape:
        del tensors["attention_mask"]
    return from_tensors(adapter, tensors, device)


def _check_pixels(adapter: Family, inputs: Mapping[str, Any], spans: Sequence[Sequence[Span]]) -> None:
    """Placeholders without pixels, or pixels without placeholders, would be answered without the image."""
    n_visual = sum(len(span) for row in spans for span in row if span.kind != "marker")
    given = {name: value for name, value in inputs.items() if not isinstance(value, Tensor) or value.numel()}
    pixels = [name for name, value in given.items() if holds_pixels(name, value)]
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


def _token_texts(adapter: Family, ids: Sequence[int]) -> tuple[str, ...]:
    if adapter.processor is None:
        return tuple(f"#{id_}" for id_ in ids)
    tokens = adapter.tokenizer.convert_ids_to_tokens([max(id_, 0) for id_ in ids])
    # byte-level and sentencepiece vocabularies write a leading space as one of these
    texts = (str(token).replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\\n").strip() or "␣" for token in tokens)
    return tuple(text if id_ >= 0 else f"#{id_}" for text, id_ in zip(texts, ids, strict=True))


def _pieces(
    adapter: Family, rows: Sequence[Sequence[int]], is_text: Bool[Tensor, "batch position"]
) -> tuple[tuple[bytes, ...], ...]:
    """The text of every token as `Prompt.pieces` has it."""
    if adapter.processor is None:
        return ()
    style, special, pieces = style_of(adapter.tokenizer), adapter.special_ids, []
    for ids, chosen in zip(rows, is_text.tolist(), strict=True):
        tokens = adapter.tokenizer.convert_ids_to_tokens([max(id_, 0) for id_ in ids])
        pieces.append(
            tuple(
                text_of(str(token), style) if is_chosen and id_ >= 0 and id_ not in special else NO_TEXT
                for token, id_, is_chosen in zip(tokens, ids, chosen, strict=True)
            )
        )
    return tuple(pieces)


def _bos(adapter: Family, ids: Int[Tensor, "batch position"], real: Bool[Tensor, "batch position"]) -> Tensor:
    text_config = text_config_of(adapter.config)
    known = [getattr(adapter.tokenizer, "bos_token_id", None), getattr(text_config, "bos_token_id", None)]
    bos_id = next((i for i in known if isinstance(i, int)), None)
    found = real & (ids == bos_id) if bos_id is not None else torch.zeros_like(real)
    return found & (found.cumsum(1) == 1)  # the first: not always the first token (PaliGemma's follows the image)


def _n_answer(adapter: Family, ids: Sequence[int], real: Bool[Tensor, " position"], spans: Sequence[Span]) -> int:
    """How many of a row's last tokens are the answer turn; 0 without a picture, where no mask asks for it."""
    visual = [span.positions[-1] for span in spans if span.kind != "marker"]
    if not visual or adapter.tokenizer is None:
        return 0
    after = range(max(visual) + 1, len(ids))
    return adapter.turns.n_answer([ids[i] for i in after if real[i]], decoder(adapter.tokenizer))


def _written(
    adapter: Family, ids: Sequence[int], real: Bool[Tensor, " position"], spans: Sequence[Span], n_answer: int
) -> list[int]:
    """Positions of a row's question that its chat template wrote; none without a picture, as for `_n_answer`."""
    visual = [span.positions[-1] for span in spans if span.kind != "marker"]
    if not visual or adapter.tokenizer is None:
        return []
    own = {position for span in spans for position in span.positions}
    after = [i for i in range(max(visual) + 1, len(ids)) if real[i]]
    asked = [i for i in after[: len(after) - n_answer] if i not in own]
    found = framing([ids[i] for i in asked], adapter.special_ids, decoder(adapter.tokenizer), adapter.turns.closes)
    return [asked[i] for i in found]
