"""What a processor makes of text and pictures, and how it lays out a chat."""

from __future__ import annotations

from typing import Any

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


def processor_of(processor: Any) -> str:
    """The class and a digest of the settings and the vocabulary; "none" without one."""
    return "none" if processor is None else f"{type(processor).__name__} {digest_of_value(_settings(processor))}"


def chat_template_of(processor: Any) -> str:
    """A digest of the template or templates; "none" without one."""
    holders = (processor, getattr(processor, "tokenizer", None))
    templates = [getattr(holder, "chat_template", None) for holder in holders]
    return digest_of_value(templates) if any(templates) else "none"


def _settings(part: Any) -> Any:
    """A processor, or a part of one: its own attributes, and of a tokenizer the vocabulary."""
    held = {name: value for name, value in vars(part).items() if name[:1] != "_" and name not in NOT_SETTINGS}
    about: dict[str, Any] = {
        name: _settings(value) if _is_part(value) else value for name, value in held.items() if value is not None
    }
    if callable(getattr(part, "get_vocab", None)):
        about["vocabulary"] = _vocabulary(part)
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


def _vocabulary(tokenizer: Any) -> Any:
    fast: Any = getattr(tokenizer, "backend_tokenizer", None)
    special = getattr(tokenizer, "special_tokens_map", None)
    if hasattr(fast, "to_str"):
        text = fast.to_str()
        return [text[text.index('"added_tokens"') :], special]  # before it stands what the last call padded and cut to
    added = {index: repr(token) for index, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    pieces = getattr(getattr(tokenizer, "sp_model", None), "serialized_model_proto", bytes)()
    return [tokenizer.get_vocab(), added, special, pieces]
