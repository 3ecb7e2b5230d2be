"""The report of a sweep, from its folder alone: tables, figures as files, and one HTML page that needs no network."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..answers.outcomes import ANSWER_METRICS
from ..effects.scores import KIND, HeadEffects
from ..errors import ScoreError
from ..figures.axes import save_figure
from ..interventions.ablate import MODES
from ..runs import RunFolder, disk
from ..statistics import ControlTest, control_test
from .folder import CONFIG, CONTROLS, EFFECTS, has_parts
from .html import inline, render

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

ALPHA = 0.05
COLUMNS = ("unit", "effect", "95% interval", "p", "p (Holm)", "q (BH)")


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a sweep's folder holds, finished or not.

    Attributes:
        folder: it.
        run: the run folder of the single heads.
        effects: of the heads, in the metric of the config.
        controls: of the chosen set (the first unit) and its random controls; None where none are asked for, or there
            yet.
        config: what the sweep was told, as in its file; empty for a run folder that was written from Python.
    """

    folder: Path
    run: RunFolder
    effects: HeadEffects
    controls: HeadEffects | None
    config: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Sweep:
        """Read the folder of `lmm-lens sweep`, or a run folder of `head_effects(..., folder=...)`.

        Raises:
            ScoreError: it is neither, or no prompt is finished yet.
        """
        parts = has_parts(folder)
        config = _config(folder / CONFIG) if parts else {}
        metric = config.get("metric", "log_prob")
        run = RunFolder.open(folder / EFFECTS if parts else folder, KIND)
        controls = None
        if (folder / CONTROLS).is_dir() and RunFolder.open(folder / CONTROLS, KIND).n_items:
            controls = HeadEffects.open(folder / CONTROLS, metric)
        return cls(folder, run, HeadEffects.open(run.path, metric), controls, config)

    @property
    def seed(self) -> int:
        """Of the intervals and the tests."""
        return int(self.config.get("seed", 0))

    @cached_property
    def table(self) -> pandas.DataFrame:
        """One row a unit, largest effect first; see `lmm_lens.statistics.effects_table`."""
        return self.effects.to_pandas(seed=self.seed)

    @cached_property
    def comparison(self) -> ControlTest | None:
        """The chosen heads, all ablated at once, against random sets with the same layer spread."""
        if self.controls is None:
            return None
        each = self.controls.per_prompt
        return control_test(each[:, 0], each[:, 1:], seed=self.seed)

    # ------------------------------------------------------------------ in words

    def rows(self, n: int) -> list[tuple[str, ...]]:
        """The cells of the n units with the largest effects, under `COLUMNS`."""
        return [
            (
                row["unit"] if len(row["unit"]) <= 40 else f"{row['unit'][:37]}...",
                f"{row['effect']:+.3g}",
                f"{row['low']:+.3g} to {row['high']:+.3g}",
                *(_probability(row[name]) for name in ("p", "p_holm", "q_bh")),
            )
            for row in self.table.head(n).to_dict("records")
        ]

    def facts(self) -> dict[str, str]:
        """What was done, name to words."""
        effects, about = self.effects, self.effects.about
        model = about["model"]
        name = f"{self.config['model']}, " if "model" in self.config else ""
        n_right = int(effects.of("accuracy").clean.sum())
        data = about.get("data", {}).get("name")
        return {
            "model": f"{name}{model['model']}, {model['n_layers']} layers x {model['n_heads']} heads",
            "prompts": f"{effects.n_prompts}{f' from {data}' if data else ''}"
            + ("" if self.run.finished else ", the sweep is not finished"),
            "data set": str(effects.problems) + ("" if self.run.finished else "; not read to its end"),
            "ablation": f"{effects.ablation}: {MODES[effects.ablation].split(';')[0]}",
            "rows": effects.rows,
            "metric": f"{effects.metric}: {effects.meaning}",
            "without ablation": f"{effects.metric} {effects.clean.nanmean():.3g}, "
            f"{n_right} of {effects.n_prompts} answered rightly",
            "computed": effects.how,
        }

    def verdict(self) -> str:
        """How many units have an effect that is not chance, in a sentence; and whether prompts are too few to tell."""
        found = self.table[self.table["p_holm"] < ALPHA]
        n_helping = int((found["effect"] > 0).sum())
        what = "heads" if all(len(unit) == 1 for unit in self.effects.units) else "units"
        n_prompts = int(self.table["n"].max())
        least = 2.0 ** (1 - n_prompts) * len(self.table)  # of 2^n choices of signs two are as far out as can be
        too_few = f"; {n_prompts} prompts are too few for any p to survive the correction" if least >= ALPHA else ""
        return (
            f"{len(found)} of {len(self.table)} {what} have an effect after Holm's correction at {ALPHA:g}: "
            f"{n_helping} help, {len(found) - n_helping} hurt; "
            f"{int((self.table['q_bh'] < ALPHA).sum())} by Benjamini and Hochberg{too_few}"
        )

    def compared(self) -> str | None:
        """The chosen heads against random ones, in a sentence."""
        test = self.comparison
        if self.controls is None or test is None:
            return None
        effect, difference, null = test.effect, test.difference, test.null
        return (
            f"The {len(self.controls.units[0])} chosen heads ablated at once: {effect.mean:+.3g} "
            f"({effect.low:+.3g} to {effect.high:+.3g}); {len(null)} random sets in the same layers: mean "
            f"{null.mean():+.3g}, from {null.min():+.3g} to {null.max():+.3g}; difference {difference.mean:+.3g} "
            f"({difference.low:+.3g} to {difference.high:+.3g}), p {_probability(test.p)}"
        )


def write_sweep_report(sweep: Sweep, n_top: int = 20) -> Path:
    """Write the table, the figures and the page into the sweep's folder; earlier ones are overwritten.

    Args:
        sweep: what to report.
        n_top: how many units the page lists; effects.csv has them all.

    Returns:
        The path of the page.

    Raises:
        ScoreError: the folder cannot be written to.
    """
    names = []
    with disk.told(f"the report cannot be written into {sweep.folder.name!r}", "what the sweep found is safe"):
        disk.replace(sweep.folder / "effects.csv", sweep.table.to_csv(index=False).encode())
        for name, axes in _figures(sweep).items():
            drawn = io.BytesIO()
            save_figure(axes, drawn)
            disk.replace(sweep.folder / name, drawn.getvalue())
            names.append(name)
    page = render(
        "sweep.html.j2",
        facts=sweep.facts(),
        verdict=sweep.verdict(),
        compared=sweep.compared(),
        columns=COLUMNS,
        rows=sweep.rows(n_top),
        n_units=len(sweep.table),
        figures={name.removesuffix(".png"): _shown(sweep.folder / name) for name in names},
        settings={key: str(value) for key, value in sweep.config.items()},
        versions=sweep.run.manifest.versions,
    )
    path = sweep.folder / "report.html"
    with disk.told(f"the report cannot be written into {sweep.folder.name!r}", "what the sweep found is safe"):
        disk.replace(path, page.encode())
    return path


CAPTIONS = {
    "effect_map.png": "The mean effect of each head. Outlined: those that survive Holm's correction.",
    "effects_by_layer.png": "Where in depth the heads that matter lie.",
    "sorted_effects.png": "All units by effect, with 95% bootstrap intervals over prompts.",
    "against_random.png": "The chosen heads, all ablated at once, against random heads in the same layers.",
}


def _figures(sweep: Sweep) -> dict[str, Axes]:
    from ..effects.figures import against_controls, effect_map, effects_by_layer, sorted_effects

    drawn: dict[str, Axes] = {}
    if any(len(unit) == 1 for unit in sweep.effects.units):
        drawn["effect_map.png"] = effect_map(sweep.effects, table=sweep.table)
        drawn["effects_by_layer.png"] = effects_by_layer(sweep.effects, table=sweep.table)
    drawn["sorted_effects.png"] = sorted_effects(sweep.effects, table=sweep.table)
    if sweep.comparison is not None:
        drawn["against_random.png"] = against_controls(sweep.comparison, sweep.effects.metric)
    return drawn


def _shown(path: Path) -> dict[str, Any]:
    """A figure for the page, in its natural size of 96 pixels an inch."""
    from PIL import Image

    with Image.open(path) as picture:
        width = picture.width * 96 / picture.info["dpi"][0]
    return {"caption": CAPTIONS[path.name], "source": inline(path), "width": round(width)}


def _config(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ScoreError(f"{path.name} of the sweep {path.parent.name!r} cannot be read: {error}") from error
    if not isinstance(values, dict) or values.get("metric") not in ANSWER_METRICS:
        raise ScoreError(f"{path.name} of the sweep {path.parent.name!r} is damaged: it names no metric")
    return values


def _probability(p: float) -> str:
    return "-" if p != p else f"{p:.2g}" if p >= 5e-5 else f"{p:.0e}"
