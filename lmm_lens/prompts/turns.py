"""Where the answer turn of a prompt begins, by what the chat template itself writes around turns.

A conversation is rendered with words that no template knows, and what stands between them is read off: what closes a
question, what opens the answer, what opens the next question. So no template is known by name. In a prompt the last of
these that opens an answer is looked for in its decoded text, where it counts for nothing how the words around it were
cut into tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

FIRST, ANSWER, SECOND = "Qx7", "Ax7", "Rx7"  # words that no template writes


@dataclass(frozen=True)
class Turns:
    """What a chat template writes around turns, white space left out; all of it empty where there is no template.

    Attributes:
        ids: the tokens that open an answer at the end of a prompt.
        answer: what an answer turn begins with; where a template writes nothing there, what closes the question.
        is_before: whether the turn begins before `answer`, not behind it.
        lead: characters of white space before `answer` that belong to it.
        question: what the next question begins with.
        closes: what stands behind a question, before an answer is opened.
    """

    ids: tuple[int, ...] = ()
    answer: str = ""
    is_before: bool = True
    lead: int = 0
    question: str = ""
    closes: str = ""

    @classmethod
    def of(cls, processor: Any, tokenizer: Any) -> Turns:
        """Those of a processor's chat template."""
        if getattr(processor, "chat_template", None) is None:
            return cls()

        def rendered(*words: str, **options: bool) -> str:
            roles = ("user", "assistant", "user")
            parts: list[Any] = [[{"type": "text", "text": word}] for word in words]
            for contents in (parts, words):  # some templates know plain words alone
                chat = [{"role": role, "content": each} for role, each in zip(roles, contents, strict=False)]
                try:
                    text: str = processor.apply_chat_template(chat, tokenize=False, **options)
                except Exception:  # a template's own, or of a template that meets what it does not know
                    continue
                if all(word in text for word in words) and "'type'" not in text:
                    return text
            return ""

        asked, opened = rendered(FIRST), rendered(FIRST, add_generation_prompt=True)
        answered, again = rendered(FIRST, ANSWER), rendered(FIRST, ANSWER, SECOND)
        closes, between = _after(asked, FIRST), _after(answered, FIRST).partition(ANSWER)[0]
        head = _after(opened, FIRST)
        shared = head[: _n_shared(head, between)] if head and between else head
        # the parameter that opens an answer is unknown to some templates, and others write nothing there
        heads = (text[_n_shared(text, closes) :] for text in (shared, between))
        opener = next((text for text in heads if text.strip()), "")
        mark = _first_line(opener) or _first_line(closes)
        follows = _after(again, ANSWER).partition(SECOND)[0].removeprefix(_after(answered, ANSWER))
        return cls(
            ids=_ids_of(tokenizer, opened, asked),
            answer=_as_decoded(tokenizer, mark),
            is_before=bool(_first_line(opener)),
            lead=len(opener) - len(opener.lstrip()),
            question=_as_decoded(tokenizer, _first_line(follows)),
            closes=_as_decoded(tokenizer, closes.strip()),
        )

    def n_answer(self, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int:
        """How many of a prompt's last tokens are its answer turn: what opens it, and what of the answer is there.

        0 where the last turn is a question.

        Args:
            ids: the tokens after the last picture, without padding.
            decode: their text, special tokens included.
        """
        if self.ids and tuple(ids[-len(self.ids) :]) == self.ids:
            return len(self.ids)
        text = _squeezed(decode(ids)) if self.answer else ""
        start = text.rfind(self.answer)
        end = start + len(self.answer)
        if start < 0 or not text or (self.question and self.question in text[end:]):
            return 0
        border = start if self.is_before else end
        n = len(ids)
        while n and len(_squeezed(decode(ids[:n]))) > border:
            n -= 1
        lead = self.lead if self.is_before else 0
        while n and lead > 0 and (blank := decode(ids[n - 1 : n])) and blank.isspace():
            n, lead = n - 1, lead - len(blank)
        return len(ids) - n


def _after(text: str, word: str) -> str:
    return text.partition(word)[2]


def _first_line(text: str) -> str:
    """Its first line with words: the rest of an opener (`<think>`) may be left out of a prompt."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _as_decoded(tokenizer: Any, text: str) -> str:
    """A text as it looks after it went through the tokenizer; empty where it does not know it."""
    if not text:
        return ""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return "" if getattr(tokenizer, "unk_token_id", None) in ids else _squeezed(decoder(tokenizer)(ids))


def decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """The text of tokens as it is, nothing left out or tidied."""

    def decode(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    return decode


def _ids_of(tokenizer: Any, opened: str, asked: str) -> tuple[int, ...]:
    """The tokens that only the text with an opened answer ends with."""
    with_turn, without = (tokenizer(text)["input_ids"] for text in (opened, asked))
    return tuple(with_turn[_n_shared(with_turn, without) :])


def _n_shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many entries two sequences begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
