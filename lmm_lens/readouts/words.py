"""What a logit lens has read: words, ranks, probabilities, entropies; tables, figures, files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ScoreError, unknown
from ..runs import files
from .forms import Form
from .reading import Reading

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from ..lens import Lens

KIND = "a logit lens"
TENSORS = ("positions", "top", "top_logits", "log_sum", "entropy", "logits", "ranks")
FIELDS = ("layers", "tokens", "forms", "texts", "canvases", "translated", "model")


@dataclass(frozen=True, eq=False)
class LogitLens(Reading):
    """Tokens read as words after each layer.

    Attributes:
        layers, positions, tokens, canvases: which tokens were read after which layers, as in `Reading`.
        top: Int[layer, batch, query, top], ids of the likeliest words, best first; -1 where there is no token.
        top_logits: Float[layer, batch, query, top], their logits; NaN there, as in the rest.
        log_sum: Float[layer, batch, query], the logarithm of the sum of all exponentials: logit - log_sum is a
            log-probability.
        entropy: Float[layer, batch, query], of the distribution over all words, in nats.
        forms: the tokens that the given words begin with, with a leading space and without.
        logits: Float[layer, batch, query, form], theirs.
        ranks: Int[layer, batch, query, form], theirs among all words, 1 being the likeliest.
        texts: id to text of every word in `top`.
        translated: whether translators were applied.
        model: the model's identity.
    """

    top: Int[Tensor, "layer batch query top"]
    top_logits: Float[Tensor, "layer batch query top"]
    log_sum: Float[Tensor, "layer batch query"]
    entropy: Float[Tensor, "layer batch query"]
    forms: tuple[Form, ...]
    logits: Float[Tensor, "layer batch query form"]
    ranks: Int[Tensor, "layer batch query form"]
    texts: Mapping[int, str] = field(repr=False)
    translated: bool = False
    model: dict[str, Any] = field(default_factory=dict)

    # ------------------------------------------------------------------ numbers

    @property
    def probabilities(self) -> Float[Tensor, "layer batch query form"]:
        """Of each form of the given words."""
        return (self.logits - self.log_sum[..., None]).exp()

    def rank(self, word: str | int) -> Int[Tensor, "layer batch query"]:
        """The better rank of a word's forms, 1 being the likeliest of all words; -1 where there is no token.

        Here and below a word is one of those given, as text or as the token id that was given.
        """
        return self.ranks[..., self._forms(word)].amin(-1)

    def logit(self, word: str | int) -> Float[Tensor, "layer batch query"]:
        """The larger logit of a word's forms."""
        return self.logits[..., self._forms(word)].amax(-1)

    def probability(self, word: str | int) -> Float[Tensor, "layer batch query"]:
        """The probabilities of a word's forms together."""
        return self.probabilities[..., self._forms(word)].sum(-1)

    def words(self, layer: int, position: int, row: int = 0) -> tuple[tuple[str, float], ...]:
        """The likeliest words of one token after a layer, with their probabilities.

        Raises:
            HookError: the layer or the token was not read.
            PromptError: there is no such batch row.
        """
        at, query = self.layer_index(layer), self.query_index(position, row)
        logits = self.top_logits[at, row, query] - self.log_sum[at, row, query]
        ids = self.top[at, row, query].tolist()
        return tuple((self.texts[token], float(p)) for token, p in zip(ids, logits.exp(), strict=True))

    def best(self, layer: int, row: int = 0) -> list[tuple[str, float]]:
        """The likeliest word of each token that was read, and its probability."""
        self.check_row(row)
        at = self.layer_index(layer)
        strengths = (self.top_logits[at, row, :, 0] - self.log_sum[at, row]).exp().tolist()
        ids = self.top[at, row, :, 0].tolist()
        return [(self.texts[token], p) for token, p in zip(ids, strengths, strict=True) if token >= 0]

    def _forms(self, word: str | int) -> list[int]:
        name = word.strip() if isinstance(word, str) else f"#{word}"
        found = [index for index, form in enumerate(self.forms) if form.word == name]
        if not found:
            known = list(dict.fromkeys(form.word for form in self.forms))
            raise ScoreError(
                f"{unknown('word', word, known)}\n  name it when reading: logit_lens(..., words=[{word!r}])"
            )
        return found

    # ------------------------------------------------------------------ tables

    def to_pandas(self) -> pandas.DataFrame:
        """One row a layer and token: its likeliest words, entropy, and rank, logit and probability of given words."""
        import pandas

        named = list(dict.fromkeys(form.word for form in self.forms))
        numbers = {word: (self.rank(word), self.logit(word), self.probability(word)) for word in named}
        rows = []
        for at, layer in enumerate(self.layers):
            for row, query in (self.positions >= 0).nonzero().tolist():
                position = int(self.positions[row, query])
                entry: dict[str, Any] = {"layer": layer, "row": row, "position": position}
                entry["token"] = self.tokens[row][position]
                best = self.top[at, row, query].tolist()
                entry |= {f"top {i + 1}": self.texts[token] for i, token in enumerate(best)}
                entry["probability"] = float((self.top_logits[at, row, query, 0] - self.log_sum[at, row, query]).exp())
                entry["entropy"] = float(self.entropy[at, row, query])
                for word, (rank, logit, probability) in numbers.items():
                    entry[f"rank of {word}"] = int(rank[at, row, query])
                    entry[f"logit of {word}"] = float(logit[at, row, query])
                    entry[f"probability of {word}"] = float(probability[at, row, query])
                rows.append(entry)
        return pandas.DataFrame(rows)

    # ------------------------------------------------------------------ figures

    def plot(self, word: str, by: str = "probability", layers: Iterable[int] | None = None, row: int = 0) -> Figure:
        """Maps of a word over the pictures, one a layer.

        Args:
            word: one of those given.
            by: "probability", "logit", "rank" (in decades: brightest is the likeliest).
            layers: which; all that were read by default.
            row: batch row.
        """
        from .word_figures import word_maps

        return word_maps(self, word, by, self.layers if layers is None else tuple(layers), row)

    # ------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: numbers and pictures, and everything else as JSON in its header."""
        tensors = {name: getattr(self, name) for name in TENSORS} | self.pictures()
        about = {**self.about(), "translated": self.translated, "model": self.model}
        about["forms"] = [list(form) for form in self.forms]
        about["texts"] = {str(token): text for token, text in self.texts.items()}
        files.write(path, KIND, tensors, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str], lens: Lens | None = None) -> LogitLens:
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
            shape = {"layer": len(own["layers"]), "batch": batch, "query": query}
            files.check_numbers(path, "top", tensors["top"], {**shape, "top": None})
            files.check_numbers(path, "entropy", tensors["entropy"], shape)
            own |= {name: tensors[name] for name in TENSORS[1:]}
            own["forms"] = tuple(Form(*form) for form in about["forms"])
            own["texts"] = {int(token): text for token, text in about["texts"].items()}
            return cls(**own, translated=bool(about["translated"]), model=dict(about["model"]))

    def __repr__(self) -> str:
        n, last = int((self.positions >= 0).sum()), self.layers[-1]
        how = "translated, " if self.translated else ""
        common = Counter(text for row in range(len(self.positions)) for text, _ in self.best(last, row)).most_common(5)
        said = ", ".join(f"{text!r} {count}" for text, count in common)
        lines = [
            f"LogitLens: {how}{n} tokens after layers {self.layers[0]} to {last}",
            f"  most often likeliest after layer {last}: {said}",
        ]
        for word in dict.fromkeys(form.word for form in self.forms):
            texts = " and ".join(repr(form.text) for form in self.forms if form.word == word)
            ranks = self.rank(word).flatten(1)
            best = ranks.masked_fill(ranks < 0, torch.iinfo(ranks.dtype).max).amin(1).tolist()
            ends = f"best rank {best[0]} after layer {self.layers[0]}, {best[-1]} after layer {last}"
            lines.append(f"  {word!r} (as {texts}): {ends}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return self.to_pandas().head(20).round(3).to_html(index=False)
