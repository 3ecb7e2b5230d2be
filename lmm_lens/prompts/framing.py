"""Which tokens of a question the chat template wrote: soft prompts, newlines, and what closes a turn.

No template is known by name. Special tokens are never a user's words; at the edges of a question white space is not
either; and what a template writes behind a question in plain words is read off it (`Turns.closes`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The tokens that a tokenizer calls special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(getattr(tokenizer, "all_special_ids", ())) | {i for i, token in added.items() if token.special}


def framing(
    ids: Sequence[int], special: frozenset[int], decode: Callable[[Sequence[int]], str], closes: str
) -> list[int]:
    """Which tokens of a question are the template's, counted from its first.

    Args:
        ids: the tokens between the last picture and the answer turn.
        special: tokens that are never words.
        decode: their text, special tokens included.
        closes: what the template writes behind a question, white space left out.
    """
    n = len(ids)
    bare = [token in special or not decode([token]).strip() for token in ids]
    first = next((i for i in range(n) if not bare[i]), n)
    end = next((i + 1 for i in reversed(range(n)) if not bare[i]), first)
    words = "".join(decode([token]) for token in ids[end:] if token in special)
    plain = closes.removesuffix("".join(words.split()))  # what of it is no special token
    if plain:
        text = "".join(decode(ids[first:end]).split())
        border = len(text) - len(plain)
        if border > 0 and text.endswith(plain):
            at = end
            while at > first and len("".join(decode(ids[first:at]).split())) > border:
                at -= 1
            if len("".join(decode(ids[first:at]).split())) == border:  # no token holds both
                end = at
                while end > first and not decode([ids[end - 1]]).strip():
                    end -= 1
    return [i for i in range(n) if not first <= i < end or ids[i] in special]
