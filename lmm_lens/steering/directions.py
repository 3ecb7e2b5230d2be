"""A direction of the residual stream in each layer: a value with norms, a matched random control, and a file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InterventionError
from ..interventions.base import whole_numbers
from ..runs import files

if TYPE_CHECKING:
    import pandas

    from ..lens import Lens

KIND = "a direction"


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector for the residual stream that leaves each of some layers; `direction` finds one, or make it of your own.

    Attributes:
        values: Float[layer, d_model], one vector a layer, at `resid_post`; kept in fp32.
        layers: which layers they are of.
        method: how it was found; "given" for your own.
        rows: over which query rows.
        n_prompts: prompt rows with and without.
        stream_norms: Float[layer], the mean norm of the stream in these rows, without; NaN where nobody measured it.
        control: of a random direction of the same norms, its seed; None for the direction itself.
        model: the identity of the model it was found in.

    Raises:
        InterventionError: it is not one vector a layer, or not finite, or 0 in every layer.
    """

    values: Float[Tensor, "layer d_model"]
    layers: tuple[int, ...]
    method: str = "given"
    rows: str = ""
    n_prompts: tuple[int, int] = (0, 0)
    stream_norms: Float[Tensor, " layer"] | None = None
    control: int | None = None
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers = whole_numbers(self.layers, "Direction", "layers")
        shape = list(self.values.shape) if isinstance(self.values, Tensor) else type(self.values).__name__
        if not isinstance(shape, list) or len(shape) != 2 or shape[0] != len(layers):
            raise InterventionError(
                f"a direction is one vector a layer, Float[layer, d_model], given {shape} for layers {list(layers)}"
            )
        values = self.values.detach().cpu().float()
        if not bool(values.isfinite().all()) or not bool(values.any()):
            what = (
                "0 in every layer: the two sets do not differ there" if bool(values.isfinite().all()) else "not finite"
            )
            raise InterventionError(f"the direction is {what}")
        if self.stream_norms is not None and self.stream_norms.shape != (len(layers),):
            raise InterventionError(
                f"stream_norms are one number a layer, given {list(self.stream_norms.shape)} for layers {list(layers)}"
            )
        norms = self.stream_norms if self.stream_norms is not None else torch.full((len(layers),), torch.nan)
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "stream_norms", norms.detach().cpu().float())

    @property
    def norms(self) -> Float[Tensor, " layer"]:
        """The length of each layer's vector."""
        lengths: Tensor = torch.linalg.vector_norm(self.values, dim=-1)
        return lengths

    def at(self, layer: int) -> Float[Tensor, " d_model"]:
        """The vector of a layer; InterventionError for one that it has none of."""
        if layer not in self.layers:
            raise InterventionError(
                f"the direction has no vector for layer {layer}\n  it has layers {', '.join(map(str, self.layers))}"
            )
        return self.values[self.layers.index(layer)]

    def random_like(self, seed: int) -> Direction:
        """A random direction with the same norm in every layer: the control of whatever this one is said to do."""
        noise = torch.randn(self.values.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        scaled = noise * (self.norms.double() / noise.norm(dim=-1))[:, None]
        return replace(self, values=scaled.float(), control=seed)

    def to_pandas(self) -> pandas.DataFrame:
        """One row a layer: layer, norm, stream_norm, and their ratio as share."""
        import pandas

        assert self.stream_norms is not None
        columns = {"layer": self.layers, "norm": self.norms.tolist(), "stream_norm": self.stream_norms.tolist()}
        table = pandas.DataFrame(columns)
        return table.assign(share=table["norm"] / table["stream_norm"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one sealed safetensors file; never pickle."""
        assert self.stream_norms is not None
        about = {
            "layers": list(self.layers),
            "method": self.method,
            "rows": self.rows,
            "n_prompts": list(self.n_prompts),
            "control": self.control,
            "model": self.model,
        }
        files.write(path, KIND, {"values": self.values, "stream_norms": self.stream_norms}, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str], lens: Lens | None = None) -> Direction:
        """Read a direction back.

        Args:
            path: a file written by `save`.
            lens: if given, the direction must be of its model.

        Raises:
            ScoreError: no such file, a truncated, damaged or changed one, one of another kind, or of another model.
        """
        names = ("layers", "method", "rows", "n_prompts", "control", "model")
        tensors, about = files.read(path, KIND, ("values", "stream_norms"), names)
        with files.understood(path, KIND):
            if lens is not None:
                files.check_model(path, about["model"], lens.identity)
            layers = tuple(about["layers"])
            files.check_numbers(path, "values", tensors["values"], {"layer": len(layers), "d_model": None})
            n_with, n_without = about["n_prompts"]
            control = None if about["control"] is None else int(about["control"])
            return cls(
                tensors["values"],
                layers,
                str(about["method"]),
                str(about["rows"]),
                (n_with, n_without),
                tensors["stream_norms"],
                control,
                dict(about["model"]),
            )

    def __repr__(self) -> str:
        how = self.method.replace("_", " ")
        if any(self.n_prompts):
            how += f" of {self.n_prompts[0]} prompt rows with and {self.n_prompts[1]} without, over rows {self.rows!r}"
        if self.control is not None:
            how = f"random (seed {self.control}), with the norms of: {how}"
        norms, stream = self.norms, self.stream_norms
        assert stream is not None
        share = norms / stream
        told = "" if bool(share.isnan().all()) else f", {share.min():.1%} to {share.max():.1%} of the stream's"
        return (
            f"Direction: {how}; {len(self.layers)} layers x {self.values.shape[1]}, "
            f"norms {norms.min():.3g} to {norms.max():.3g}{told}"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>" + self.to_pandas().round(3).to_html(index=False)
