"""`lmm-lens sweep CONFIG`: the effect of every head on a data set, resumable, with statistics and a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from ..errors import LensError, ScoreError, unknown
from ..reports.sweep import CONFIG, CONTROLS, EFFECTS
from .report import show
from .score import DTYPES
from .sweep_config import SweepConfig, heads_from, ray_of

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
    folder = _free(Path(config.out))
    data = _data(config)
    lens = _lens(config, console)
    heads = heads_from(config.heads, lens)
    sets = _controls(config, heads)
    _begin(config, folder)
    reference = _reference(config, lens, data, console)
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
        progress=True,
    )


def _data(config: SweepConfig) -> DataSet:
    from ..data import named

    data = named(**config.data)
    return data if config.n is None else data.take(config.n)


def _lens(config: SweepConfig, console: Console) -> Lens:
    from ..answers.outcomes import answer_metric
    from ..interventions.ablate import MODES
    from ..lens import Lens

    answer_metric(config.metric)  # before the model is loaded
    for what, value, valid in (("dtype", config.dtype, DTYPES), ("ablation mode", config.ablation, MODES)):
        if value not in valid:
            raise LensError(unknown(what, value, valid))
    with console.status("loading the model"):
        if config.model == "demo":
            lens = Lens.demo(backend=config.backend)
        else:
            placed: dict[str, Any] = {} if config.device_map is None else {"device_map": config.device_map}
            lens = Lens.from_pretrained(config.model, config.backend, dtype=config.dtype, **placed)
    console.print(lens)
    return lens


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


def _free(folder: Path) -> Path:
    """The folder, if it is a sweep's or can become one; ScoreError otherwise."""
    if "\0" in str(folder):
        raise ScoreError(f"no folder can be called {str(folder)!r}: it holds a NUL character")
    if folder.exists() and not folder.is_dir():
        raise ScoreError(f"{str(folder)!r} is a file: a sweep is written into a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / EFFECTS).is_dir():
        raise ScoreError(f"the folder {str(folder)!r} holds other things and no sweep\n  give a new or an empty folder")
    return folder


def _begin(config: SweepConfig, folder: Path) -> None:
    """Make the sweep's folder with its config, if it is not there; ScoreError if that cannot be."""
    try:
        (folder / EFFECTS).mkdir(parents=True, exist_ok=True)
        if not (folder / CONFIG).exists():
            config.save(folder)
    except OSError as error:
        raise ScoreError(f"the folder {str(folder)!r} cannot be made: {error.strerror}") from error


def _reference(config: SweepConfig, lens: Lens, data: DataSet, console: Console) -> Any:
    """What heads are replaced by: their means over the first prompts, or their values with a blank picture."""
    if config.ablation == "mean":
        from ..interventions import head_means

        prompts: Iterator[Prompt] = (sample.prompt(lens) for sample in islice(data, N_REFERENCE))
        with console.status("means of the heads"):
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
