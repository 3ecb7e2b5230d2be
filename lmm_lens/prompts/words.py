"""Where a word stands in a prompt: its tokens, however it was cut into them, every time it occurs.

Each token is kept as the bytes of text that it stands for, so that words are looked for in the text itself. A word ends
where letters or digits end, so "angle" is not found in "triangle"; scripts that write no spaces have no such borders.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from ..errors import PromptError

NO_TEXT = b""
"""What stands for a token that is no text: visual ones, markers, padding, special tokens."""
SPACELESS = 0x2E80  # from here on scripts write words without spaces between them
N_LISTED = 12


def style_of(tokenizer: Any) -> str:
    """How a vocabulary writes text: "bytes" (a letter a byte), "pieces" (sentencepiece), "words" or "wordpiece"."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return "bytes" if hasattr(tokenizer, "byte_decoder") else "pieces"
    kind = type(core.model).__name__
    if kind in ("WordLevel", "WordPiece"):
        return {"WordLevel": "words", "WordPiece": "wordpiece"}[kind]
    return "bytes" if b"ByteLevel" in bytes(core.decoder.__getstate__() if core.decoder else b"") else "pieces"


def text_of(token: str, style: str) -> bytes:
    """The text of one token of a vocabulary, a leading space included.

    >>> text_of("Ġcaf", "bytes"), text_of("Ã©", "bytes"), text_of("▁tri", "pieces"), text_of("red", "words")
    (b' caf', b'\\xc3\\xa9', b' tri', b' red')
    """
    if style == "bytes":
        known = [BYTES.get(letter) for letter in token]
        return token.encode() if None in known else bytes(byte for byte in known if byte is not None)
    if style == "pieces":
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
        return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
    if style == "wordpiece" and token.startswith("##"):
        return token[2:].encode()
    return f" {token}".encode()


def _byte_table() -> dict[str, int]:
    """The letters that byte-level vocabularies write bytes with: printable ones as themselves, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES = _byte_table()


def find(pieces: Sequence[bytes], text: str, row: int) -> list[tuple[int, ...]]:
    """The positions of each occurrence of a word or a phrase, in order.

    Args:
        pieces: the text of each token of the row, `NO_TEXT` where there is none.
        text: as people write it; spaces around it count for nothing, those within it for any white space. Where it
            does not occur as it is written, capitals count for nothing.
        row: of the batch, for the error.

    Raises:
        PromptError: it does not occur.
    """
    words = text.split()
    if not words:
        raise PromptError(f"expected a word of the prompt, given {text!r}")
    heard, begins, of_byte = _joined(pieces)
    pattern = r"\s+".join(map(re.escape, words))
    for flags in (0, re.IGNORECASE):
        hits = [m.span(1) for m in re.finditer(f"(?=({pattern}))", heard, flags)]
        hits = [(start, end) for start, end in hits if _ends(heard, start) and _ends(heard, end)]
        if hits:
            return [tuple(dict.fromkeys(of_byte[begins[start] : begins[end]])) for start, end in hits]
    raise PromptError(_absent(text, heard, row))


def _joined(pieces: Sequence[bytes]) -> tuple[str, list[int], list[int]]:
    """The text of a row, where in its bytes each character begins, and the token of each byte; no text is a zero."""
    whole, of_byte = bytearray(), []
    for position, piece in enumerate(pieces):
        own = piece or b"\0"
        whole += own
        of_byte += [position] * len(own)
    text = whole.decode("utf-8", "surrogateescape")
    begins = [0]
    for letter in text:
        begins.append(begins[-1] + len(letter.encode("utf-8", "surrogateescape")))
    return text, begins, of_byte


def _ends(text: str, at: int) -> bool:
    """Whether a word may begin or end here."""
    if not 0 < at < len(text):
        return True
    return not all(letter.isalnum() and ord(letter) < SPACELESS for letter in (text[at - 1], text[at]))


def _absent(text: str, heard: str, row: int) -> str:
    words = list(dict.fromkeys(re.findall(r"\w+", heard)))
    near = difflib.get_close_matches(text.strip(), words, n=3, cutoff=0.5)
    if near:
        return f"{text!r} does not occur in row {row} of the prompt\n  near it: {', '.join(map(repr, near))}"
    listed = " ".join(words[-N_LISTED:])
    return f"{text!r} does not occur in row {row} of the prompt\n  its last words: {listed}"
