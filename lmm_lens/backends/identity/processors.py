"""What a processor makes of text and pictures, and how it lays out a chat.

To write down a vocabulary of 150,000 pieces takes a tenth of a second, more than a forward of most models. So a digest
is kept beside what can be looked at in a millisecond: everything else that a processor holds, the parts of a fast
tokenizer around its vocabulary, added tokens, the number of pieces, some of them, and what becomes of a text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.weak import WeakIdKeyDictionary

from .values import digest_of_value, is_known, name_of

NOT_SETTINGS = {
    *(
        "name_or_path",
        "init_kwargs",
        "init_inputs",
        "files_loaded",
        "vocab_file",
        "tokenizer_file",
        "special_tokens_map_file",
    ),
    *("padding_side", "deprecation_warnings", "verbose", "processor_class", "chat_template"),
}
"""Where it was loaded from, what it has said, the side of padding, on which no answer depends, what is told apart."""


SOME = 500
"""Pieces of a vocabulary that are looked at."""
TEXT = "The 3 quick foxes don't jump; Ærø, naïve, 你好, мир, 🦊.\n\n\tdef f(x): return x**2 + 10_000  # (user) <image>"
AROUND = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
"""The parts of a fast tokenizer around its model."""

_KEPT = WeakIdKeyDictionary()  # processor: a digest of what was looked at, and that of all


def processor_of(processor: Any) -> str:
    """The class and a digest of the settings and the vocabulary; "none" without one."""
    if processor is None:
        return "none"
    looked_at = digest_of_value(_settings(processor, _some_of_vocabulary))
    known = _KEPT.get(processor)
    if known is None or known[0] != looked_at:
        known = _KEPT[processor] = looked_at, digest_of_value(_settings(processor, _vocabulary))
    return f"{type(processor).__name__} {known[1]}"


def chat_template_of(processor: Any) -> str:
    """A digest of the template or templates; "none" without one."""
    holders = (processor, getattr(processor, "tokenizer", None))
    templates = [getattr(holder, "chat_template", None) for holder in holders]
    return digest_of_value(templates) if any(templates) else "none"


def _settings(part: Any, vocabulary_of: Callable[[Any], Any]) -> Any:
    """A processor, or a part of one: its own attributes, and of a tokenizer the vocabulary."""
    held = {name: value for name, value in vars(part).items() if name[:1] != "_" and name not in NOT_SETTINGS}
    about: dict[str, Any] = {
        name: _settings(value, vocabulary_of) if _is_part(value) else value
        for name, value in held.items()
        if value is not None
    }
    if callable(getattr(part, "get_vocab", None)):
        about["vocabulary"] = vocabulary_of(part)
    return [_class_of(part), about]


def _class_of(part: Any) -> Any:
    """The class, and of one that is no library's the code.

    A processor of transformers is there with torchvision and without, as the same processor; pictures that it scales
    differ in the last bits.
    """
    return name_of(type(part)).removesuffix("Pil").removesuffix("Fast") if is_known(type(part)) else type(part)


def _is_part(value: Any) -> bool:
    """Whether it is a tokenizer or a processor of pictures, of videos, of sound."""
    return hasattr(value, "save_pretrained")


def _some_of_vocabulary(tokenizer: Any) -> Any:
    fast: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not hasattr(fast, "to_str"):
        return _vocabulary(tokenizer)
    n_pieces, inner = fast.get_vocab_size(with_added_tokens=False), fast.model
    names = [name for name in dir(inner) if name[:1] != "_"]
    about = {name: value for name in names if not callable(value := getattr(inner, name))}
    parts = [getattr(fast, name) for name in AROUND]
    around = [None if part is None else part.__getstate__() for part in parts]
    added = {index: repr(token) for index, token in fast.get_added_tokens_decoder().items()}
    some = [fast.id_to_token(index) for index in range(0, n_pieces, max(1, n_pieces // SOME))]
    ids = fast.encode(TEXT, add_special_tokens=False).ids
    return [id(fast), type(inner), n_pieces, about, around, added, some, ids, tokenizer.special_tokens_map]


def _vocabulary(tokenizer: Any) -> Any:
    fast: Any = getattr(tokenizer, "backend_tokenizer", None)
    special = getattr(tokenizer, "special_tokens_map", None)
    if hasattr(fast, "to_str"):
        text = fast.to_str()
        return [text[text.index('"added_tokens"') :], special]  # before it stands what the last call padded and cut to
    added = {index: repr(token) for index, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    pieces = getattr(getattr(tokenizer, "sp_model", None), "serialized_model_proto", bytes)()
    return [tokenizer.get_vocab(), added, special, pieces]
