"""The report of a demo: figures as files, and one HTML page that holds them all and needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..prompts.view import as_html
from ..scoring import score_heads
from ..scoring.figures import attention_over_image, head_heatmap
from ..sinks import rule_for
from .html import inline, render

if TYPE_CHECKING:
    from ..hooks.heads import HeadSet
    from ..lens import Lens
    from ..prompts.prompt import Prompt
    from ..scoring import HeadScores


class TableRow(Protocol):
    """Anything that gives the cells of a table row."""

    def row(self) -> tuple[str, ...]:
        """The cells."""


def write_report(
    folder: Path,
    lens: Lens,
    prompt: Prompt,
    question: str,
    answer: str,
    expected: str,
    raw: HeadScores,
    nonsink: HeadScores,
    best: tuple[HeadSet, HeadSet],
    first_layer: int,
    accuracy: Sequence[TableRow],
) -> Path:
    """Draw the figures and write the page.

    Args:
        folder: made if missing; files of an earlier report are overwritten.
        lens: the model.
        prompt: one prompt with a picture.
        question: its text.
        answer: what the model said.
        expected: what is right.
        raw: visual mass of all heads.
        nonsink: non-sink visual mass of all heads.
        best: the heads that were ablated, by raw and by non-sink mass.
        first_layer: the first layer that they were chosen from.
        accuracy: rows of (condition, visual accuracy, text-only accuracy).

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "heads.png": _heatmaps((raw, nonsink), best),
        "attention.png": _overlays(lens, prompt, raw, nonsink),
    }
    for name, figure in figures.items():
        figure.savefig(folder / name)
    prompt.images[0][0].save(folder / "picture.png")
    raw.save(folder / "visual_mass.safetensors")
    nonsink.save(folder / "nonsink_mass.safetensors")
    page = render(
        "demo.html.j2",
        lens=repr(lens),
        question=question,
        answer=answer,
        expected=expected,
        sequence=as_html(prompt),
        figures={name.removesuffix(".png"): inline(folder / name) for name in figures},
        n_prompts=raw.n_prompts,
        n_top=len(best[0]),
        rankings=[(scores.metric, _ranking(scores, len(best[0]), first_layer)) for scores in (raw, nonsink)],
        first_layer=first_layer,
        accuracy=[item.row() for item in accuracy],
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _heatmaps(scores: tuple[HeadScores, HeadScores], best: tuple[HeadSet, HeadSet]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), dpi=150, layout="constrained")
    vmax = max(float(each.values.max()) for each in scores)  # one scale, so that the two can be compared
    for ax, each, heads in zip(figure.subplots(1, 2), scores, best, strict=True):
        head_heatmap(each, ax, mark=heads, vmax=vmax)
    figure.suptitle("outlined: the heads that are ablated below", fontsize=9)
    return figure


def _overlays(lens: Lens, prompt: Prompt, raw: HeadScores, nonsink: HeadScores) -> Any:
    """The picture, two heads that read it, and two that only park their attention on a sink."""
    from matplotlib.figure import Figure

    parked = [head for head in raw.top(12) if head not in nonsink.top(16)][:2]
    here = score_heads(lens, prompt, "nonsink_mass").values
    reading = sorted(nonsink.top(8), key=lambda head: -float(here[head]))[: 4 - len(parked)]
    heads = reading + parked
    rule = rule_for(lens.adapter.config)
    figure = Figure(figsize=(2.5 * (len(heads) + 1), 3.2), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(heads) + 1)
    axes[0].imshow(prompt.images[0][0])
    axes[0].set(xticks=[], yticks=[])
    axes[0].set_title("the picture", fontsize=9)
    for ax, (layer, head) in zip(axes[1:], heads, strict=True):
        attention_over_image(lens, prompt, layer, head, ax=ax, sinks=rule.positions(lens, prompt, layer))
        kind = "high by raw mass only" if (layer, head) in parked else "high by non-sink mass, here too"
        ax.set_xlabel(kind, fontsize=8)
    return figure


def _ranking(scores: HeadScores, n: int, first_layer: int) -> list[tuple[str, str]]:
    rows = scores.to_pandas().query("layer >= @first_layer").head(n).itertuples(index=False)
    return [(f"L{row.layer}H{row.head}", f"{row[2]:.3f} ({row.low:.3f} to {row.high:.3f})") for row in rows]
