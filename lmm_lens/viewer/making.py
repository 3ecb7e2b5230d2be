"""`view(prompt, what)`: see where a model looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..errors import HookError, LensError, PromptError, ScoreError
from ..hooks.heads import DECODER, HeadSet, check_part
from ..hooks.results import Generation, Run
from ..prompts.prompt import Prompt, check_prompt
from ..prompts.rows import RowsLike
from ..readouts.reading import Reading
from ..runs.files import check_same_model
from ..scoring import HEAD_METRICS, HeadScores
from ..sinks import SinkRule
from .masses import Map, maps_of
from .packing import steps_for
from .page import render
from .reading import ShownAttention, check_values, from_lens
from .run_reading import from_run
from .said import check_words
from .scene import Scene, Side, side_by_side
from .sequence import TokenRow
from .shown import HEIGHT, View

if TYPE_CHECKING:
    from ..lens import Lens

FIRST = ("nonsink_mass", "visual_mass")  # what the map of heads shows at first, as far as known


def view(
    prompt: Prompt,
    what: Lens | Run | Generation | HeadScores | Mapping[str, Run | Generation],
    *,
    lens: Lens | None = None,
    queries: RowsLike = "last",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    sinks: bool | SinkRule = True,
    mark: HeadSet | None = None,
    words: Reading | None = None,
    row: int | Literal["all"] = 0,
    title: str | None = None,
    height: int = HEIGHT,
) -> View:
    """A prompt and the attention of all heads as one page: pictures with their patches, words, and the map of heads.

    Args:
        prompt: from `lens.prompt`.
        what: a `Lens`, whose attention is read in one forward pass; a `Run` of this prompt with
            `Read("pattern", rows=...)`, edits included; a `Generation` with `Read("pattern", rows="generating")`, whose
            new tokens are queries and keys; two of them by name, as `{"before": run, "after": other}`, side by side; or
            `HeadScores`, with `lens=`, shown on the map of heads.
        lens: the model, beside scores; beside a run it is what finds the sinks, and the words of generated tokens.
        queries: whose attention, as row scopes go: "last", "question", "text", positions, ... With a lens; the last
            prompt token is always among them. Each query adds a byte or two a layer, head and token to the page.
        layers: with a lens, only these.
        heads: with a lens, only these heads of every layer; with a run, which heads its reads hold, if not all.
        sinks: whether to draw attention sinks, found by the model's known dimensions or by this rule.
        mark: heads to outline on the map.
        words: what a `logit_lens` or a `latent_lens` has read of this prompt; the page then says of a token what it
            reads as after each layer.
        row: batch row, or "all", which the page then chooses from.
        title: heading of the page; the prompt's text by default.
        height: of the frame in a notebook, in pixels.

    Raises:
        LensError: neither lens, run nor scores, or something that does not go with it.
        HookError: no such layer, head or row, a run without whole patterns, or two runs that hold other things.
        PromptError: a run or words of another prompt, or no such batch row.
        ScoreError: scores or words of another model, or more numbers than a page should hold.
    """
    check_prompt(prompt)
    rows = _rows(prompt, row)
    scores = what if isinstance(what, HeadScores) else None
    runs = _runs_of(what)
    if runs:
        _check_run_options(queries, layers)
        read = [[from_run(run, prompt, each, heads, lens, sinks) for run in runs.values()] for each in rows]
    else:
        lens = _lens_of(what, lens)
        shown = from_lens(lens, prompt, rows, queries, layers, heads, sinks)
        read = [[(attention, TokenRow.of(prompt, each))] for attention, each in zip(shown, rows, strict=True)]
    _check_mark(mark, lens)
    scenes = []
    for number, sides in zip(rows, read, strict=True):
        made = tuple(
            Side(label, attention, _maps(attention, tokens, scores, lens))
            for (attention, tokens), label in zip(sides, runs or [""], strict=True)
        )
        first, tokens = sides[0]
        line = f"{_model_line(lens, first)}{f' · batch row {number}' if prompt.n_rows > 1 else ''}"
        shown_as = side_by_side(*made, *(tokens for _, tokens in sides)) if len(made) == 2 else made
        said = check_words(words, tokens, lens)
        scenes.append(Scene(tokens, shown_as, title or _title(prompt, number), line, mark, said))
    n_values = sum(scene.n_values for scene in scenes)
    check_values(n_values)
    steps = steps_for(n_values)
    whole = (lens.n_layers, lens.n_heads) if lens is not None else _shape_of(scenes[0])
    return View(render(scenes, steps), scenes[0].shape, 1 / steps, height, whole)


def _rows(prompt: Prompt, row: int | Literal["all"]) -> list[int]:
    if isinstance(row, str):
        if row != "all":
            raise PromptError(f'row is the number of a batch row or "all", given {row!r}')
        return list(range(prompt.n_rows))
    return [row]


def _runs_of(what: Any) -> dict[str, Run | Generation]:
    """The runs to show by name; none where something else was given."""
    if isinstance(what, Run | Generation):
        return {"": what}
    if not isinstance(what, Mapping):
        return {}
    if len(what) != 2 or not all(isinstance(each, Run | Generation) for each in what.values()):
        given = ", ".join(f"{name!r}: {type(each).__name__}" for name, each in what.items())
        raise LensError(
            f"two runs go side by side, given {{{given}}}\n"
            '  name both: view(prompt, {"before": run, "after": edited}, lens=lens)'
        )
    kinds = {type(each) for each in what.values()}
    if len(kinds) == 2:
        raise LensError("a run and a generation do not go side by side\n  give two runs, or two generations")
    return {str(name): each for name, each in what.items()}


def _check_mark(mark: HeadSet | None, lens: Lens | None) -> None:
    check_part(mark, DECODER, "the viewer")
    if mark is not None and lens is not None and (mark.n_layers, mark.n_heads) != (lens.n_layers, lens.n_heads):
        raise HookError(
            f"these heads to mark are of {mark.n_layers} layers x {mark.n_heads} heads, "
            f"the model has {lens.n_layers} x {lens.n_heads}"
        )


def _maps(attention: ShownAttention, tokens: TokenRow, scores: HeadScores | None, lens: Lens | None) -> list[Map]:
    """The maps of heads, the one shown first in front."""
    maps = maps_of(attention, tokens)
    maps.sort(key=lambda each: each.name != (FIRST[0] if attention.sinks.of_layer is not None else FIRST[1]))
    if scores is not None:
        assert lens is not None
        maps.insert(0, _map_of_scores(scores, lens, attention))
    return maps


def _shape_of(scene: Scene) -> tuple[int, int]:
    """The least shape of a model with the layers and heads that a run holds."""
    attention = scene.sides[0].attention
    return max(attention.layers) + 1, max(attention.heads) + 1


def _lens_of(what: object, lens: Lens | None) -> Lens:
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
