"""Directions from two sets of prompts.

    mean_difference    v_l = mean of h_l over prompts with - the same over prompts without
    pca                D_i = h(with_i) - h(without_i), all layers in one vector; v is their first principal component

h_l is `resid_post` of layer l, averaged over a prompt's rows; so each prompt counts the same, whatever its length. The
difference of means is Rimsky et al.'s (arXiv:2312.06681) and, for multimodal models, that of xl-vlms; the component of
paired differences, one for the flattened stack of layers, is VTI's (Liu et al., arXiv:2410.15778). Ours: the
differences are not centred before the component is taken, so that one pair gives its difference; the component points
along the mean difference, and is as long as the mean difference reaches along it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.taps import Tap, TapContext
from ..data import Sample
from ..data.sample import prompt_of
from ..errors import InterventionError, unknown
from ..hooks.heads import check_layer
from ..hooks.points import ModelShape
from ..interventions.base import shown, whole_numbers
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows
from .directions import Direction

if TYPE_CHECKING:
    from ..lens import Lens

METHODS = {
    "mean_difference": "the mean of the prompts with minus the mean of those without",
    "pca": "the first principal component of the differences of pairs, the i-th with and the i-th without",
}
"""How a direction is found."""

Prompts = Prompt | Sample | Iterable[Prompt | Sample]


def direction(
    lens: Lens,
    with_: Prompts,
    without: Prompts,
    rows: RowsLike = "image",
    method: str = "mean_difference",
    layers: Iterable[int] | None = None,
    rows_without: RowsLike | None = None,
) -> Direction:
    """The direction in which prompts with something differ from prompts without, in each layer.

    One forward a prompt; of the stream only its sum over the rows is kept, where the model is.

    Args:
        lens: the model.
        with_, without: prompts, batches of them, or samples of a data set, or iterables of these.
        rows: which query rows: "image", "last", any other mask name, positions, or Bool[batch, position].
        method: "mean_difference" or "pca"; see `METHODS`.
        layers: which layers; None for all.
        rows_without: for the prompts without, where it is to be other rows: the same prompts twice, "image" and
            "question", give the direction between two spans.

    Raises:
        InterventionError: an unknown method, no prompts, rows that select nothing of a prompt, for "pca" sets of
            different size, sets that do not differ.
        HookError: a layer or row scope that does not exist.
        PromptError: what is neither a prompt nor a sample.
    """
    if method not in METHODS:
        raise InterventionError(unknown("method of direction", method, METHODS))
    chosen = tuple(range(lens.n_layers)) if layers is None else whole_numbers(layers, "direction", "layers")
    for layer in chosen:
        check_layer(layer, lens.n_layers)
    scopes = rows, rows if rows_without is None else rows_without
    found, norms = [], torch.empty(0)
    for name, prompts, scope in zip(("with_", "without"), (with_, without), scopes, strict=True):
        each = [*_means(lens, prompts, scope, chosen, name)]
        if not each:
            raise InterventionError(f"direction was given no prompts {name.rstrip('_')}")
        found.append(torch.stack([mean for mean, _ in each]))
        norms = torch.stack([norm for _, norm in each]).mean(0)  # of those without, which come last
    n_with, n_without = len(found[0]), len(found[1])
    if method == "pca":
        if n_with != n_without:
            raise InterventionError(
                f"pca takes pairs, the i-th prompt with and the i-th without, given {n_with} and {n_without}\n"
                "  method='mean_difference' takes any two sets"
            )
        values = first_component(found[0] - found[1])
    else:
        values = found[0].mean(0) - found[1].mean(0)
    label = rows if isinstance(rows, str) else shown(rows)
    if rows_without is not None:
        label = f"{label} and {rows_without if isinstance(rows_without, str) else shown(rows_without)}"
    return Direction(values.float(), chosen, method, label, (n_with, n_without), norms.float(), None, lens.identity)


def first_component(differences: Float[Tensor, "pair layer d_model"]) -> Float[Tensor, "layer d_model"]:
    """The first principal component of paired differences, as long as their mean reaches along it.

    Raises:
        InterventionError: their mean is at a right angle to it, so that it has no sign.
    """
    flat = differences.double().flatten(1)
    if not bool(flat.any()):
        return differences[0]
    _, vectors = torch.linalg.eigh(flat @ flat.T)  # pair by pair: never [d_model, d_model]
    component = torch.nn.functional.normalize(flat.T @ vectors[:, -1], dim=0)
    mean = flat.mean(0)
    reach = mean @ component
    if reach.abs() <= 1e-6 * flat.norm(dim=1).mean():
        raise InterventionError(
            "the differences of the pairs cancel along their first component, so it has no sign\n"
            "  check that with_ and without are in the same order, or use method='mean_difference'"
        )
    return (reach * component).reshape(differences.shape[1:])


@dataclass(frozen=True)
class _Sums:
    """Adds up each batch row's stream over its query rows, and their norms, where the model is."""

    rows: RowsLike
    layers: tuple[int, ...]

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        rows = bind_rows(self.rows, prompt).prompt_only()

        def add(stream: Tensor, context: TapContext) -> Tensor:
            wide = stream.double() * context.valid[..., None]
            context.add("stream", wide.sum(1))
            context.add("norm", wide.norm(dim=-1).sum(1))
            return stream

        return [Tap("resid_post", layer, rows, add) for layer in self.layers]


def _means(
    lens: Lens, prompts: Prompts, rows: RowsLike, layers: tuple[int, ...], name: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each prompt row the mean stream, [layer, d_model], and its mean norm, [layer]."""
    for index, given in enumerate([prompts] if isinstance(prompts, (Prompt, Sample)) else prompts):
        prompt = prompt_of(lens, given)
        counts = bind_rows(rows, prompt).prompt.sum(1)
        empty = (counts == 0).nonzero().flatten().tolist()
        if empty:
            raise InterventionError(
                f"rows {shown(rows)} select no token of prompt {index} of {name}, batch rows {empty}\n"
                f"  the prompt is {str(prompt).splitlines()[0]}"
            )
        sums = lens.run(prompt, read=[_Sums(rows, layers)], logits="last").sums
        streams = torch.stack([sums["stream", layer].cpu() for layer in layers], 1) / counts[:, None, None]
        norms = torch.stack([sums["norm", layer].cpu() for layer in layers], 1) / counts[:, None]
        yield from zip(streams, norms, strict=True)
