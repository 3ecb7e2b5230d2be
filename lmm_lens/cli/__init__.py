"""The command line. Nothing heavy is imported until a command runs, so `lmm-lens --help` is instant.

Files that a command names are looked at before that, too: a wrong one is refused at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .config_files import EMPTY_COMPARISON, EMPTY_SWEEP, read_values
from .metrics import FROM_ANSWERS, OF_ANSWERS, OF_HEADS
from .waiting import command

app = typer.Typer(
    add_completion=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    help="Circuit analysis of large multimodal models: where they look, and what that does.",
)

ModelName = Annotated[str, typer.Argument(help='A Hub name, a local folder, or "demo" for the bundled model.')]
ImagePaths = Annotated[list[Path], typer.Option("--image", help="A picture; repeat for more.")]


@app.callback()
def lmm_lens(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version, and end.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print("lmm-lens", installed("lmm-lens"))
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the figures and the report.")] = Path("lmm-lens-demo"),
    n: Annotated[int, typer.Option("--n", min=14, help="How many visual questions to score and to ask.")] = 280,
    seed: Annotated[int, typer.Option(help="Of the pictures and the random heads.")] = 0,
) -> None:
    """The main job on the bundled model: ask, score all heads, ablate the best against random ones. Offline."""
    command("demo")(out, n, seed)


@app.command()
def info(model: ModelName) -> None:
    """Family, layers, heads, visual tokens and hook points of a model. Loads no weights."""
    command("info")(model)


@app.command()
def families(
    markdown: Annotated[bool, typer.Option(help="As the table of the README.")] = False,
) -> None:
    """Every model family with an adapter: where its visual tokens stand, and what is not supported."""
    command("families")(markdown)


@app.command()
def score(
    model: ModelName,
    image: ImagePaths,
    question: Annotated[list[str], typer.Option(help="A question, asked of every picture; repeat for more.")],
    metric: Annotated[str, typer.Option(help=OF_HEADS)] = "visual_mass",
    query: Annotated[str, typer.Option(help='"last" prompt token, or "answer": the first generated token.')] = "last",
    top: Annotated[int, typer.Option(min=1, help="How many heads to print.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Folder for the scores (safetensors) and the heat map.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: auto, float32, bfloat16, float16.")] = "auto",
) -> None:
    """Score every head of a model on your own pictures and questions."""
    check_pictures(image)
    command("score")(model, image, question, metric, query, top, out, dtype)


@app.command()
def sweep(
    config: Annotated[Path | None, typer.Argument(help="A YAML file of what follows; flags override it.")] = None,
    model: Annotated[str | None, typer.Option(help='A Hub name, a local folder, or "demo".')] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the weights: auto, float32, bfloat16, float16.")] = None,
    device_map: Annotated[str | None, typer.Option(help='Where the weights go, as "auto" or "cuda".')] = None,
    backend: Annotated[str | None, typer.Option(help="native, transformer_lens or nnsight.")] = None,
    data: Annotated[str | None, typer.Option(help="pope, mme, gqa, vqav2, mmbench, ..., table or shapes.")] = None,
    data_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the data set, as images=val2014; repeat.")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="How many prompts, the first ones; all by default.")] = None,
    ablation: Annotated[str | None, typer.Option(help="zero, mean, resample or uniform.")] = None,
    rows: Annotated[str | None, typer.Option(help="last, after_image or all.")] = None,
    metric: Annotated[str | None, typer.Option(help=OF_ANSWERS)] = None,
    heads: Annotated[
        str | None, typer.Option(help='all, "layers: [2, 3]", "[[3, 1], [4, 0]]" or "{top: 20, of: FILE}".')
    ] = None,
    controls: Annotated[int | None, typer.Option(help="Random sets like the chosen heads to compare with.")] = None,
    controls_seed: Annotated[int | None, typer.Option(help="Of the first random set.")] = None,
    ray: Annotated[
        str | None, typer.Option(help='How many local workers, an address, or "{workers: 8, num_gpus: 1}".')
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything else that is drawn.")] = None,
    changed: Annotated[str | None, typer.Option(help="Rows that changed since: refuse, or recompute.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; an unfinished sweep there is continued.")] = None,
) -> None:
    """Ablate every head, or some, on a data set: what each does to the answers, with statistics and a report."""
    flags = {name: value for name, value in locals().items() if name != "config"}
    if config is not None:
        read_values(config, EMPTY_SWEEP)
    command("sweep")(config, flags)


@app.command()
def compare(
    config: Annotated[Path, typer.Argument(help="A YAML file: model, data, conditions, metric, controls, out.")],
    n: Annotated[int | None, typer.Option("--n", help="How many questions, the first ones; all by default.")] = None,
    metric: Annotated[str | None, typer.Option(help=FROM_ANSWERS)] = None,
    controls: Annotated[int | None, typer.Option(help="Random controls of each condition that edits anything.")] = None,
    changed: Annotated[str | None, typer.Option(help="Rows that changed since: refuse, or recompute.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; an unfinished comparison there is continued.")] = None,
) -> None:
    """The same questions under several conditions, as with VAR and without: paired tests, controls, a figure."""
    flags = {name: value for name, value in locals().items() if name != "config"}
    read_values(config, EMPTY_COMPARISON)
    command("compare")(config, flags)


study_app = typer.Typer(no_args_is_help=True, help="The two papers' studies on any models and data sets.")
app.add_typer(study_app, name="study")

StudyFile = Annotated[Path, typer.Argument(help="A YAML file: models, data, settings, out.")]
StudyN = Annotated[int | None, typer.Option("--n", help="How many of each data set, the first ones.")]
StudyChanged = Annotated[str | None, typer.Option(help="Rows that changed since: refuse, or recompute.")]
StudyOut = Annotated[Path | None, typer.Option(help="Folder; an unfinished study there is continued.")]
StudyPlan = Annotated[bool, typer.Option("--plan", help="Only say what it will cost: forwards, hours, memory, disk.")]


@study_app.command("heads")
def study_heads(
    config: StudyFile,
    n: StudyN = None,
    changed: StudyChanged = None,
    out: StudyOut = None,
    plan: StudyPlan = False,
) -> None:
    """Which heads look at the picture, where they lie, whether rankings agree, what answers lose without them."""
    flags = {name: value for name, value in locals().items() if name != "config"}
    from .study import run

    run("heads", config, flags)


@study_app.command("sinks")
def study_sinks(
    config: StudyFile,
    n: StudyN = None,
    changed: StudyChanged = None,
    out: StudyOut = None,
    plan: StudyPlan = False,
) -> None:
    """Which tokens are attention sinks and where, what masking them costs, what VAR does and costs."""
    flags = {name: value for name, value in locals().items() if name != "config"}
    from .study import run

    run("sinks", config, flags)


@app.command()
def atlas(
    folders: Annotated[list[Path], typer.Argument(help="Of studies, or of single models in them; anybody's.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("atlas.html"),
) -> None:
    """One page that compares the models of studies: maps, curves, claims, downloads. Needs no network."""
    from .atlas import run

    run(folders, out)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Of a sweep, finished or not.")],
) -> None:
    """Print the tables of a sweep again, and write its figures and its page."""
    from ..reports.folder import has_parts

    has_parts(folder)
    command("report")(folder)


@app.command()
def view(
    model: ModelName,
    image: ImagePaths,
    question: Annotated[str, typer.Option(help="What to ask about it.")],
    queries: Annotated[str, typer.Option(help='Whose attention: "last", "question", "text", ...')] = "last",
    tower: Annotated[bool, typer.Option("--tower", help="Also show the heads of the vision tower.")] = False,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("lmm-lens-view.html"),
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
    dtype: Annotated[str, typer.Option(help="Of the weights: auto, float32, bfloat16, float16.")] = "auto",
) -> None:
    """One page that shows where every head looks: pictures, words and heads. Needs no network."""
    check_pictures(image)
    command("view")(model, image, question, queries, tower, out, open_, dtype)


def check_pictures(paths: list[Path]) -> None:
    """PromptError for a file that is none, or no picture."""
    from ..prompts.sources import check_image

    for path in paths:
        check_image(path)


def main() -> None:
    """Entry point: errors of ours, of files and of memory are printed without a traceback, and end with status 2."""
    from ..errors import LensError, printable

    try:
        app()
    except (LensError, OSError, MemoryError) as error:
        from rich.console import Console

        console = Console(stderr=True)
        console.print("[bold red]error:[/]", end=" ")
        console.print(printable(_said(error)), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


def _said(error: Exception) -> str:
    """What went wrong, in a sentence."""
    if isinstance(error, MemoryError):
        return "memory ran out\n  give --n, a smaller dtype, or a machine with more"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename!r} " if error.filename else ""
        return f"{where}cannot be read or written: {error.strerror}"
    return str(error)
