"""Translators: what a layer's residual stream would be at the end, as an affine map (the tuned lens, arXiv:2303.08112).

    h'_l = h_l + D_l h_l + b_l        read as W_U norm_f(h'_l), with A_l = 1 + D_l

Fitted by least squares on the user's own prompts: h'_l is to be the last layer's output at the same token. A ridge
draws D_l to 0, the plain logit lens. How well a map fits is measured on prompts that had no part in it. (The paper
trains on the divergence of the words that are read, by gradients; least squares on the stream is ours, and needs none.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import HookError, ScoreError
from ..hooks.heads import check_layer
from ..hooks.points import Read
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike
from ..runs import files

if TYPE_CHECKING:
    import pandas

    from ..lens import Lens

KIND = "translators"
TENSORS = ("maps", "biases", "fit", "plain_fit")
FIELDS = ("layers", "n_rows", "model")


@dataclass(frozen=True, eq=False)
class Translators:
    """One affine map a layer.

    Attributes:
        layers: whose residual stream each maps.
        maps: Float[layer, d_model, d_model], A_l.
        biases: Float[layer, d_model], b_l.
        fit: Float[layer], the share of the variance of the last layer's output that the maps explain on held-out
            prompts, 1 at best, below 0 where its mean is nearer; NaN for maps that were given.
        plain_fit: Float[layer], the same of the residual stream as it is.
        n_rows: tokens that were fitted to, and held out.
        model: the model's identity; empty for maps that were given.
    """

    layers: tuple[int, ...]
    maps: Float[Tensor, "layer d_model d_model"]
    biases: Float[Tensor, "layer d_model"]
    fit: Float[Tensor, " layer"]
    plain_fit: Float[Tensor, " layer"]
    n_rows: tuple[int, int] = (0, 0)
    model: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[int, tuple[Tensor, Tensor]]) -> Translators:
        """Maps of the user's own: layer to (A, b).

        Raises:
            ScoreError: they are not of one shape, or there are none.
        """
        shapes = {(tuple(a.shape), tuple(b.shape)) for a, b in given.values()}
        if len(shapes) != 1 or any(a != (b[0], b[0]) or len(b) != 1 for a, b in shapes):
            raise ScoreError(
                "translators are {layer: (A, b)}, A [d_model, d_model] and b [d_model], given "
                f"{[(name, tuple(a.shape), tuple(b.shape)) for name, (a, b) in given.items()]}"
            )
        layers = tuple(sorted(given))
        unknown = torch.full((len(layers),), torch.nan)
        maps, biases = (torch.stack([given[layer][i].detach().cpu() for layer in layers]) for i in (0, 1))
        return cls(layers, maps, biases, unknown, unknown)

    def apply(self, layer: int, hidden: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """Rows of a layer as they would be at the end; the last layer's are there."""
        if layer not in self.layers:
            return hidden
        index = self.layers.index(layer)
        a, b = self.maps[index].to(hidden.device, hidden.dtype), self.biases[index].to(hidden.device, hidden.dtype)
        return hidden @ a.T + b

    def check(self, layers: Iterable[int], lens: Lens) -> None:
        """Refuse layers that have no map, and maps of another model.

        Raises:
            HookError: a layer other than the last has none.
            ScoreError: they were fitted on another model, or are of another width.
        """
        last, d_model = lens.n_layers - 1, lens.shape.d_model
        if self.model:
            files.check_same_model("this set of translators", self.model, lens.identity)
        lacking = [layer for layer in layers if layer not in self.layers and layer != last]
        if lacking:
            raise HookError(f"layers {lacking} have no translator: these have one: {list(self.layers)}")
        if self.maps.shape[-1] != d_model:
            raise ScoreError(f"the translators are {self.maps.shape[-1]} wide, the residual stream is {d_model}")

    def to_pandas(self) -> pandas.DataFrame:
        """One row a layer: its fit on held-out prompts, and that of the residual stream as it is."""
        import pandas

        columns = {"layer": self.layers, "fit": self.fit.tolist(), "plain_fit": self.plain_fit.tolist()}
        return pandas.DataFrame(columns)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: the maps, and everything else as JSON in its header."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        files.write(path, KIND, tensors, {name: getattr(self, name) for name in FIELDS})

    @classmethod
    def load(cls, path: str | os.PathLike[str], lens: Lens | None = None) -> Translators:
        """Read translators back; `lens`, if given, must be of the model they were fitted on.

        Raises:
            ScoreError: no such file, a truncated, damaged or changed one, one of another kind or another model.
        """
        tensors, about = files.read(path, KIND, TENSORS, FIELDS)
        with files.understood(path, KIND):
            if lens is not None:
                files.check_model(path, about["model"], lens.identity)
            layers = tuple(about["layers"])
            width = tensors["maps"].shape[-1]
            files.check_numbers(path, "maps", tensors["maps"], {"layer": len(layers), "row": width, "column": width})
            files.check_numbers(path, "biases", tensors["biases"], {"layer": len(layers), "d_model": width})
            n_fitted, n_held = about["n_rows"]
            return cls(layers, **tensors, n_rows=(n_fitted, n_held), model=dict(about["model"]))

    def __repr__(self) -> str:
        if not self.n_rows[0]:
            return f"Translators of {len(self.layers)} layers, as given"
        shown = ", ".join(
            f"L{layer} {float(plain):.2f} -> {float(fit):.2f}"
            for layer, fit, plain in zip(self.layers, self.fit, self.plain_fit, strict=True)
        )
        return (
            f"Translators of {len(self.layers)} layers, fitted to {self.n_rows[0]} tokens; variance explained on "
            f"{self.n_rows[1]} held out, as it is -> translated: {shown}"
        )


def fit_translators(
    lens: Lens,
    prompts: Prompt | Iterable[Prompt],
    *,
    rows: RowsLike = "all",
    layers: Iterable[int] | None = None,
    every: int = 5,
    ridge: float = 1e-2,
) -> Translators:
    """Fit a translator for each layer, and measure it on prompts that are held out.

    One forward a prompt, whose residual streams are held until it is done; of the stream of prompts only sums are kept,
    d_model x d_model a layer.

    Args:
        lens: the model.
        prompts: batches or single ones, of any number; the more the better, in tokens at least several times d_model.
        rows: which tokens: "image", "all", ...
        layers: which; all but the last by default.
        every: of the prompts each so-manieth is held out, counted by batch row.
        ridge: how strongly maps are drawn to the plain logit lens, as a share of the mean variance of a dimension.

    Raises:
        ScoreError: too few prompts for one to be held out, rows that select nothing, or a ridge below 0.
        HookError: no such layer or rows.
    """
    last = lens.n_layers - 1
    wanted = range(last) if layers is None else layers
    chosen = [*dict.fromkeys(x for x in (check_layer(each, lens.n_layers) for each in wanted) if x != last)]
    if every < 2:
        raise ScoreError(f"of every so many prompts one is held out: every is 2 or more, given {every}")
    if isinstance(ridge, bool) or not isinstance(ridge, (int, float)) or not 0 <= ridge < float("inf"):
        raise ScoreError(f"ridge is how strongly maps are drawn to the plain logit lens, 0 or more, given {ridge!r}")
    if not chosen:
        raise ScoreError("no layers to translate were given: the last one is the target")
    sums = {(layer, is_held): _Sums() for layer in chosen for is_held in (False, True)}
    n = 0
    for prompt in [prompts] if isinstance(prompts, Prompt) else prompts:
        run = lens.run(prompt, read=[Read("resid_post", [*chosen, last], rows=rows)], logits="last")
        positions = run.positions["resid_post"]
        for row in range(prompt.n_rows):
            is_held, real = n % every == every - 1, positions[row] >= 0
            target = run.reads["resid_post", last][row][real.to(run.logits.device)].double()
            for layer in chosen:
                sums[layer, is_held].add(run.reads["resid_post", layer][row][real.to(target.device)].double(), target)
            n += 1
    if n < every:
        raise ScoreError(f"{n} prompts were given, and one of {every} is held out: give more, or a smaller every")
    fitted = [sums[layer, False].fitted(ridge) for layer in chosen]
    held = [sums[layer, True] for layer in chosen]
    dtype = torch.float32 if lens.model.dtype != torch.float64 else torch.float64
    return Translators(
        tuple(chosen),
        torch.stack([a for a, _ in fitted]).to(dtype).cpu(),
        torch.stack([b for _, b in fitted]).to(dtype).cpu(),
        torch.tensor([each.explained(*maps) for each, maps in zip(held, fitted, strict=True)]),
        torch.tensor([each.explained(None, None) for each in held]),
        (sums[chosen[0], False].n, held[0].n),
        lens.identity,
    )


class _Sums:
    """Sums over tokens from which a least-squares fit, and its error, follow."""

    def __init__(self) -> None:
        self.n = 0
        self.xx: Any = 0
        self.xy: Any = 0
        self.x: Any = 0
        self.y: Any = 0
        self.yy: Any = 0

    def add(self, x: Float[Tensor, "row d_model"], y: Float[Tensor, "row d_model"]) -> None:
        """Take tokens in."""
        self.n += len(x)
        self.xx, self.xy = self.xx + x.T @ x, self.xy + x.T @ y
        self.x, self.y, self.yy = self.x + x.sum(0), self.y + y.sum(0), self.yy + y.square().sum(0)

    def fitted(self, ridge: float) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, " d_model"]]:
        """A and b that map x to y; ScoreError where there is no token."""
        if not self.n:
            raise ScoreError("no token was read to fit translators to\n  give other rows, or more prompts")
        x, y = self.x / self.n, self.y / self.n
        xx = self.xx / self.n - torch.outer(x, x)
        xy = self.xy / self.n - torch.outer(x, y) - xx  # of what is to be added
        strength = ridge * xx.diagonal().mean()
        change = torch.linalg.solve(xx + strength * torch.eye(len(xx), device=xx.device, dtype=xx.dtype), xy)
        a = change.T + torch.eye(len(xx), device=xx.device, dtype=xx.dtype)
        return a, y - a @ x

    def explained(self, a: Tensor | None, b: Tensor | None) -> float:
        """1 - squared error / variance, of all dimensions together; of x itself without a map."""
        if not self.n:
            raise ScoreError("no token of the held-out prompts was read\n  give other rows, or more prompts")
        eye = torch.eye(len(self.x), device=self.x.device, dtype=self.x.dtype)
        a, b = (eye, torch.zeros_like(self.x)) if a is None or b is None else (a, b)
        # sum |A x + b - y|^2, from the sums alone
        square = (a @ self.xx * a).sum() + self.n * b @ b + self.yy.sum()
        cross = 2 * (a @ self.x) @ b - 2 * (a * self.xy.T).sum() - 2 * b @ self.y
        variance = (self.yy - self.y.square() / self.n).sum()
        return float(1 - (square + cross) / variance)
