"""Which tokens stand for a word: its first subword with a leading space and without, as the vocabulary has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..answers.contrast import answer_token
from ..errors import ScoreError
from ..prompts.words import style_of, text_of

if TYPE_CHECKING:
    from ..lens import Lens


class Form(NamedTuple):
    """One token that a word begins with.

    Attributes:
        word: as it was asked for.
        token: id.
        text: of the token, a leading space included.
        is_whole: whether the token is all of the word.
    """

    word: str
    token: int
    text: str
    is_whole: bool


def forms_of(lens: Lens, words: Sequence[str | int], n_vocab: int) -> tuple[Form, ...]:
    """The forms of words, in order, each word once; a token id is a form of its own.

    Raises:
        ScoreError: a word is no text, the vocabulary does not have it, or there is no processor to read it.
    """
    found: list[Form] = []
    for word in dict.fromkeys(each.strip() or each if isinstance(each, str) else each for each in words):
        if not isinstance(word, str):
            token = answer_token(lens, word, n_vocab)
            found.append(Form(f"#{token}", token, token_name(lens, token), True))
            continue
        tokenizer = lens.adapter.tokenizer
        if tokenizer is None:
            raise ScoreError(f"the word {word!r} is text, but this lens has no processor to read it: give token ids")
        if not word.strip():
            raise ScoreError(f"expected a word, given {word!r}")
        found += _forms(lens, word)
    return tuple(found)


def _forms(lens: Lens, word: str) -> list[Form]:
    tokenizer = lens.adapter.tokenizer
    style = style_of(tokenizer)
    ids: list[int] = []
    for written in (word, f" {word}"):
        of_text = tokenizer(written, add_special_tokens=False)["input_ids"]
        # sentencepiece writes the space as a token of its own where two of them meet
        ids += [token for token in of_text if _text(tokenizer, token, style).strip()][:1]
    if style == "pieces":  # whose words all begin with a space, but in the middle of one
        ids += [tokenizer.convert_tokens_to_ids(word)]
    known = [token for token in dict.fromkeys(ids) if token is not None and token != tokenizer.unk_token_id]
    if not known:
        raise ScoreError(f"{word!r} is no token of this model: its tokenizer reads it as {tokenizer.unk_token!r}")
    forms = []
    for token in known:
        text = _text(tokenizer, token, style)
        forms.append(Form(word, int(token), text, text.strip() == word))
    return forms


def token_name(lens: Lens, token: int) -> str:
    """A token as text, a leading space included; its number without a processor."""
    tokenizer = lens.adapter.tokenizer
    return f"#{token}" if tokenizer is None else _text(tokenizer, token, style_of(tokenizer))


def token_names(lens: Lens, tokens: Sequence[int]) -> dict[int, str]:
    """Texts of tokens by id."""
    tokenizer = lens.adapter.tokenizer
    if tokenizer is None:
        return {token: f"#{token}" for token in tokens}
    style = style_of(tokenizer)
    return {token: _text(tokenizer, token, style) for token in tokens}


def _text(tokenizer: object, token: int, style: str) -> str:
    raw = tokenizer.convert_ids_to_tokens(token)  # type: ignore[attr-defined]
    if raw is None:  # an output embedding may have more rows than the vocabulary has tokens
        return f"#{token}"
    text = text_of(str(raw), style).decode("utf-8", "replace")
    return text[1:] if style in ("words", "wordpiece") and text.startswith(" ") else text
