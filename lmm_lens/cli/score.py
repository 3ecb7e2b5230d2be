"""`lmm-lens score MODEL --image ... --question ...`: which heads look at your pictures."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..errors import LensError
from .opening import load
from .tables import head_table
from .waiting import shows_bars, waiting


def run(
    name: str,
    images: list[Path],
    questions: list[str],
    metric: str,
    query: str,
    top: int,
    out: Path | None,
    dtype: str,
) -> None:
    """Score all heads, print the best, and write scores and heat map if a folder is given."""
    with waiting("starting"):
        from ..figures import save_figure
        from ..scoring import score_heads
        from ..scoring.metrics import head_metric

    chosen = head_metric(metric)  # before the model is loaded
    if chosen.needs_boxes or chosen.needs_relevant:
        raise LensError(
            f"{metric} needs boxes, one for each prompt, which the command line does not take\n"
            "  call score_heads in Python"
        )
    console = Console()
    lens = load(name, dtype, console)
    pairs = [(image, question) for image in images for question in questions]
    with waiting("reading pictures"):
        prompts = [lens.prompt(question, images=image) for image, question in pairs]
    scores = score_heads(lens, prompts, metric, query, progress=shows_bars())
    title = f"{metric}: {chosen.meaning} (query {query})"
    console.print(head_table(scores, min(top, scores.values.numel()), title))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        scores.save(out / f"{metric}.safetensors")
        save_figure(scores.plot(), out / f"{metric}.png")
        console.print(f"wrote {out / metric}.safetensors and .png", markup=False, highlight=False, soft_wrap=True)
