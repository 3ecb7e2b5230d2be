"""`view(prompt, what)`: see where a model looks, in a notebook or as a page to keep."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import HookError, LensError, ScoreError
from ..hooks.heads import DECODER, HeadSet, check_part
from ..hooks.results import Run
from ..prompts.prompt import Prompt, check_prompt
from ..prompts.rows import RowsLike
from ..runs.files import check_same_model
from ..scoring import HEAD_METRICS, HeadScores
from ..sinks import SinkRule
from .masses import Map, maps_of
from .packing import steps_for
from .page import render
from .reading import ShownAttention, from_lens, from_run

if TYPE_CHECKING:
    from ..lens import Lens

HEIGHT = 780  # pixels of the frame in a notebook
FIRST = ("nonsink_mass", "visual_mass")  # what the map of heads shows at first, as far as known


@dataclass(frozen=True, eq=False)
class View:
    """A page that shows attention over pictures, words and heads. It needs no network and no server.

    In a notebook it shows itself; `save` writes it as a file. Hovering a head shows its attention, hovering a token
    how much every head attends to it; a click pins, Escape frees; arrow keys walk through heads.

    Attributes:
        html: the page.
        shape: queries, layers, heads and tokens shown.
        error: how far a weight shown may lie from the true one, as a share of the largest weight of its head's row.
        height: of the frame in a notebook, in pixels.
    """

    html: str = field(repr=False)
    shape: tuple[int, int, int, int]
    error: float
    height: int = HEIGHT

    @property
    def size(self) -> int:
        """Of the page, in bytes."""
        return len(self.html.encode())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page.

        Raises:
            LensError: there is no such folder.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise LensError(f"there is no folder {str(target.parent)!r} to save the view in")
        target.write_text(self.html, encoding="utf-8")
        return target

    def _repr_html_(self) -> str:
        # a frame of its own: no style or script of the page meets the notebook's
        frame = f"width:100%;height:{self.height}px;border:0;resize:vertical;overflow:auto"
        return (
            f"<iframe title='attention of {self.shape[1]} layers x {self.shape[2]} heads' sandbox='allow-scripts' "
            f"style='{frame}' srcdoc='{html.escape(self.html, quote=True)}'></iframe>"
        )

    def __repr__(self) -> str:
        queries, layers, heads, tokens = self.shape
        return (
            f"View of {queries} quer{'y' if queries == 1 else 'ies'}, {layers} layers x {heads} heads, {tokens} "
            f"tokens: {self.size / 1e6:.1f} MB of HTML, view.save(path) writes it"
        )


def view(
    prompt: Prompt,
    what: Lens | Run | HeadScores,
    *,
    lens: Lens | None = None,
    queries: RowsLike = "last",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    sinks: bool | SinkRule = True,
    mark: HeadSet | None = None,
    row: int = 0,
    title: str | None = None,
    height: int = HEIGHT,
) -> View:
    """A prompt and the attention of all heads as one page: pictures with their patches, words, and the map of heads.

    Args:
        prompt: from `lens.prompt`.
        what: a `Lens`, whose attention is read in one forward pass; a `Run` of this prompt with
            `Read("pattern", rows=...)`, edits included; or `HeadScores`, with `lens=`, shown on the map of heads.
        lens: the model, beside scores; beside a run it is what finds the sinks.
        queries: whose attention, as row scopes go: "last", "question", "text", positions, ... With a lens; the last
            prompt token is always among them. Each query adds a byte or two a layer, head and token to the page.
        layers: with a lens, only these.
        heads: with a lens, only these heads of every layer; with a run, which heads its reads hold, if not all.
        sinks: whether to draw attention sinks, found by the model's known dimensions or by this rule.
        mark: heads to outline on the map.
        row: batch row.
        title: heading of the page; the prompt's text by default.
        height: of the frame in a notebook, in pixels.

    Raises:
        LensError: neither lens, run nor scores, or something that does not go with it.
        HookError: no such layer, head or row, or a run without whole patterns.
        PromptError: a run of another prompt, or no such batch row.
        ScoreError: scores of another model, or more numbers than a page should hold.
    """
    check_prompt(prompt)
    scores = what if isinstance(what, HeadScores) else None
    if isinstance(what, Run):
        _check_run_options(queries, layers)
        attention = from_run(what, prompt, row, heads, lens, sinks)
    else:
        lens = _lens_of(what, lens)
        attention = from_lens(lens, prompt, row, queries, layers, heads, sinks)
    maps = maps_of(attention, prompt, row)
    maps.sort(key=lambda each: each.name != (FIRST[0] if attention.sinks.of_layer is not None else FIRST[1]))
    check_part(mark, DECODER, "the viewer")
    if mark is not None and lens is not None and (mark.n_layers, mark.n_heads) != (lens.n_layers, lens.n_heads):
        raise HookError(
            f"these heads to mark are of {mark.n_layers} layers x {mark.n_heads} heads, "
            f"the model has {lens.n_layers} x {lens.n_heads}"
        )
    if scores is not None:
        assert lens is not None
        maps.insert(0, _map_of_scores(scores, lens, attention))
    page = render(attention, prompt, row, maps, title or _title(prompt, row), _model_line(lens, attention), mark)
    n_tokens = int(prompt.mask("all")[row].sum())
    shape = (len(attention.queries), len(attention.layers), len(attention.heads), n_tokens)
    return View(page, shape, 1 / steps_for(shape[0] * shape[1] * shape[2] * shape[3]), height)


def _lens_of(what: Lens | HeadScores, lens: Lens | None) -> Lens:
    from ..lens import Lens

    if isinstance(what, Lens):
        if lens is not None and lens is not what:
            raise LensError("two lenses were given: view(prompt, lens) needs no lens=")
        return what
    if not isinstance(what, HeadScores):
        raise LensError(
            f"cannot view {type(what).__name__}: expected a Lens, a Run with patterns, or HeadScores\n"
            "  view(prompt, lens), view(prompt, run), view(prompt, scores, lens=lens)"
        )
    if lens is None:
        raise LensError(
            "scores hold no attention over the prompt, so the model is needed too\n"
            "  view(prompt, scores, lens=lens), scores as given to the map of heads"
        )
    return lens


def _check_run_options(queries: RowsLike, layers: Sequence[int] | None) -> None:
    if not (isinstance(queries, str) and queries == "last") or layers is not None:
        raise LensError(
            "a run has the queries and layers that were read: view(prompt, run) takes no queries and no layers\n"
            '  choose them when reading: lens.run(prompt, read=[Read("pattern", layers, rows=...)])'
        )


def _map_of_scores(scores: HeadScores, lens: Lens, attention: ShownAttention) -> Map:
    """The mean scores as a map, the same for every query; ScoreError for those of another model."""
    expected = (lens.n_layers, lens.n_heads)
    if tuple(scores.values.shape) != expected:
        raise ScoreError(
            f"these scores of {scores.values.shape[0]} x {scores.values.shape[1]} heads are of another model\n"
            f"  scores: {scores.model.get('model', 'unknown')}, lens: {lens!r}"
        )
    if scores.model:  # scores that people made themselves say nothing
        check_same_model("this map of scores", scores.model, lens.identity)
    metric = HEAD_METRICS.get(scores.metric)
    n = f"{scores.n_prompts} prompt{'s' if scores.n_prompts > 1 else ''}"
    chosen = scores.values.float().cpu()[list(attention.layers)][:, list(attention.heads)]
    return Map(
        "scores",
        f"scores: {scores.metric}",
        f"{metric.meaning if metric else scores.metric}; mean of {n}, query {scores.query}",
        scores.unit,
        chosen.expand(len(attention.queries), -1, -1),
    )


def _title(prompt: Prompt, row: int) -> str:
    return prompt.texts[row].strip() if prompt.texts else f"a prompt of {int(prompt.mask('all')[row].sum())} tokens"


def _model_line(lens: Lens | None, attention: ShownAttention) -> str:
    size = f"{len(attention.layers)} layers × {len(attention.heads)} heads"
    return size if lens is None else f"{type(lens.adapter.model).__name__} · {size}"
