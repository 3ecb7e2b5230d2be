"""What cutting routes did to the answer, for every layer: means with intervals and controls, tables, figures, files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from torch import Tensor

from ..data.problems import Problems
from ..errors import ScoreError
from ..runs import RunFolder, Store, files
from ..statistics.resampling import interval_where_defined
from .stored import found_in

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from ..lens import Lens

KIND = "information flow"
TENSORS = ("per_prompt", "control_per_prompt", "base", "n_keys", "n_random_keys", "n_tokens")
FIELDS = ("routes", "layers", "window", "ids", "left_out", "how", "model", "settings")
SHOWN = ("routes", "layers", "window")


@dataclass(frozen=True, eq=False)
class InformationFlow:
    """The change of the answer's probability where a route is cut in a window of layers.

    Attributes:
        routes: names, as "image -> last".
        layers: the centres of the windows.
        window: how many layers each has; fewer at the ends of the model.
        per_prompt: Float[prompt, route, layer], the relative change in %, -100 where nothing is left; NaN where no
            layer of the window has such keys.
        control_per_prompt: the same with random keys, the mean over the draws; NaN where there are none.
        base: Float[prompt], the answer's probability uncut, of several tokens the geometric mean.
        n_keys: Int[prompt, route], how many keys a route has.
        n_random_keys: how many its control could have.
        n_tokens: Int[prompt], of the answer.
        ids: the prompts' names.
        left_out: prompts that are not answered rightly, name to what the model said.
        how: how the cut forwards were computed; all ways are exact.
        model: the model's identity.
        settings: what else the numbers depend on.
        unusable: rows of a data set that give no prompt or no answer, name to what is wrong with them.
    """

    routes: tuple[str, ...]
    layers: tuple[int, ...]
    window: int
    per_prompt: Float[Tensor, "prompt route layer"]
    control_per_prompt: Float[Tensor, "prompt route layer"]
    base: Float[Tensor, " prompt"]
    n_keys: Int[Tensor, "prompt route"]
    n_random_keys: Int[Tensor, "prompt route"]
    n_tokens: Int[Tensor, " prompt"]
    ids: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    how: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_store(cls, store: Store, about: Mapping[str, Any]) -> InformationFlow:
        """What a run has finished so far.

        Raises:
            ScoreError: no prompt is answered rightly.
        """
        return cls(
            routes=tuple(about["routes"]),
            layers=tuple(about["layers"]),
            window=int(about["window"]),
            model=dict(about["model"]),
            settings={name: value for name, value in about.items() if name not in ("model", *SHOWN)},
            **found_in(store, TENSORS),
        )

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> InformationFlow:
        """What a run folder holds, finished or not.

        Raises:
            ScoreError: it is no run folder of information flow, or no prompt in it is answered rightly.
        """
        opened = RunFolder.open(folder, KIND)
        if not opened.n_items:
            raise ScoreError(f"the run folder {opened.path.name!r} has no finished prompts yet")
        return cls.of_store(opened, opened.about)

    @cached_property
    def values(self) -> Float[Tensor, "route layer"]:
        """The mean change over prompts, in %."""
        return self.per_prompt.nanmean(0)

    @cached_property
    def control(self) -> Float[Tensor, "route layer"]:
        """The mean change with random keys, in %."""
        return self.control_per_prompt.nanmean(0)

    @property
    def n_prompts(self) -> int:
        """How many prompts are answered rightly, over which everything is."""
        return self.per_prompt.shape[0]

    @property
    def problems(self) -> Problems:
        """The rows of a data set that could not be used, counted by what is wrong with them."""
        return Problems.of_notes(self.unusable)

    @property
    def matched(self) -> Float[Tensor, " route"]:
        """How many random keys there were for each of a route's own, at most 1: what a control could not match."""
        return self.n_random_keys.double().sum(0) / self.n_keys.double().sum(0)

    def interval(
        self, level: float = 0.95, resamples: int = 1000, seed: int = 0, *, control: bool = False
    ) -> tuple[Float[Tensor, "route layer"], Float[Tensor, "route layer"]]:
        """Bootstrap interval of each mean change over prompts, low and high; of the control if asked."""
        samples = self.control_per_prompt if control else self.per_prompt
        found = interval_where_defined(samples.flatten(1), level, resamples, seed)
        low, high = (bound.reshape(self.values.shape) for bound in found)
        return low, high

    def to_pandas(self, level: float = 0.95) -> pandas.DataFrame:
        """One row a route and layer: change, low, high, control, control_low, control_high, in %, and matched."""
        import pandas

        columns = {"change": self.values, "control": self.control}
        columns["low"], columns["high"] = self.interval(level)
        columns["control_low"], columns["control_high"] = self.interval(level, control=True)
        rows = [(route, layer) for route in self.routes for layer in self.layers]
        table = pandas.DataFrame(rows, columns=["route", "layer"])
        for name in ("change", "low", "high", "control", "control_low", "control_high"):
            table[name] = columns[name].flatten().tolist()
        return table.assign(matched=self.matched.repeat_interleave(len(self.layers)).tolist())

    def plot(self, ax: Axes | None = None, level: float = 0.95) -> Axes:
        """The change by layer, a line a route with its interval, controls dashed."""
        from .figures import flow_curves

        return flow_curves(self, ax, level)

    # ------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one sealed safetensors file: the numbers, and everything else as JSON in its header."""
        about = {name: getattr(self, name) for name in FIELDS}
        about |= {"left_out": dict(self.left_out), "unusable": dict(self.unusable)}
        files.write(path, KIND, {name: getattr(self, name) for name in TENSORS}, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str], lens: Lens | None = None) -> InformationFlow:
        """Read a result back; with a lens, it must be of its model.

        Raises:
            ScoreError: no such file, a truncated, damaged or changed one, one of another kind, or of another model.
        """
        tensors, about = files.read(path, KIND, TENSORS, FIELDS)
        with files.understood(path, KIND):
            if lens is not None:
                files.check_model(path, about["model"], lens.identity)
            sizes = {"prompt": len(about["ids"]), "route": len(about["routes"]), "layer": len(about["layers"])}
            by_route = {name: sizes[name] for name in ("prompt", "route")}
            files.check_numbers(path, "per_prompt", tensors["per_prompt"], sizes)
            files.check_numbers(path, "n_keys", tensors["n_keys"], by_route)
            files.check_numbers(path, "n_random_keys", tensors["n_random_keys"], by_route)
            if tensors["control_per_prompt"].shape != tensors["per_prompt"].shape:
                raise ValueError("the control has another shape")
            for name in ("base", "n_tokens"):
                files.check_numbers(path, name, tensors[name], {"prompt": sizes["prompt"]})
            return cls(
                routes=tuple(about["routes"]),
                layers=tuple(about["layers"]),
                window=int(about["window"]),
                ids=tuple(about["ids"]),
                left_out=dict(about["left_out"]),
                how=str(about["how"]),
                model=dict(about["model"]),
                settings=dict(about["settings"]),
                unusable=dict(about.get("unusable", {})),
                **tensors,
            )

    def __repr__(self) -> str:
        lines = []
        for number, route in enumerate(self.routes):
            curve = self.values[number]
            if bool(curve.isnan().all()):
                lines.append(f"  {route}: no layer has such keys")
                continue
            place = int(curve.abs().nan_to_num(-1).argmax())
            told = f"  {route}: {curve[place]:+.0f}% at layer {self.layers[place]}"
            if not bool(self.control[number].isnan().all()):
                told += f" (random keys {self.control[number, place]:+.0f}%, {self.matched[number]:.0%} as many)"
            elif self.settings.get("n_random", 0):
                told += " (there are no other keys of its kind)"
            lines.append(told)
        left = f", {len(self.left_out)} left out that are not" if self.left_out else ""
        return "\n".join(
            [
                f"InformationFlow: change of the answer's probability in windows of {self.window} layers, largest by "
                f"route, mean of {self.n_prompts} prompts answered rightly{left}",
                *lines,
                f"  computed: {self.how}",
                *([f"  {self.problems}"] if self.unusable else []),
            ]
        )

    def _repr_html_(self) -> str:
        return self.to_pandas().round(1).to_html(index=False)
