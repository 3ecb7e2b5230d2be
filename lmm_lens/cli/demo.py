"""`lmm-lens demo`: the main job, end to end, on the bundled model.

1. Ask a question about a generated picture; print the answer and the annotated sequence.
2. Score all heads over a few hundred questions, by raw and by non-sink visual mass.
3. Ablate the best heads, and random heads with the same layer spread; measure accuracy on visual and on text-only
   questions.
4. Write figures and one HTML report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from .tables import head_table
from .waiting import shows_bars, waiting

if TYPE_CHECKING:
    from ..bundled.shapes import Example
    from ..hooks.heads import HeadSet
    from ..lens import Lens
    from ..prompts.prompt import Prompt

N_TOP = 8
SWEEP = "sweep.yaml"
FIRST_LAYER = 1  # layer 0 reads the words: ablating there hurts every answer, and drowns what we look for
N_CONTROLS = 5
BATCH = 70  # a multiple of the number of question kinds, so that batches are alike


@dataclass(frozen=True)
class Accuracy:
    """Exact match under one condition; a control gives several."""

    condition: str
    visual: tuple[float, ...]
    text: tuple[float, ...]

    def row(self) -> tuple[str, str, str]:
        """Cells of a table."""
        return self.condition, _spread(self.visual), _spread(self.text)


def run(out: Path, n_prompts: int, seed: int) -> None:
    """Run the demo and write its files into `out`."""
    with _one_thread():
        _run(out, n_prompts, seed)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The bundled model is so small that a second thread only costs."""
    with waiting("starting"):
        import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(out: Path, n_prompts: int, seed: int) -> None:
    console = Console()
    with waiting("loading the model"):
        from ..bundled import shapes
        from ..lens import Lens
        from ..scoring import score_heads

        lens = Lens.demo()
    console.print(lens)

    asked = shapes.examples(1, kinds=("color",), seed=seed + 1)[0]
    prompt = lens.prompt(asked.question, images=asked.image)
    answer = lens.generate(prompt).text[0]
    console.rule("a question about a picture")
    console.print(f"{asked.question} {answer} (expected: {asked.answer})", highlight=False)
    console.print(str(prompt), markup=False, highlight=False)

    visual = shapes.examples(n_prompts, seed=seed)
    text = shapes.examples(n_prompts // 2, kinds=shapes.TEXT_KINDS, seed=seed)
    visual_prompts, text_prompts = _batches(lens, visual), _batches(lens, text)
    console.rule(f"which heads look at the image? {n_prompts} questions")
    raw = score_heads(lens, visual_prompts, "visual_mass", progress=shows_bars())
    nonsink = score_heads(lens, visual_prompts, "nonsink_mass", progress=shows_bars())
    for scores, what in ((raw, "raw visual mass"), (nonsink, "non-sink visual mass")):
        console.print(head_table(scores, N_TOP, f"{what}, layers {FIRST_LAYER} to {lens.n_layers - 1}", FIRST_LAYER))

    console.rule("are they needed? exact match of the answers")
    conditions: list[tuple[str, list[HeadSet | None]]] = [("nothing ablated", [None])]
    best = {
        name: scores.top(N_TOP, layers=range(FIRST_LAYER, lens.n_layers))
        for name, scores in (("non-sink", nonsink), ("raw", raw))
    }
    for name, heads in best.items():
        conditions.append((f"top {N_TOP} by {name} mass", [heads]))
        conditions.append((f"{N_TOP} random, same layers", [_control(heads, s) for s in range(N_CONTROLS)]))
    with Progress(console=console, transient=True, disable=not shows_bars()) as progress:
        n_answers = (len(visual) + len(text)) * sum(len(sets) for _, sets in conditions)
        task = progress.add_task("asking with heads ablated", total=n_answers)
        measured = [
            Accuracy(
                name,
                *(
                    tuple(_accuracy(lens, *questions, heads, progress, task) for heads in sets)
                    for questions in ((visual_prompts, visual), (text_prompts, text))
                ),
            )
            for name, sets in conditions
        ]
    table = Table(
        "ablated",
        f"visual (n = {len(visual)})",
        f"text-only (n = {len(text)})",
        title=f"z set to 0 in all rows, heads of layers {FIRST_LAYER} to {lens.n_layers - 1}",
    )
    for accuracy in measured:
        table.add_row(*accuracy.row())
    console.print(table)

    from ..reports.demo import write_report

    with waiting("drawing"):
        path = write_report(
            out,
            lens,
            prompt,
            asked.question,
            answer,
            asked.answer,
            raw,
            nonsink,
            (best["raw"], best["non-sink"]),
            FIRST_LAYER,
            measured,
        )
    _write_sweep(out)
    console.print("figures and report:", str(path), markup=False, highlight=False, soft_wrap=True)
    console.print('a real language model that learned to see: Lens.demo("emoji")', markup=False, highlight=False)


def _write_sweep(out: Path) -> None:
    """A config to go on with: what each of the best heads does alone, and together beside random ones."""
    from .config_files import save_values

    values = {
        "model": "demo",
        "data": {"kind": "shapes", "n": 60},
        "heads": {"top": N_TOP, "of": str(out / "nonsink_mass.safetensors")},
        "controls": {"number": N_CONTROLS, "seed": 0},
        "out": f"{out}-sweep",
    }
    save_values(values, out, SWEEP)


def _batches(lens: Lens, examples: Sequence[Example]) -> list[Prompt]:
    batches = (examples[start : start + BATCH] for start in range(0, len(examples), BATCH))
    return [lens.prompt([e.question for e in batch], images=[e.image for e in batch]) for batch in batches]


def _control(heads: HeadSet, seed: int) -> HeadSet:
    """Random heads with the same layer spread, other heads than these wherever a layer has enough of them."""
    crowded = any(2 * len(taken) > heads.n_heads for taken in heads.by_layer().values())
    return heads.random_like(seed, disjoint=not crowded)


def _accuracy(
    lens: Lens,
    prompts: list[Prompt],
    examples: Sequence[Example],
    heads: HeadSet | None,
    progress: Progress,
    task: TaskID,
) -> float:
    from ..comparisons import exact_match
    from ..interventions import AblateHeads

    edits = [] if heads is None else [AblateHeads(heads)]
    answers = [example.answer for example in examples]
    right = exact_match(lens, prompts, answers, edits, on_batch=lambda n: progress.advance(task, n))
    return float(right.float().mean())


def _spread(values: tuple[float, ...]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.3f}" if len(values) == 1 else f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})"
