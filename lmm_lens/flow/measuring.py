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

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..data import Sample
from ..data.sample import prompt_of
from ..errors import ScoreError, unknown
from ..hooks.heads import check_layer
from ..hooks.points import Read
from ..interventions.base import whole_numbers
from ..interventions.knockout import Knockout
from ..prompts.prompt import Prompt
from ..replay import Change, Hidden, Variant
from ..replay.batches import Batches
from ..replay.check import agree
from ..replay.forwards import Forwards
from ..replay.ways import Way
from ..warnings import NothingChangedWarning, counted
from .forced import Answer, answer_tokens, forced
from .result import InformationFlow
from .routes import Route, Scope, as_routes, random_keys

if TYPE_CHECKING:
    from ..lens import Lens

ROUTES: tuple[tuple[Scope, Scope], ...] = (("image", "question"), ("image", "last"), ("question", "last"))
"""What is asked by default: does the picture reach the answer by way of the question's words, or directly?"""
COUNTS = {"all": "every token of the answer", "first": "its first token alone"}
AT_ONCE = 64  # forwards whose logits are in fp64 at a time


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
    rows_per_pass: int | None = None,
    progress: bool = False,
) -> InformationFlow:
    """How much of the answer is lost where a route is cut, by layer, with its control.

    By replay where that is exact, else one forward a point; the result says which.

    Args:
        lens: the model.
        samples: samples of a data set, prompts, or batches of prompts.
        routes: (source, target) each, mask names such as "image", "question" and "last", or functions of a prompt that
            give positions or a mask. The target "last" is every row that predicts a token of the answer.
        window: how many layers are cut at once, cut off at both ends of the model: `Knockout.window`.
        layers: centres of windows; None for every layer.
        answers: of prompts, the right answer of each row: text, a token id, or the ids of all its tokens. Samples bring
            their own; by default what the model says first counts as right.
        count: "all" tokens of an answer, or the "first" alone.
        n_random: how often random keys are drawn for each prompt and route; 0 for no control.
        seed: of these.
        rows_per_pass: how many rows one batch of a replay may have; halved whenever memory runs out.
        progress: show a progress bar.

    Raises:
        ScoreError: no samples, none that is answered rightly, routes that are none or select nothing, answers beside
            samples, or not one a prompt row.
        PromptError: what is neither a prompt nor a sample.
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
    task = FlowTask(lens, as_routes(routes), centres, window, n_random, seed, count == "first")
    forwards = Forwards(lens, Batches(rows_per_pass, lens.device))
    rows, left_out, n_rows = [], {}, 0
    for index, source in enumerate(_each(samples, progress)):
        if isinstance(source, Sample) and answers is not None:
            raise ScoreError(
                f"sample {source.id} brings its own answer, but answers were given\n  give prompts with them"
            )
        prompt = prompt_of(lens, source)
        at_hand = FlowOn(task, prompt, index)
        for row in range(prompt.n_rows):
            name = source.id if isinstance(source, Sample) else f"prompt {n_rows}"
            answer = source.answer if isinstance(source, Sample) else _answer_at(answers, n_rows)
            n_rows += 1
            with counted(NothingChangedWarning):  # a route that was cut already: its change of 0 says so
                found = at_hand.of_row(forwards, row, answer)
            if isinstance(found, str):
                left_out[name] = found
            else:
                rows.append((name, found))
    if answers is not None and len(answers) != n_rows:
        raise ScoreError(f"{len(answers)} answers were given for {n_rows} prompt rows: give one a row")
    if not rows:
        said = f"none of {n_rows} prompts is answered rightly" if n_rows else "no prompts were given"
        raise ScoreError(f"{said}, so there is no answer to lose\n  check the answers, and the prompts' form")
    return InformationFlow(
        routes=tuple(route.name for route in task.routes),
        layers=centres,
        window=window,
        per_prompt=torch.stack([row.change for _, row in rows]),
        control_per_prompt=torch.stack([row.control for _, row in rows]),
        base=torch.tensor([row.base for _, row in rows], dtype=torch.float64),
        n_keys=torch.stack([row.n_keys for _, row in rows]),
        n_random_keys=torch.stack([row.n_random for _, row in rows]),
        n_tokens=torch.tensor([row.n_tokens for _, row in rows]),
        ids=tuple(name for name, _ in rows),
        left_out=left_out,
        how=_how(Counter(way for _, row in rows for way in row.ways), forwards.reason),
        model=lens.identity,
        settings={"count": count, "n_random": n_random, "seed": seed},
    )


def _answer_at(answers: Sequence[Answer] | None, index: int) -> Answer | None:
    """The answer of a prompt row; None where none are given."""
    if answers is not None and index >= len(answers):
        raise ScoreError(f"{len(answers)} answers were given, but there are more prompt rows: give one a row")
    return None if answers is None else answers[index]


def _each(samples: Prompt | Sample | Iterable[Prompt | Sample], progress: bool) -> Iterable[Prompt | Sample]:
    listed = [samples] if isinstance(samples, (Prompt, Sample)) else samples
    if not progress:
        return listed
    from rich.progress import track

    return track(listed, "cutting routes", transient=True)


def _how(ways: Counter[Way], reason: str) -> str:
    """How the knocked-out forwards were computed, in words."""
    parts = [f"{n} {way.words}" for way, n in sorted(ways.items())]
    return "; ".join(parts) + (f" ({reason})" if reason and Way.EACH in ways else "")


@dataclass(eq=False)
class FlowTask:
    """What was asked, see `information_flow`, and whether an answer may be forced, once that was looked at."""

    lens: Lens
    routes: tuple[Route, ...]
    centres: tuple[int, ...]
    window: int
    n_random: int
    seed: int
    first_only: bool
    may_force: bool = False

    def check_forced(self, prompt: Prompt, longer: Prompt) -> None:
        """ScoreError where rows of a prompt are others once an answer stands behind it: they look ahead."""
        if self.may_force:
            return
        top = self.lens.n_layers - 1
        at = [Read("resid_post", [top], rows=[prompt.n_tokens - 1])]
        runs = (self.lens.run(each, read=at, logits="last") for each in (prompt, longer))
        own, then = (run.reads["resid_post", top] for run in runs)
        if not agree(own, then):
            raise ScoreError(
                "rows of this model's prompts see the tokens behind them, so that a forced answer is not one it says\n"
                "  count='first' takes the answer's first token alone"
            )
        self.may_force = True

    def layers_of(self, route: Route, draw: int, centre: int) -> tuple[int, ...]:
        """The layers of a window that have such keys; random keys are tokens, which cross-attention has none of."""
        shape = self.lens.shape
        allowed = {*shape.self_attention, *(shape.crossing if route.is_of_pictures and not draw else ())}
        return tuple(x for x in Knockout.window(centre, self.window, shape.n_layers) if x in allowed)


@dataclass(frozen=True, eq=False)
class RowFlow:
    """One prompt row: changes in %, [route, layer], of the route and of its control; keys of each, [route]."""

    change: Float[Tensor, "route layer"]
    control: Float[Tensor, "route layer"]
    base: float
    n_keys: Tensor
    n_random: Tensor
    n_tokens: int
    ways: tuple[Way, ...]


Cell = tuple[int, int, tuple[int, ...]]  # route, 0 for its own keys or the number of a draw of random ones, layers


@dataclass(eq=False)
class FlowOn:
    """The cuts of one prompt, a batch or not.

    Attributes:
        keys: what is cut, by (route, draw); draw 0 is the route's own.
        cells: every cut once: windows at the ends of a model may have the same layers.
    """

    task: FlowTask
    prompt: Prompt
    index: int
    keys: dict[tuple[int, int], Bool[Tensor, "batch position"]] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()
    _cuts: dict[int, list[Knockout]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        task, n = self.task, self.prompt.n_tokens
        self._bound = [route.on(self.prompt) for route in task.routes]
        for number, (source, target) in enumerate(self._bound):
            keys, rows = source.mask(0, n), target.mask(0, n)
            self.keys[number, 0] = keys
            for draw in range(1, task.n_random + 1):
                seed = f"{task.seed} {self.index} {task.routes[number].name} {draw}"
                self.keys[number, draw] = random_keys(self.prompt, keys, rows, seed)
        every = (
            (number, draw, task.layers_of(task.routes[number], draw, centre))
            for number, draw in self.keys
            for centre in task.centres
        )
        self.cells = tuple(dict.fromkeys(cell for cell in every if cell[2] and bool(self.keys[cell[:2]].any())))

    def _masks(self, cell: Cell, n_forced: int) -> tuple[Tensor, Tensor]:
        """Keys and rows of a cut, Bool[batch, position], with so many tokens of the answer behind the prompt."""
        number, draw, _ = cell
        n = self.prompt.n_tokens + n_forced
        source, target = self._bound[number]
        keys = source.mask(0, n) if not draw else torch.nn.functional.pad(self.keys[number, draw], (0, n_forced))
        return keys, target.mask(0, n)

    def changes(self, row: int, n_forced: int) -> list[Change]:
        """Every cut, as a replay of a row makes it, and as the model itself does."""
        shape = self.task.lens.shape
        masks = [self._masks(cell, n_forced) for cell in self.cells]
        if n_forced not in self._cuts:  # of the whole batch, so that its rows share the forwards
            crossing, cuts = set(shape.crossing), []
            for (number, _, layers), (keys, rows) in zip(self.cells, masks, strict=True):
                source = self.task.routes[number].source
                named = source if isinstance(source, str) and not crossing.isdisjoint(layers) else keys
                cuts.append(Knockout(named, rows, layers))
            self._cuts[n_forced] = cuts
        found = []
        for cell, cut, (keys, rows) in zip(self.cells, self._cuts[n_forced], masks, strict=True):
            crosses = bool(set(cell[2]) & set(shape.crossing))
            hidden = Variant((), (Hidden(cell[2], rows[row], keys[row]),))
            found.append(Change(cut, "the keys of its cross-attention are pictures" if crosses else hidden))
        return found

    def of_row(self, forwards: Forwards, row: int, answer: Answer | None) -> RowFlow | str:
        """What a row loses by every cut; what the model said, where that is not the answer."""
        lens, logs, base, ways = self.task.lens, torch.zeros(len(self.cells), dtype=torch.float64), 0.0, []
        tokens = answer_tokens(lens, forwards.clean(self.prompt)[row], answer)
        tokens = tokens[:1] if self.task.first_only else tokens
        for n_forced, token in enumerate(tokens):
            prompt = self.prompt
            if n_forced:
                prompt = forced(lens, self.prompt, tokens[:n_forced])
                self.task.check_forced(self.prompt, prompt)
            clean = forwards.clean(prompt)[row]
            if int(clean.argmax()) != token:
                return self._said(int(clean.argmax()), tokens[:n_forced])
            base += float(clean.double().log_softmax(-1)[token])
            if self.cells:
                logits, way = forwards.changed(prompt, row, self.changes(row, n_forced))
                ways.append(way)
                logs += torch.cat([x.double().log_softmax(-1)[:, token].cpu() for x in logits.split(AT_ONCE)])
        ratio = ((logs - base) / len(tokens)).exp()
        of_cell = dict(zip(self.cells, (100 * (ratio - 1)).tolist(), strict=True))
        shape = len(self.task.routes), len(self.task.centres)
        change = torch.full((1 + self.task.n_random, *shape), torch.nan, dtype=torch.float64)
        n_keys = torch.zeros(1 + self.task.n_random, shape[0], dtype=torch.long)
        for (number, draw), keys in self.keys.items():
            n_keys[draw, number] = keys[row].sum()
            for place, centre in enumerate(self.task.centres):
                layers = self.task.layers_of(self.task.routes[number], draw, centre)
                if layers and bool(keys[row].any()):
                    change[draw, number, place] = of_cell[number, draw, layers]
        control = change[1:].mean(0) if self.task.n_random else torch.full(shape, torch.nan, dtype=torch.float64)
        n_random = n_keys[1] if self.task.n_random else torch.zeros_like(n_keys[0])
        p = float(torch.tensor(base / len(tokens)).exp())
        return RowFlow(change[0], control, p, n_keys[0], n_random, len(tokens), tuple(ways))

    def _said(self, token: int, before: Sequence[int]) -> str:
        tokenizer = self.task.lens.adapter.tokenizer
        return f"token {token}" if tokenizer is None else str(tokenizer.decode([*before, token])).strip()
