"""`view(prompt, what)`: see where a model looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..errors import LensError, PromptError
from ..hooks.heads import DECODER, VISION, HeadSet
from ..hooks.results import Generation, Run
from ..prompts.prompt import Prompt, check_prompt
from ..prompts.rows import RowsLike
from ..readouts.reading import Reading
from ..scoring import HeadScores
from ..sinks import SinkRule
from .given import check_mark, map_of_scores
from .masses import Map, maps_of
from .packing import steps_for
from .page import render
from .reading import ShownAttention, check_values, from_lens
from .run_reading import from_run
from .said import check_words
from .scene import Scene, Side, side_by_side
from .sequence import TokenRow
from .shown import HEIGHT, View
from .tower_reading import TowerAsked
from .tower_scene import check_tower, tower_scene

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
    tower: bool | RowsLike = False,
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
            `HeadScores`, with `lens=`, shown on the map of heads; those of the vision tower on its map.
        lens: the model, beside scores; beside a run it is what finds the sinks, and the words of generated tokens.
        queries: whose attention, as row scopes go: "last", "question", "text", positions, ... With a lens; the last
            prompt token is always among them. Each query adds a byte or two a layer, head and token to the page.
        layers: with a lens, only these.
        heads: with a lens, only these heads of every layer; with a run, which heads its reads hold, if not all.
        sinks: whether to draw attention sinks, found by the model's known dimensions or by this rule.
        mark: heads to outline on the map of the part that they are of.
        words: what a `logit_lens` or a `latent_lens` has read of this prompt; the page then says of a token what it
            reads as after each layer.
        tower: also the heads of the vision tower, with a lens and a prompt of one row: its layers on a map of their
            own, and where they look from all patches, from a class token, and from the patches of single visual tokens:
            as many as fit, evenly spread, or those named by positions or "image". Costs another forward, with the
            backward that finds each visual token's patches.
        row: batch row, or "all", which the page then chooses from.
        title: heading of the page; the prompt's text by default.
        height: of the frame in a notebook, in pixels.

    Raises:
        LensError: neither lens, run nor scores, or something that does not go with it.
        HookError: no such layer, head or row, a run without whole patterns, or two runs that hold other things.
        PromptError: a run or words of another prompt, no such batch row, or a batch with `tower`.
        ModelError: `tower` of a model that has none with heads.
        ScoreError: scores or words of another model, or more numbers than a page should hold.
    """
    check_prompt(prompt)
    rows = _rows(prompt, row)
    scores = what if isinstance(what, HeadScores) else None
    runs = _runs_of(what)
    of_tower = scores is not None and scores.settings.get("part", DECODER) == VISION
    wants_tower, asked = of_tower or tower is not False, None
    if wants_tower:
        check_tower(prompt, bool(runs))
    if runs:
        _check_run_options(queries, layers)
        read = [[from_run(run, prompt, each, heads, lens, sinks) for run in runs.values()] for each in rows]
    else:
        lens = _lens_of(what, lens)
        asked = TowerAsked.of(lens, prompt, True if isinstance(tower, bool) else tower) if wants_tower else None
        beside = [asked.reader] if asked else []
        shown, whole_run = from_lens(lens, prompt, rows, queries, layers, heads, sinks, beside)
        read = [[(attention, TokenRow.of(prompt, each))] for attention, each in zip(shown, rows, strict=True)]
    check_mark(mark, lens, wants_tower)
    scenes = []
    for number, sides in zip(rows, read, strict=True):
        made = tuple(
            Side(label, attention, _maps(attention, tokens, None if of_tower else scores, lens))
            for (attention, tokens), label in zip(sides, runs or [""], strict=True)
        )
        first, tokens = sides[0]
        line = f"{_model_line(lens, first)}{f' · batch row {number}' if prompt.n_rows > 1 else ''}"
        shown_as = side_by_side(*made, *(tokens for _, tokens in sides)) if len(made) == 2 else made
        said, ours = check_words(words, tokens, lens), mark if mark is None or mark.part == DECODER else None
        scenes.append(Scene(tokens, shown_as, title or _title(prompt, number), line, ours, said))
    shape, whole = scenes[0].shape, (lens.n_layers, lens.n_heads) if lens is not None else _shape_of(scenes[0])
    of_part = None
    if asked is not None:
        of_lens = tower_scene(asked, whole_run, scores if of_tower else None, mark, title or _title(prompt, 0))
        scenes.insert(0 if of_tower else 1, of_lens)
        of_part = (asked.lens.vision.n_layers, asked.lens.vision.n_heads)
    n_values = {part: sum(scene.n_values for scene in scenes if scene.part == part) for part in (DECODER, VISION)}
    check_values(sum(n_values.values()))
    steps = [steps_for(n_values[scene.part]) for scene in scenes]
    return View(render(scenes, steps), shape, 1 / min(steps), height, whole, of_part)


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


def _maps(attention: ShownAttention, tokens: TokenRow, scores: HeadScores | None, lens: Lens | None) -> list[Map]:
    """The maps of heads, the one shown first in front."""
    maps = maps_of(attention, tokens)
    maps.sort(key=lambda each: each.name != (FIRST[0] if attention.sinks.of_layer is not None else FIRST[1]))
    if scores is not None:
        assert lens is not None
        maps.insert(0, map_of_scores(scores, lens, attention))
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


def _title(prompt: Prompt, row: int) -> str:
    return prompt.texts[row].strip() if prompt.texts else f"a prompt of {int(prompt.mask('all')[row].sum())} tokens"


def _model_line(lens: Lens | None, attention: ShownAttention) -> str:
    size = f"{len(attention.layers)} layers × {len(attention.heads)} heads"
    return size if lens is None else f"{type(lens.adapter.model).__name__} · {size}"
