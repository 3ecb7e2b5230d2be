"""Information flow in multimodal models (Zhang et al., arXiv:2411.18620; after Geva et al., arXiv:2304.14767).

For a route, source keys to target rows, and every layer l: forbid the target to attend to the source in a window of
layers around l, and see what is left of the answer's probability.

    y(l) = 100 (p_knocked - p) / p        in %, over prompts that the model answers rightly

Of an answer of several tokens p is the geometric mean over the forced answer, exp(mean log p_i), as in FG-TRACER (WACV
2026); the rows of its own tokens are knocked out with the last prompt token, whose work they go on with. Beside each
curve is its control, the same with as many random keys of the same kind (`random_keys`), and how many there were. A
source that is all there is of its kind, such as the whole picture, has none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..data import Sample
from ..data.settings import without_contents
from ..errors import ScoreError, unknown
from ..hooks.heads import check_layer
from ..interventions.base import whole_numbers
from ..lens.travelling import TravellingLens
from ..prompts.prompt import Prompt
from ..runs import RayLike, RunFolder, stream
from ..runs.checkpoint import applied_in, fingerprint
from .forced import Answer
from .result import KIND, InformationFlow
from .routes import Route, Scope, as_routes
from .work import FlowItem, FlowItems, MakeFlowWork

if TYPE_CHECKING:
    from ..lens import Lens

ROUTES: tuple[tuple[Scope, Scope], ...] = (("image", "question"), ("image", "last"), ("question", "last"))
"""What is asked by default: does the picture reach the answer by way of the question's words, or directly?"""
COUNTS = {"all": "every token of the answer", "first": "its first token alone"}


def information_flow(
    lens: Lens,
    samples: Prompt | Sample | Iterable[Prompt | Sample],
    routes: Sequence[tuple[Scope, Scope]] = ROUTES,
    window: int = 9,
    *,
    layers: Iterable[int] | None = None,
    answers: Sequence[Answer] | None = None,
    count: str = "all",
    n_random: int = 1,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    ray: RayLike = None,
    rows_per_pass: int | None = None,
    seconds_per_part: float = 10.0,
    changed: str = "refuse",
    progress: bool = False,
) -> InformationFlow:
    """How much of the answer is lost where a route is cut, by layer, with its control.

    By replay where that is exact, else one forward a point; the result says which.

    Args:
        lens: the model.
        samples: samples of a data set, prompts, or batches of prompts, or any iterator of these; it is read once, as it
            goes, so it may be of any length.
        routes: (source, target) each, mask names such as "image", "question" and "last", or functions of a prompt that
            give positions or a mask. The target "last" is every row that predicts a token of the answer.
        window: how many layers are cut at once, cut off at both ends of the model: `Knockout.window`.
        layers: centres of windows; None for every layer.
        answers: of prompts, the right answer of each row: text, a token id, or the ids of all its tokens. Samples bring
            their own; by default what the model says first counts as right.
        count: "all" tokens of an answer, or the "first" alone.
        n_random: how often random keys are drawn for each prompt and route; 0 for no control.
        seed: of these.
        folder, ray, seconds_per_part, changed, progress: as in `head_effects`: a folder makes it resumable, Ray spreads
            it, and functions of `routes` travel with it.
        rows_per_pass: how many rows one batch of a replay may have; halved whenever memory runs out.

    Raises:
        ScoreError: no samples, none that is answered rightly, what is neither a prompt nor a sample, routes that are
            none or select nothing, answers beside samples, or not one a prompt row, a folder of another run.
        HookError: no such layer or row scope.
    """
    if count not in COUNTS:
        raise ScoreError(unknown("count of answer tokens", count, COUNTS))
    for name, number, least in (("window", window, 1), ("n_random", n_random, 0)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ScoreError(f"{name} is a whole number of at least {least}, given {number!r}")
    centres = tuple(range(lens.n_layers)) if layers is None else whole_numbers(layers, "information_flow", "layers")
    for layer in centres:
        check_layer(layer, lens.n_layers)
    if isinstance(answers, (str, int)):
        raise ScoreError(f"answers are a list, one a prompt row, as in answers=[{answers!r}]")
    if rows_per_pass is not None and rows_per_pass < 1:
        raise ScoreError(f"rows_per_pass is at least 1, given {rows_per_pass}")
    between = as_routes(routes)
    about: dict[str, Any] = {
        "model": lens.identity,
        **applied_in(lens),
        "routes": [route.name for route in between],
        "window": window,
        "layers": list(centres),
        "count": count,
        "n_random": n_random,
        "seed": seed,
    }
    own = {name: fingerprint(scope) for name, scope in _functions(between)} if folder is not None else {}
    if own:
        about["functions"] = own
    settings = getattr(samples, "settings", None)
    if isinstance(settings, Mapping):
        about["data"] = without_contents({name: value for name, value in settings.items() if name != "on_bad"})
    items = FlowItems(samples, answers)
    opened = None if folder is None else RunFolder(folder, KIND, about)
    try:
        halved_to = opened.state.get("rows_per_pass") if opened is not None and rows_per_pass is None else None
        make = MakeFlowWork(
            lens=TravellingLens.of(lens, about["model"], travels=ray is not None),
            routes=between,
            centres=centres,
            window=window,
            n_random=n_random,
            seed=seed,
            first_only=count == "first",
            rows_per_pass=rows_per_pass or halved_to,
            is_halved=halved_to is not None,
            folder=opened,
        )
        store = stream(
            items,
            make,
            _key_of,
            opened,
            ray=ray,
            progress=progress,
            what="cutting routes",
            seconds_per_part=seconds_per_part,
            changed=changed,
        )
        items.check_all_used()
        if opened is not None and not opened.finished and store.n_items:
            opened.finish(store.n_items)
        return InformationFlow.of_store(store, about)
    finally:
        if opened is not None:
            opened.close()


def _key_of(asked: FlowItem) -> str:
    return asked.key


def _functions(routes: Sequence[Route]) -> list[tuple[str, Scope]]:
    """The functions of a prompt among the ends of routes, each with where it stands."""
    ends = [(f"{which} of {route.name}", getattr(route, which)) for route in routes for which in ("source", "target")]
    return [(name, scope) for name, scope in ends if not isinstance(scope, str)]
