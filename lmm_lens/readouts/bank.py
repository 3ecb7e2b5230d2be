"""A bank of words in context: the residual stream of every word of the user's own sentences, after every layer."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import HookError, PromptError
from ..hooks.heads import check_layer
from ..hooks.points import Read
from ..prompts.words import SPACELESS
from ..runs import files

if TYPE_CHECKING:
    from ..lens import Lens

KIND = "an embedding bank"
FIELDS = ("layers", "sentences", "words", "model")


@dataclass(frozen=True, eq=False)
class EmbeddingBank:
    """Words in context.

    Attributes:
        layers: after which the stream was read.
        vectors: Float[layer, word, d_model], each of length 1.
        sentences: the user's.
        words: the word that each token belongs to.
        sentence_of: Int[word], whose.
        model: the model's identity.
    """

    layers: tuple[int, ...]
    vectors: Float[Tensor, "layer word d_model"]
    sentences: tuple[str, ...]
    words: tuple[str, ...]
    sentence_of: Int[Tensor, " word"]
    model: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.vectors.shape[0] * self.vectors.shape[1]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: the vectors, and everything else as JSON in its header."""
        tensors = {"vectors": self.vectors, "sentence_of": self.sentence_of}
        files.write(path, KIND, tensors, {name: getattr(self, name) for name in FIELDS})

    @classmethod
    def load(cls, path: str | os.PathLike[str], lens: Lens | None = None) -> EmbeddingBank:
        """Read a bank back; `lens`, if given, must be of the model that made it.

        Raises:
            ScoreError: no such file, a truncated, damaged or changed one, one of another kind or another model.
        """
        tensors, about = files.read(path, KIND, ("vectors", "sentence_of"), FIELDS)
        with files.understood(path, KIND):
            if lens is not None:
                files.check_model(path, about["model"], lens.identity)
            layers, words = tuple(about["layers"]), tuple(about["words"])
            shape = {"layer": len(layers), "word": len(words), "d_model": None}
            files.check_numbers(path, "vectors", tensors["vectors"], shape)
            files.check_numbers(path, "sentence_of", tensors["sentence_of"], {"word": len(words)})
            sentences = tuple(about["sentences"])
            return cls(layers, tensors["vectors"], sentences, words, tensors["sentence_of"], dict(about["model"]))

    def __repr__(self) -> str:
        return (
            f"EmbeddingBank of {len(self.words)} words of {len(self.sentences)} sentences after {len(self.layers)} "
            f"layers: {len(self)} vectors of {self.vectors.shape[-1]}"
        )


def embedding_bank(
    lens: Lens, sentences: Sequence[str], *, layers: Iterable[int] | None = None, batch: int = 16
) -> EmbeddingBank:
    """Read the words of sentences, without pictures, as the model has them in context.

    Args:
        lens: the model, with a processor.
        sentences: the user's own; a word is found in the contexts that they have.
        layers: after which layers; all by default. The bank holds words x layers vectors.
        batch: sentences a forward.

    Raises:
        PromptError: no sentences, one without a word, or a batch of none.
        HookError: no layers, or one that does not exist.
    """
    texts = [sentences] if isinstance(sentences, str) else list(sentences)
    if not texts:
        raise PromptError("no sentences were given to make a bank of")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise PromptError(f"batch is how many sentences one forward reads, 1 or more, given {batch!r}")
    wanted = range(lens.n_layers) if layers is None else layers
    chosen = tuple(dict.fromkeys(check_layer(layer, lens.n_layers) for layer in wanted))
    if not chosen:
        raise HookError("no layers were given to read")
    vectors: list[list[Tensor]] = [[] for _ in chosen]
    words: list[str] = []
    owners: list[int] = []
    for start in range(0, len(texts), batch):
        prompt = lens.prompt(texts[start : start + batch], template=False)
        is_word = torch.tensor([[bool(piece.strip()) for piece in row] for row in prompt.pieces])
        for row in range(prompt.n_rows):
            own = words_around(prompt.pieces[row])
            found = [own[position] for position in is_word[row].nonzero().flatten().tolist()]
            if not found:
                raise PromptError(f"sentence {start + row}, {texts[start + row]!r}, has no word")
            words += found
            owners += [start + row] * len(found)
        run = lens.run(prompt, read=[Read("resid_post", chosen, rows=is_word)], logits="last")
        real = run.positions["resid_post"] >= 0
        for index, layer in enumerate(chosen):
            read = run.reads["resid_post", layer]
            vectors[index].append(torch.nn.functional.normalize(read[real.to(read.device)].float(), dim=-1).cpu())
    dtype = torch.float32 if lens.model.dtype == torch.float64 else lens.model.dtype
    whole = torch.stack([torch.cat(parts) for parts in vectors]).to(dtype)
    return EmbeddingBank(chosen, whole, tuple(texts), tuple(words), torch.tensor(owners), lens.identity)


def words_around(pieces: Sequence[bytes]) -> list[str]:
    """The whole word that each token is a part of: its neighbours up to the next space; empty for no text.

    >>> words_around([b"A", b" tri", b"angle", b"."])
    ['A', 'triangle', 'triangle', '.']
    """
    starts = [position for position, piece in enumerate(pieces) if _begins(pieces, position)] + [len(pieces)]
    found = [""] * len(pieces)
    for start, stop in itertools.pairwise(starts):
        word = b"".join(pieces[start:stop]).decode("utf-8", "replace").strip()
        found[start:stop] = [word] * (stop - start)
    return found


def _begins(pieces: Sequence[bytes], position: int) -> bool:
    """Whether a word begins with this token."""
    before, own = (pieces[i].decode("utf-8", "replace") if i >= 0 else "" for i in (position - 1, position))
    if not before or not own or before[-1].isspace() or own[0].isspace():
        return True
    return not all(letter == "�" or (letter.isalnum() and ord(letter) < SPACELESS) for letter in (before[-1], own[0]))
