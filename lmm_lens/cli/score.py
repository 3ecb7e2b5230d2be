"""`lmm-lens score MODEL --images ... --question ...`: which heads look at your pictures."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import track

from ..errors import LensError, unknown
from .tables import head_table

DTYPES = ("auto", "float32", "bfloat16", "float16")


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
    from ..figures import save_figure
    from ..lens import Lens
    from ..scoring import score_heads
    from ..scoring.metrics import head_metric

    chosen = head_metric(metric)  # before the model is loaded
    if chosen.needs_boxes or chosen.needs_relevant:
        raise LensError(
            f"{metric} needs boxes, one for each prompt, which the command line does not take\n"
            "  call score_heads in Python"
        )
    if dtype not in DTYPES:
        raise LensError(unknown("dtype", dtype, DTYPES))
    console = Console()
    with console.status("loading the model"):
        lens = Lens.demo() if name == "demo" else Lens.from_pretrained(name, dtype=dtype)
    console.print(lens)
    pairs = [(image, question) for image in images for question in questions]
    prompts = [
        lens.prompt(question, images=image) for image, question in track(pairs, "reading pictures", transient=True)
    ]
    scores = score_heads(lens, prompts, metric, query, progress=True)
    console.print(head_table(scores, min(top, scores.values.numel()), f"{metric}: {chosen.meaning} (query {query})"))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        scores.save(out / f"{metric}.safetensors")
        save_figure(scores.plot(), out / f"{metric}.png")
        console.print(f"wrote {out / metric}.safetensors and .png", markup=False, highlight=False, soft_wrap=True)
