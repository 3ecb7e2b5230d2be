"""Conversations: messages with roles, as Hugging Face and OpenAI write them, put into the model's chat format.

A chat template may drop messages, move pictures past words, or write one role as another, without a word. So every
conversation is rendered twice: once with marks in place of its words, to see where everything went.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PromptError, unknown
from .family import Family

Messages = Sequence[Mapping[str, Any]]
"""A conversation as users write it: {"role": ..., "content": words, or a list of parts with a type}."""
Part = dict[str, str]
"""{"type": "text", "text": ...}, {"type": "image"} or {"type": "video"}, as templates take them."""
SOURCES = {
    "image": ("image", "url", "path", "base64", "image_url"),
    "video": ("video", "url", "path", "base64", "video_url"),
}
TYPES = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "video": "video",
    "video_url": "video",
}
"""How parts name what they are, and what they are."""


@dataclass(frozen=True)
class Message:
    """What one side says.

    Attributes:
        role: who.
        parts: words and places of pictures and videos, in order.
    """

    role: str
    parts: tuple[Part, ...]

    @property
    def is_words(self) -> bool:
        """Whether there is nothing but words."""
        return all(part["type"] == "text" for part in self.parts)


@dataclass(frozen=True)
class Conversation:
    """Messages in order, and what is to be seen in them.

    Attributes:
        messages: of which the last may be the beginning of the answer.
        given: for "image" and "video", what stands at each of its places; None where a place is all there is.
    """

    messages: tuple[Message, ...]
    given: Mapping[str, tuple[Any, ...]]

    def filled(self, kind: str, others: Sequence[Any]) -> list[Any]:
        """What is at each place, the empty ones filled in order.

        Raises:
            PromptError: there are more or fewer than empty places.
        """
        n_empty = sum(each is None for each in self.given[kind])
        if n_empty != len(others):
            raise PromptError(
                f"the messages have {n_empty} {kind} parts without a source, but {kind}s={len(others)} were given\n"
                f"  put each {kind} into its part, as in {{'type': '{kind}', '{kind}': ...}}, or give one a part"
            )
        rest = iter(others)
        return [next(rest) if each is None else each for each in self.given[kind]]


def are_messages(text: Any) -> bool:
    """Whether this is a conversation, or a batch of them, rather than texts."""
    first = text[0] if isinstance(text, Sequence) and not isinstance(text, str) and len(text) else None
    batched = isinstance(first, (list, tuple)) and bool(first) and not isinstance(first[0], str)
    return isinstance(first, Mapping) or batched


def read(adapter: Family, messages: Any) -> Conversation:
    """A conversation from messages.

    Raises:
        PromptError: something in them is not understood, so that it would be left out.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise PromptError(f"expected a list of messages, {FORM}, given {messages!r:.80}")
    found = [_message(adapter, index, message) for index, message in enumerate(messages)]
    given: dict[str, tuple[Any, ...]] = {}
    for kind in SOURCES:
        given[kind] = tuple(source for _, parts in found for part, source in parts if part["type"] == kind)
    return Conversation(tuple(Message(role, tuple(part for part, _ in parts)) for role, parts in found), given)


FORM = "{'role': 'user', 'content': 'words, or a list of parts'}"


def _message(adapter: Family, index: int, message: Any) -> tuple[str, list[tuple[Part, Any]]]:
    """Its role, and its parts with what they hold."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise PromptError(f"expected messages like {FORM}, message {index} is {message!r:.80}")
    others = sorted(key for key, value in message.items() if key not in ("role", "content") and value is not None)
    if others:
        raise PromptError(
            f"message {index} ({message['role']}) has {', '.join(others)}, which would be left out\n"
            "  expected role and content alone: write what the model should read into its content"
        )
    content = message.get("content")
    if isinstance(content, str):
        parts = [(part, None) for part in split(adapter, content)]
    elif isinstance(content, (list, tuple)):
        parts = [pair for each in content for pair in _parts(adapter, index, each)]
    else:
        parts = []
    if not parts:
        raise PromptError(f"message {index} ({message['role']}) says nothing: its content is {content!r:.80}")
    return message["role"], parts


def _parts(adapter: Family, index: int, part: Any) -> Iterator[tuple[Part, Any]]:
    """A part of a message with its source; words that hold slots are several."""
    if isinstance(part, str):
        part = {"type": "text", "text": part}
    if not isinstance(part, Mapping) or part.get("type") not in TYPES:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise PromptError(f"message {index} has a part of the {unknown('type', kind, TYPES)}")
    kind = TYPES[part["type"]]
    held = {key: value for key, value in part.items() if key != "type" and value is not None}
    known = ("text",) if kind == "text" else SOURCES[kind]
    source = next((held.pop(key) for key in known if key in held), None)
    if isinstance(source, Mapping) and "url" in source:  # as OpenAI nests it
        held.update((key, value) for key, value in source.items() if key != "url" and value != "auto")
        source = source["url"]
    if held:
        raise PromptError(
            f"a part of message {index}, {part['type']!r}, has {', '.join(sorted(held))}, which would be left out\n"
            f"  expected one of {', '.join(known)}; options of the processor are for Lens.from_pretrained"
        )
    if kind != "text":
        yield {"type": kind}, source
    elif isinstance(source, str) and source.strip():
        yield from ((each, None) for each in split(adapter, source))
    else:
        raise PromptError(f"a part of message {index} has no words: its text is {source!r}")


def split(adapter: Family, text: str) -> list[Part]:
    """A text as parts, with a place of its own for every slot in it."""
    named = {slot: kind for slot, kind in ((adapter.image_slot, "image"), (adapter.video_slot, "video")) if slot}
    if not named or not any(slot in text for slot in named):
        return [{"type": "text", "text": text}] if text.strip() else []
    pieces = re.split("(" + "|".join(re.escape(slot) for slot in named) + ")", text)
    parts = ({"type": named[p]} if p in named else {"type": "text", "text": p.strip()} for p in pieces)
    return [part for part in parts if part.get("text", "x")]


def rendered(adapter: Family, messages: Sequence[Message]) -> str:
    """The messages in the model's chat format, with the answer turn opened, or left open where the answer has begun.

    Raises:
        PromptError: the chat template drops or moves something, or takes one role for another.
    """
    name, problem = type(adapter.processor).__name__, ""
    for in_words in (False, True):
        try:
            text = _applied(adapter, messages, in_words)
            marked = _applied(adapter, [*_marked(messages)], in_words)
        except Exception as error:  # a template's own, or of one that meets what it does not know
            problem = problem or f"the chat template of {name} refuses this conversation: {error}".splitlines()[0]
            continue
        found = _moved(adapter, messages, marked, name) or _changed(messages, text, name)
        found = found or _taken_for_another(adapter, messages, in_words, name)
        if not found:
            return text
        problem = problem or found
        if all(not message.is_words for message in messages):
            break
    raise PromptError(problem)


def _applied(adapter: Family, messages: Sequence[Message], in_words: bool, **options: Any) -> str:
    """What the template makes of messages, whose words are parts or, for templates that know no parts, a plain text."""
    chat: list[dict[str, Any]] = []
    for message in messages:
        words = "".join(part["text"] for part in message.parts) if in_words and message.is_words else None
        chat.append({"role": message.role, "content": words if words is not None else [dict(p) for p in message.parts]})
    begun = messages[-1].role == "assistant"
    options = options or {"continue_final_message": begun, "add_generation_prompt": not begun}
    text: str = adapter.processor.apply_chat_template(chat, tokenize=False, **options)
    return text


def _marked(messages: Sequence[Message]) -> Iterator[Message]:
    """The messages with a number in place of each part's words, which may also be the template's own."""
    index = 0
    for message in messages:
        parts = []
        for part in message.parts:
            if part["type"] == "text":
                part, index = {"type": "text", "text": f"(text {index})"}, index + 1
            parts.append(part)
        yield Message(message.role, tuple(parts))


def _moved(adapter: Family, messages: Sequence[Message], marked: str, name: str) -> str:
    """What a template dropped or moved; nothing if all is in its place."""
    if re.search("['\"]type['\"]: ['\"]text['\"]", marked):
        return f"the chat template of {name} knows no parts of messages, and writes them as Python does\n  {BY_HAND}"
    said = [(m.role, part["text"].strip()) for m in messages for part in m.parts if part["type"] == "text"]
    starts = [marked.find(f"(text {index})") for index in range(len(said))]
    for index, ((role, words), start) in enumerate(zip(said, starts, strict=True)):
        if start < 0:
            return (
                f"the chat template of {name} leaves out what {role!r} says: {words!r:.80}\n"
                f"  put it into a user's message, or {BY_HAND}"
            )
        if start < max(starts[: index + 1]) or marked.count(f"(text {index})") > 1:
            return (
                f"the chat template of {name} moves or repeats what {role!r} says: {words!r:.80}\n"
                f"  put it into the message that it should be part of, or {BY_HAND}"
            )
    slots = [slot for slot in (adapter.image_slot, adapter.video_slot) if slot]
    n_before, passed = 0, iter(zip(said, starts, strict=True))
    for part in (part for message in messages for part in message.parts):
        if part["type"] != "text":
            n_before += 1
            continue
        (_, words), start = next(passed)
        n_shown = sum(marked.count(slot, 0, start) for slot in slots)
        if n_shown != n_before:
            return (
                f"the chat template of {name} moves pictures past words: {n_before} stand before {words!r:.80} in the "
                f"text, {n_shown} in the prompt it makes\n"
                f"  {BY_HAND}, or leave the slots out: pictures come first"
            )
    n_shown = sum(marked.count(slot) for slot in slots)
    if n_shown != n_before:
        return f"the chat template of {name} writes {n_shown} of {n_before} pictures and videos\n  {BY_HAND}"
    return ""


BY_HAND = "give template=False and the chat format in the text"


def _changed(messages: Sequence[Message], text: str, name: str) -> str:
    """Words that a template changed or cut, such as thoughts of turns that are over."""
    end = 0
    for message in messages:
        for part in message.parts:
            words = part.get("text", "").strip()
            start = text.find(words, end)
            if start < 0:
                return f"the chat template of {name} changes what {message.role!r} says: {words!r:.80}\n  {BY_HAND}"
            end = start + len(words)
    return ""


def _taken_for_another(adapter: Family, messages: Sequence[Message], in_words: bool, name: str) -> str:
    """A role that a template writes as if another had spoken."""
    closed = {"add_generation_prompt": False}
    for role in dict.fromkeys(message.role for message in messages):
        for other in ("user", "assistant"):
            if role in ("user", other):
                continue
            swapped = [Message(other, m.parts) if m.role == role else m for m in messages]
            try:
                same = _applied(adapter, messages, in_words, **closed) == _applied(adapter, swapped, in_words, **closed)
            except Exception:  # it tells them apart, then
                continue
            if same:
                return (
                    f"the chat template of {name} writes messages of {role!r} as if {other!r} had said them\n"
                    f"  put them into a user's message, or {BY_HAND}"
                )
    return ""
