"""What tokens say in words after each layer, as a logit lens or a latent lens has read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..errors import LensError, PromptError
from ..figures.canvas import canvases_of
from ..readouts.reading import Reading
from ..runs.files import check_same_model
from .sequence import TokenRow

if TYPE_CHECKING:
    from ..lens import Lens


def check_words(words: object, tokens: TokenRow, lens: Lens | None) -> Reading | None:
    """The reading that was given, if one was.

    Raises:
        LensError: it is none.
        PromptError: it is of another prompt.
        ScoreError: it is of another model.
    """
    if words is None:
        return None
    if not isinstance(words, Reading):
        raise LensError(
            f"words is what a logit lens or a latent lens has read, given {type(words).__name__}\n"
            '  view(prompt, lens, words=logit_lens(lens, prompt, rows="image"))'
        )
    if words.tokens != tokens.prompt.tokens or not _shows_the_same(words, tokens):
        raise PromptError("these words were read of another prompt\n  read them of this one: logit_lens(lens, prompt)")
    model = getattr(words, "model", None)
    if lens is not None and model:
        check_same_model("this reading of words", model, lens.identity)
    return words


def _shows_the_same(words: Reading, tokens: TokenRow) -> bool:
    """Whether a row shows the pictures that were read, as far as both are known; a question may be asked of many."""
    read, shown = words.canvases[tokens.row], canvases_of(tokens.prompt, tokens.row)
    if [canvas.name for canvas in read] != [canvas.name for canvas in shown]:
        return False
    pairs = [(one.pixels, other.pixels) for one, other in zip(read, shown, strict=True)]
    return all(one is None or other is None or torch.equal(one, other) for one, other in pairs)


def words_of(words: Reading | None, tokens: TokenRow) -> dict[str, Any] | None:
    """For the page: the layers, and by key the word after each and how strong it is, 0 to 1; each text once."""
    if words is None:
        return None
    texts: dict[str, int] = {}
    key_of = tokens.keys
    of: dict[int, list[list[float]]] = {}
    for layer in words.layers:
        for position, (text, strength) in words.by_position(tokens.row, words.best(layer, tokens.row)).items():
            number = texts.setdefault(text, len(texts))
            of.setdefault(key_of[position], []).append([number, round(float(strength), 4)])
    return {"layers": words.layers, "texts": list(texts), "of": of}
