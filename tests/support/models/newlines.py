"""Which tokens of the tiny models' prompts are patches and which only break rows, counted by hand."""

from collections.abc import Sequence

from .parts import CLOSE, IMAGE, OPEN

# LLaVA-1.6 ends each row of crops in a newline vector that carries the image token too
NEWLINES = {16 + 8 * 9: range(24, 88, 9), 16 + 8 * 7: range(22, 72, 7)}  # by how many image tokens a picture has


def patches(ids: Sequence[int]) -> list[int]:
    """The positions of patch tokens in one row of token ids."""
    found = [i for i, token in enumerate(ids) if token == IMAGE]
    newlines = NEWLINES.get(len(found), ())
    return [position for index, position in enumerate(found) if index not in newlines]


def breaks(ids: Sequence[int]) -> set[int]:
    """Where Pixtral's row breaks are: one token after each run of image tokens, also between two of them."""
    after = {i + 1 for i, token in enumerate(ids[:-1]) if token == IMAGE and ids[i + 1] in (OPEN, CLOSE)}
    between = any(ids[i] == OPEN and i + 1 < len(ids) and ids[i + 1] == IMAGE for i in after)
    return after if between else set()
