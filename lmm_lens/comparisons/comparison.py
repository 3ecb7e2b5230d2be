"""What a comparison of conditions found: values, texts, paired tests, tables, a figure, files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..data.problems import Problems
from ..errors import ScoreError, unknown
from ..runs import RunFolder, Store, files
from ..runs.texts import text_of
from ..statistics import holm, mcnemar_test, mean_interval, paired_interval, sign_flip_test

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from ..lens import Lens

KIND = "comparison"
TENSORS = ("values", "moved", "short", "seconds", "edits", "said")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Conditions on the same items.

    Attributes:
        names: of the conditions, controls behind what they control.
        ids: of the items.
        values: the metric, fp64.
        edits: rows times heads that each condition edited on each item.
        moved, short: attention that was moved, and that a control should have moved and could not.
        seconds: that each answer took, where it was computed.
        bytes: what was said, UTF-8, at most 256 bytes; see `said`.
        about: the model, the conditions, the metric and what else the numbers depend on.
        left_out: the rows that could not be used, name to what is wrong with them.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...]
    values: Float[Tensor, "item condition"]
    edits: Int[Tensor, "item condition"]
    moved: Float[Tensor, "item condition"]
    short: Float[Tensor, "item condition"]
    seconds: Float[Tensor, "item condition"]
    bytes: UInt8[Tensor, "item condition byte"]
    about: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_store(cls, store: Store, about: Mapping[str, Any]) -> Comparison:
        """What a run has finished so far.

        Raises:
            ScoreError: every item was left out.
        """
        ids = [key.rpartition("\t")[0] for part in store.parts() for key in part.keys]
        numbers = [index for at in store.ranges for index in at]
        notes, tensors = store.notes(), store.tensors()
        left_out = {name: notes[index] for name, index in zip(ids, numbers, strict=True) if index in notes}
        used = [index not in notes for index in numbers]
        if not any(used):
            raise ScoreError(f"no item can be used: {Problems.of_notes(left_out)}")
        kept = [name for name, is_used in zip(ids, used, strict=True) if is_used]
        return cls._of({name: rows[torch.tensor(used)] for name, rows in tensors.items()}, kept, about, left_out)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Comparison:
        """What a run folder holds, finished or not.

        Raises:
            ScoreError: it is no run folder of a comparison, or nothing in it is finished.
        """
        opened = RunFolder.open(folder, KIND)
        if not opened.n_items:
            raise ScoreError(f"the run folder {opened.path.name!r} has no finished items yet")
        return cls.of_store(opened, opened.about)

    @classmethod
    def _of(
        cls, tensors: Mapping[str, Tensor], ids: list[str], about: Mapping[str, Any], left_out: Mapping[str, str]
    ) -> Comparison:
        numbers = {name: tensors[name] for name in TENSORS if name != "said"}
        names = tuple(condition[0] for condition in about["conditions"])
        return cls(names, tuple(ids), **numbers, bytes=tensors["said"], about=about, left_out=left_out)

    # ------------------------------------------------------------------ what was found

    @property
    def metric(self) -> str:
        """What was measured."""
        return str(self.about["metric"]).split()[0]

    @property
    def baseline(self) -> str:
        """The condition that others are tested against."""
        return str(self.about["baseline"])

    @property
    def control_of(self) -> Mapping[str, str]:
        """Each drawn control's condition."""
        return dict(self.about["control_of"])

    @property
    def problems(self) -> Problems:
        """The rows that were left out, counted by what is wrong with them."""
        return Problems.of_notes(self.left_out)

    def column(self, name: str) -> int:
        """Where a condition stands in `names`; ScoreError for one that is none."""
        if name not in self.names:
            raise ScoreError(unknown("condition", name, self.names))
        return self.names.index(name)

    def of(self, name: str) -> Float[Tensor, " item"]:
        """The metric under a condition; of its controls, called "NAME, controls", the mean over the draws."""
        drawn = self._draws(name.removesuffix(CONTROLS)) if name.endswith(CONTROLS) else []
        return self.values[:, drawn].mean(1) if drawn else self.values[:, self.column(name)]

    def said(self, name: str) -> tuple[str, ...]:
        """What was said under a condition, an item each; the first 256 bytes of it."""
        return tuple(text_of(each) for each in self.bytes[:, self.column(name)])

    def where(self, keep: Callable[[str], bool]) -> Comparison:
        """The items whose names a function wants, as of a category: `table.where(lambda name: "/color/" in name)`.

        Raises:
            ScoreError: it wants none.
        """
        kept = torch.tensor([bool(keep(name)) for name in self.ids])
        if not bool(kept.any()):
            raise ScoreError(f"none of the {len(self.ids)} items is wanted; the first is called {self.ids[0]!r}")
        ids = tuple(name for name, is_kept in zip(self.ids, kept.tolist(), strict=True) if is_kept)
        tensors = {name: getattr(self, name)[kept] for name in (*TENSORS[:-1], "bytes")}
        return replace(self, ids=ids, **tensors)

    def _draws(self, name: str) -> list[int]:
        return [self.column(drawn) for drawn, of in self.control_of.items() if of == name]

    @property
    def groups(self) -> tuple[str, ...]:
        """The conditions, each followed by "NAME, controls" where controls were drawn."""
        named = [name for name in self.names if name not in self.control_of]
        return tuple(each for name in named for each in (name, *[name + CONTROLS] * bool(self._draws(name))))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know: ceilings and floors, edits that did not happen, controls that could do less."""
        from .notes import notes_on

        return notes_on(self)

    # ------------------------------------------------------------------ tables

    def to_pandas(self, level: float = 0.95, seed: int = 0) -> pandas.DataFrame:
        """One row a condition: condition, value, low, high (bootstrap over items), n, edits and moved (a mean item's),
        seconds (the median). Controls are one row, the mean over their draws."""
        import pandas

        rows = []
        for name in self.groups:
            columns = self._draws(name.removesuffix(CONTROLS)) if name.endswith(CONTROLS) else [self.column(name)]
            found = mean_interval(self.of(name), level, seed=seed)
            rows.append(
                {
                    "condition": name,
                    "value": float(found.mean),
                    "low": float(found.low),
                    "high": float(found.high),
                    "n": int(found.n),
                    "edits": float(self.edits[:, columns].double().mean()),
                    "moved": float(self.moved[:, columns].mean()),
                    "seconds": float(self.seconds[:, columns].nanmedian()),
                }
            )
        return pandas.DataFrame(rows)

    def tests(self, level: float = 0.95, seed: int = 0) -> pandas.DataFrame:
        """Every condition against the baseline, and against its own controls, paired over items.

        McNemar's exact test where both are right or wrong, else a sign flip test of the mean difference; p_holm is
        Holm's over all rows of the table.

        Returns:
            Columns condition, against, difference, low, high (bootstrap), n, test, p, p_holm.
        """
        import pandas

        conditions = [name for name in self.names if name not in self.control_of]
        pairs = [(name, self.baseline) for name in conditions if name != self.baseline]
        pairs += [(name, name + CONTROLS) for name in conditions if self._draws(name)]
        rows = [self._test(*pair, level, seed) for pair in pairs]
        columns = ["condition", "against", "difference", "low", "high", "n", "test", "p", "p_holm"]
        if rows:
            corrected = holm([row["p"] for row in rows]).tolist()
            rows = [{**row, "p_holm": p} for row, p in zip(rows, corrected, strict=True)]
        return pandas.DataFrame(rows, columns=columns)

    def _test(self, name: str, against: str, level: float, seed: int) -> dict[str, Any]:
        a, b = self.of(name), self.of(against)
        found = paired_interval(a, b, level, seed=seed)
        if bool(((a == 0) | (a == 1)).all() & ((b == 0) | (b == 1)).all()):
            test, p = "McNemar, exact", mcnemar_test(a, b).p
        else:
            test, p = "sign flip", float(sign_flip_test(a - b, seed=seed).p)
        numbers = {"difference": float(found.mean), "low": float(found.low), "high": float(found.high)}
        return {"condition": name, "against": against, **numbers, "n": len(a), "test": test, "p": p}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Every condition with its 95% interval, controls beside what they control."""
        from .figures import plot_comparison

        return plot_comparison(self, ax)

    # ------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: the numbers, and everything else as JSON in its header."""
        tensors = {name: getattr(self, name) for name in TENSORS[:-1]} | {"said": self.bytes}
        about = {"ids": list(self.ids), "about": dict(self.about), "left_out": dict(self.left_out)}
        files.write(path, KIND, tensors, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str], lens: Lens | None = None) -> Comparison:
        """Read a comparison back; with a lens, it must be of its model.

        Raises:
            ScoreError: no such file, a truncated, damaged or changed one, one of another kind, or of another model.
        """
        tensors, about = files.read(path, KIND, TENSORS, ("ids", "about", "left_out"))
        with files.understood(path, KIND):
            each = {"item": len(about["ids"]), "condition": len(about["about"]["conditions"])}
            for name in TENSORS[:-1]:
                files.check_numbers(path, name, tensors[name], each)
            files.check_numbers(path, "said", tensors["said"], {**each, "byte": None})
            if lens is not None:
                files.check_model(path, about["about"]["model"], lens.identity)
            return cls._of(tensors, about["ids"], about["about"], dict(about["left_out"]))

    def __repr__(self) -> str:
        table = self.to_pandas()
        width = max(map(len, table["condition"]))
        lines = [
            f"  {row['condition']:{width}}  {row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
            for row in table.to_dict("records")
        ]
        head = f"Comparison: {self.metric} of {len(self.ids)} items under {len(table)} conditions"
        left = [str(self.problems)] if self.left_out else []
        return "\n".join([head, *lines, *(f"  {note}" for note in (*self.notes, *left))])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{note}</p>" for note in self.notes)
        return self.to_pandas().round(3).to_html(index=False) + self.tests().round(4).to_html(index=False) + notes


CONTROLS = ", controls"
"""Behind a condition's name: the mean over the draws of its control."""
