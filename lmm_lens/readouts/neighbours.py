"""What a latent lens has read: neighbours of tokens in a bank; tables, figures, files."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from ..runs import files
from .reading import Reading

if TYPE_CHECKING:
    import pandas

    from ..lens import Lens

KIND = "a latent lens"
TENSORS = ("positions", "neighbours", "cosines", "sentence_of")
FIELDS = ("layers", "tokens", "canvases", "bank_layers", "words", "sentences", "model")


class Neighbour(NamedTuple):
    """A word in context that a token is near to.

    Attributes:
        word: the whole word.
        sentence: that it stands in.
        layer: of the bank.
        cosine: with the token, -1 to 1.
    """

    word: str
    sentence: str
    layer: int
    cosine: float


@dataclass(frozen=True, eq=False)
class LatentLens(Reading):
    """Tokens read by their nearest words in context, after each layer.

    Attributes:
        layers, positions, tokens, canvases: which tokens were read after which layers, as in `Reading`.
        neighbours: Int[layer, batch, query, top], indices into the bank, its layers one after the other, nearest first;
            -1 where there is no token.
        cosines: Float[layer, batch, query, top]; NaN there.
        bank_layers, words, sentences, sentence_of: of the bank.
        model: the model's identity.
    """

    neighbours: Int[Tensor, "layer batch query top"]
    cosines: Float[Tensor, "layer batch query top"]
    bank_layers: tuple[int, ...]
    words: tuple[str, ...] = field(repr=False)
    sentences: tuple[str, ...] = field(repr=False)
    sentence_of: Int[Tensor, " word"] = field(repr=False)
    model: dict[str, Any] = field(default_factory=dict)

    def near(self, layer: int, position: int, row: int = 0) -> tuple[Neighbour, ...]:
        """The nearest words of one token after a layer.

        Raises:
            HookError: the layer or the token was not read.
            PromptError: there is no such batch row.
        """
        at, query = self.layer_index(layer), self.query_index(position, row)
        entries = zip(self.neighbours[at, row, query].tolist(), self.cosines[at, row, query].tolist(), strict=True)
        return tuple(self._neighbour(entry, cosine) for entry, cosine in entries)

    def _neighbour(self, entry: int, cosine: float) -> Neighbour:
        layer, word = divmod(entry, len(self.words))
        sentence = self.sentences[int(self.sentence_of[word])]
        return Neighbour(self.words[word], sentence, self.bank_layers[layer], cosine)

    def best(self, layer: int, row: int = 0) -> list[tuple[str, float]]:
        """The nearest word of each token that was read, and the cosine, 0 where it is below."""
        self.check_row(row)
        at = self.layer_index(layer)
        pairs = zip(self.neighbours[at, row, :, 0].tolist(), self.cosines[at, row, :, 0].tolist(), strict=True)
        return [(self.words[entry % len(self.words)], max(0.0, cosine)) for entry, cosine in pairs if entry >= 0]

    def to_pandas(self) -> pandas.DataFrame:
        """One row a layer, token and neighbour: the word, its sentence, the bank's layer, and the cosine."""
        import pandas

        rows = []
        for layer in self.layers:
            for row, query in (self.positions >= 0).nonzero().tolist():
                position = int(self.positions[row, query])
                for rank, near in enumerate(self.near(layer, position, row), 1):
                    rows.append((layer, row, position, rank, near.word, near.cosine, near.layer, near.sentence))
        names = ["layer", "row", "position", "rank", "word", "cosine", "bank layer", "sentence"]
        return pandas.DataFrame(rows, columns=names)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: numbers and pictures, and everything else as JSON in its header."""
        tensors = {name: getattr(self, name) for name in TENSORS} | self.pictures()
        about = {name: getattr(self, name) for name in ("bank_layers", "words", "sentences", "model")}
        files.write(path, KIND, tensors, {**self.about(), **about})

    @classmethod
    def load(cls, path: str | os.PathLike[str], lens: Lens | None = None) -> LatentLens:
        """Read one back; `lens`, if given, must be of its model.

        Raises:
            ScoreError: no such file, a truncated, damaged or changed one, one of another kind or another model.
        """
        tensors, about = files.read(path, KIND, None, FIELDS)
        with files.understood(path, KIND):
            if lens is not None:
                files.check_model(path, about["model"], lens.identity)
            own = cls.restored(path, about, tensors)
            batch, query = own["positions"].shape
            shape = {"layer": len(own["layers"]), "batch": batch, "query": query, "top": None}
            for name in ("neighbours", "cosines"):
                files.check_numbers(path, name, tensors[name], shape)
            own |= {name: tuple(about[name]) for name in ("bank_layers", "words", "sentences")}
            own |= {name: tensors[name] for name in TENSORS[1:]}
            return cls(**own, model=dict(about["model"]))

    def __repr__(self) -> str:
        n, layer = int((self.positions >= 0).sum()), self.layers[-1]
        rows = range(len(self.positions))
        common = Counter(word for row in rows for word, _ in self.best(layer, row)).most_common(5)
        said = ", ".join(f"{word!r} {count}" for word, count in common)
        mean = float(self.cosines[-1, :, :, 0].nanmean())
        return (
            f"LatentLens: {n} tokens after layers {self.layers[0]} to {layer}, by {len(self.words)} words of "
            f"{len(self.sentences)} sentences\n  nearest after layer {layer}: {said}; mean cosine {mean:.2f}"
        )

    def _repr_html_(self) -> str:
        return self.to_pandas().head(20).round(3).to_html(index=False)
