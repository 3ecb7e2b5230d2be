"""The report of a demo: figures as files, and one HTML page that holds them all and needs no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .figures import attention_over_image, head_heatmap
from .prompt_view import as_html
from .sinks import rule_for

if TYPE_CHECKING:
    from .lens import Lens
    from .prompt import Prompt
    from .scoring import HeadScores


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
    n_top: int,
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
        n_top: how many heads count as the best.
        accuracy: rows of (condition, visual accuracy, text-only accuracy).

    Returns:
        The path of the page.
    """
    import jinja2

    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "heads.png": _heatmaps(raw, nonsink, n_top),
        "attention.png": _overlays(lens, prompt, raw, nonsink),
    }
    for name, figure in figures.items():
        figure.savefig(folder / name)
    raw.save(folder / "visual_mass.safetensors")
    nonsink.save(folder / "nonsink_mass.safetensors")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lmm_lens", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        lens=repr(lens),
        question=question,
        answer=answer,
        expected=expected,
        sequence=as_html(prompt),
        figures={name.removesuffix(".png"): _inline(folder / name) for name in figures},
        n_prompts=raw.n_prompts,
        n_top=n_top,
        rankings=[(scores.metric, _ranking(scores, n_top)) for scores in (raw, nonsink)],
        accuracy=[item.row() for item in accuracy],
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _heatmaps(raw: HeadScores, nonsink: HeadScores, n_top: int) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), dpi=150, layout="constrained")
    for ax, scores in zip(figure.subplots(1, 2), (raw, nonsink), strict=True):
        head_heatmap(scores, ax, mark=scores.top(n_top), vmax=float(raw.values.max()))
    figure.suptitle(f"outlined: the {n_top} highest heads", fontsize=9)
    return figure


def _overlays(lens: Lens, prompt: Prompt, raw: HeadScores, nonsink: HeadScores) -> Any:
    """The picture, two heads that read it, and two that only park their attention on a sink."""
    from matplotlib.figure import Figure

    parked = [head for head in raw.top(12) if head not in nonsink.top(16)][:2]
    reading = list(nonsink.top(4 - len(parked)))
    heads = reading + parked
    rule = rule_for(lens.adapter.config)
    figure = Figure(figsize=(2.5 * (len(heads) + 1), 2.9), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(heads) + 1)
    axes[0].imshow(prompt.images[0][0])
    axes[0].set(xticks=[], yticks=[])
    axes[0].set_title("the picture", fontsize=9)
    for ax, (layer, head) in zip(axes[1:], heads, strict=True):
        sinks = rule.positions(lens, prompt, layer) if (layer, head) in parked else ()
        attention_over_image(lens, prompt, layer, head, ax=ax, sinks=sinks)
        kind = "high by raw mass only: it parks\non sinks (dashed)" if (layer, head) in parked else "high by non-sink mass"
        ax.set_xlabel(kind, fontsize=8)
    return figure


def _ranking(scores: HeadScores, n: int) -> list[tuple[str, str]]:
    rows = scores.to_pandas().head(n).itertuples(index=False)
    return [(f"L{row.layer}H{row.head}", f"{row[2]:.3f} ({row.low:.3f} to {row.high:.3f})") for row in rows]


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
