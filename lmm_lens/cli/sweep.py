"""`lmm-lens sweep CONFIG`: the effect of every head on a data set, resumable, with statistics and a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from ..errors import LensError, ScoreError, unknown
from ..reports.folder import CONFIG, CONTROLS, EFFECTS
from .config_files import begin_folder, free_folder
from .opening import open_data, open_lens
from .report import show
from .sweep_config import SweepConfig, heads_from, ray_of
from .waiting import shows_bars, waiting

if TYPE_CHECKING:
    from ..data import DataSet
    from ..hooks.heads import HeadSet
    from ..lens import Lens
    from ..prompts.prompt import Prompt

N_REFERENCE = 256  # prompts that means are taken over: enough for a mean, and a data set may be endless


def run(path: Path | None, flags: Mapping[str, Any]) -> None:
    """Run a sweep, or go on with one.

    Args:
        path: of a config; None for the flags alone.
        flags: by the names of the command's parameters; None where nothing was said.

    Raises:
        LensError: of the config, the data set, the model or the folder.
    """
    given = _entries(flags)
    config = SweepConfig.of_flags(given) if path is None else SweepConfig.read(path, given)
    console = Console()
    folder = free_folder(Path(config.out), EFFECTS, "sweep")
    data = open_data(config)
    _check(config)
    lens = open_lens(config, console)
    heads = heads_from(config.heads, lens)
    sets = _controls(config, heads)
    if begin_folder(folder, EFFECTS):
        config.save(folder)
    reference = _reference(config, lens, data)
    try:
        _sweep(config, lens, data, heads, reference, folder / EFFECTS)
        if sets:
            _sweep(config, lens, data, sets, reference, folder / CONTROLS)
    except KeyboardInterrupt:
        console.print(
            f"interrupted; what is finished is safe, go on with: lmm-lens sweep {folder / CONFIG}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    config.save(folder)
    show(folder, console)


def _sweep(
    config: SweepConfig, lens: Lens, data: DataSet, heads: HeadSet | list[HeadSet], reference: Any, folder: Path
) -> None:
    from ..effects.sweep import head_effects

    head_effects(
        lens,
        data,
        config.ablation,
        config.rows,
        config.metric,
        heads=heads,
        reference=reference,
        folder=folder,
        ray=ray_of(config.ray),
        changed=config.changed,
        progress=shows_bars(),
    )


def _check(config: SweepConfig) -> None:
    """LensError for a metric or an ablation that does not exist, before the model is loaded."""
    from ..answers.outcomes import answer_metric
    from ..interventions.ablate import MODES

    answer_metric(config.metric)
    if config.ablation not in MODES:
        raise LensError(unknown("ablation mode", config.ablation, MODES))


def _controls(config: SweepConfig, heads: HeadSet) -> list[HeadSet]:
    """The chosen heads and random ones like them, each set to be ablated at once; empty if none are asked for."""
    if not config.controls.number:
        return []
    if all(len(taken) == heads.n_heads for taken in heads.by_layer().values()):
        raise ScoreError(
            f"controls: random heads in the same layers would be the same {len(heads)} heads, which are whole layers\n"
            "  choose heads by {top: ..., of: ...} or one by one, or leave the controls out"
        )
    seeds = range(config.controls.seed, config.controls.seed + config.controls.number)
    return [heads, *(heads.random_like(seed, disjoint=False) for seed in seeds)]


def _reference(config: SweepConfig, lens: Lens, data: DataSet) -> Any:
    """What heads are replaced by: their means over the first prompts, or their values with a blank picture."""
    if config.ablation == "mean":
        from ..interventions import head_means

        prompts: Iterator[Prompt] = (sample.prompt(lens) for sample in islice(data, N_REFERENCE))
        with waiting("means of the heads"):
            return head_means(lens, prompts)
    if config.ablation == "resample":
        if config.ray is not None:
            raise LensError("ablation resample needs the model at hand, so it does not go with ray: leave ray out")
        return lambda prompt: _blank(lens, prompt)
    return None


def _blank(lens: Lens, prompt: Prompt) -> Prompt:
    from ..comparisons import blank_images

    if not any(prompt.images):
        raise ScoreError(
            "ablation resample takes the heads' values on the same prompt with a blank picture, and a prompt has none\n"
            "  choose another ablation, or prompts with pictures"
        )
    return blank_images(lens, prompt)


def _entries(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What flags say, by keys of the config."""
    import yaml

    said = {name: value for name, value in flags.items() if value not in (None, [])}
    data: dict[str, Any] = {} if "data" not in said else {"kind": said.pop("data")}
    for option in said.pop("data_option", []):
        name, separator, value = option.partition("=")
        if not separator:
            raise LensError(f"--data-option takes NAME=VALUE, as images=val2014, given {option!r}")
        data[name] = _value(value)
    controls = {
        key: said.pop(name) for name, key in (("controls", "number"), ("controls_seed", "seed")) if name in said
    }
    for name in {"heads", "ray"} & set(said):
        try:
            said[name] = yaml.safe_load(said[name])
        except yaml.YAMLError as error:
            raise LensError(f"--{name} {said[name]!r} cannot be read: {' '.join(str(error).split())}") from error
    if "out" in said:
        said["out"] = str(said["out"])
    return said | ({"data": data} if data else {}) | ({"controls": controls} if controls else {})


def _value(text: str) -> Any:
    """The value of an option: a whole number, a list or null as in YAML, else the text as it is, "yes" too."""
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return found if found is None or type(found) in (int, list) else text
