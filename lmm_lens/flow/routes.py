"""Routes from keys to rows, as they are in one prompt, and the random keys that a route is compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from ..core.rows import Rows
from ..errors import ScoreError
from ..interventions.knockout import PICTURES
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows

Scope = str | Callable[[Prompt], RowsLike]
"""A mask name, or a function of a prompt that gives positions or a mask, such as an object's patches."""


@dataclass(frozen=True)
class Route:
    """Keys that rows are forbidden to attend to.

    Attributes:
        source: of the keys.
        target: of the rows; "last" is every row that predicts a token of the answer.
    """

    source: Scope
    target: Scope

    @property
    def name(self) -> str:
        """As "image -> question"."""
        return f"{_named(self.source)} -> {_named(self.target)}"

    @property
    def is_of_pictures(self) -> bool:
        """Whether the source is all that a cross-attention layer sees."""
        return isinstance(self.source, str) and self.source in PICTURES

    def on(self, prompt: Prompt) -> tuple[Rows, Rows]:
        """Source and target in a prompt; ScoreError where one of them is nothing in a batch row."""
        bound = _bound(self.source, prompt), _bound(self.target, prompt)
        for what, rows in zip(("source", "target"), bound, strict=True):
            empty = (~rows.prompt.any(1)).nonzero().flatten().tolist()
            if empty:
                raise ScoreError(
                    f"the {what} of the route {self.name!r} selects no token of batch row {empty[0]}\n"
                    f"  the prompt is {str(prompt).splitlines()[0]}"
                )
        return bound


def as_routes(given: object) -> tuple[Route, ...]:
    """Routes from pairs; ScoreError for anything else, or two of one name."""
    try:
        pairs = [tuple(pair) for pair in given]  # type: ignore[attr-defined]  # (whatever it is)
        routes = tuple(Route(source, target) for source, target in pairs)
        fits = all(isinstance(scope, str) or callable(scope) for pair in pairs for scope in pair)
    except (TypeError, ValueError):
        routes, fits = (), False
    if not routes or not fits:
        raise ScoreError(
            f'routes are pairs (source, target) of mask names, as in [("image", "last")], given {given!r}\n'
            "  in place of a name a function of a prompt may give positions or a mask"
        )
    names = [route.name for route in routes]
    if len(set(names)) < len(names):
        raise ScoreError(f"two routes have the same name: {', '.join(names)}")
    return routes


def _named(scope: Scope) -> str:
    return scope if isinstance(scope, str) else str(getattr(scope, "__name__", type(scope).__name__))


def _bound(scope: Scope, prompt: Prompt) -> Rows:
    """The last prompt token stands for all rows that predict the answer, those of its own tokens too."""
    if scope == "last":
        return bind_rows("generating", prompt)
    return bind_rows(scope if isinstance(scope, str) else scope(prompt), prompt)


def random_keys(
    prompt: Prompt,
    source: Bool[Tensor, "batch position"],
    target: Bool[Tensor, "batch position"],
    seed: str,
) -> Bool[Tensor, "batch position"]:
    """As many random keys as the source has, of the same kind: visual tokens for visual ones, words for words.

    Drawn among real tokens that come before the last target row and are in neither span; where there are fewer, all of
    them are taken, none where the source is all there is of its kind. The beginning of the sequence, where heads park
    their attention, is in only if it is in the source.

    Args:
        prompt: the prompt.
        source, target: of the route.
        seed: what is drawn is the same for the same one.
    """
    visual, bos = prompt.mask("visual"), prompt.mask("bos")
    chosen = torch.zeros_like(source)
    positions = torch.arange(source.shape[1])
    for row in range(prompt.n_rows):
        last = int(target[row].nonzero().max())
        free = prompt.mask("all")[row] & ~source[row] & ~target[row] & (positions < last)
        if not bool((source[row] & bos[row]).any()):
            free &= ~bos[row]
        is_visual = bool(visual[row][source[row]].float().mean() > 0.5)
        free &= visual[row] == is_visual
        digest = hashlib.sha256(f"{seed} {row}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        places = free.nonzero().flatten()
        drawn = torch.randperm(len(places), generator=generator)[: int(source[row].sum())]
        chosen[row, places[drawn]] = True
    return chosen
