"""The cuts of a prompt: every route in every window of layers, its own keys and random ones, each computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import ScoreError
from ..hooks.points import Read
from ..interventions.knockout import Knockout
from ..prompts.prompt import Prompt
from ..replay import Change, Hidden, Variant
from ..replay.check import agree
from ..replay.forwards import Forwards
from ..replay.ways import Way
from .forced import forced
from .routes import Route, random_keys

if TYPE_CHECKING:
    from ..lens import Lens

AT_ONCE = 64  # forwards whose logits are in fp64 at a time


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

    def of_row(self, forwards: Forwards, row: int, answer: Sequence[int]) -> RowFlow | str:
        """What a row loses by every cut; what the model said, where that is not the answer, given as its tokens."""
        lens, logs, base, ways = self.task.lens, torch.zeros(len(self.cells), dtype=torch.float64), 0.0, []
        tokens = answer[:1] if self.task.first_only else answer
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
