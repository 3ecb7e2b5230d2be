"""The work of a sweep over heads, item by item, here or on a worker of a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..answers.items import Item
from ..answers.outcomes import Goal, Outcomes, goal_of, goal_of_texts
from ..answers.own import OwnAnswer
from ..data import Sample
from ..data.problems import Bad
from ..errors import PromptError, ScoreError
from ..lens.travelling import TravellingLens
from ..prompts.prompt import Prompt
from ..replay.batches import Batches
from ..replay.forwards import Forwards
from ..replay.ways import HALVED, Way
from ..runs import RunFolder
from ..runs.job import LeftOutError
from .ablations import Ablation, AblationOn
from .tower import TowerAblationOn

if TYPE_CHECKING:
    from ..lens import Lens


@dataclass(eq=False)
class MakeEffectsWork:
    """Makes the work of a sweep, here or on a worker of a cluster.

    Attributes:
        lens: the model, opened where the work is.
        ablation: what is done.
        rows_per_pass: how large batches may be.
        folder: where a smaller batch is noted; does not travel.
        is_halved: whether memory ran out before, and batches were made smaller.
        own_metric: one number more, by a function of the user's.
    """

    lens: TravellingLens
    ablation: Ablation
    rows_per_pass: int | None
    folder: RunFolder | None = None
    is_halved: bool = False
    own_metric: OwnAnswer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "folder": None}

    def __call__(self) -> EffectsWork:
        lens = self.lens.open()
        on_change = (lambda rows: None) if self.folder is None else self._note
        batches = Batches(self.rows_per_pass, lens.device, on_change)
        return EffectsWork(lens, self.ablation, batches, self.is_halved, self.own_metric)

    def _note(self, rows: int) -> None:
        assert self.folder is not None
        self.folder.note(rows_per_pass=rows)


@dataclass(frozen=True, eq=False)
class _AtHand:
    """The last source, made into a prompt, with the ablation bound to it: the rows of a batch follow one another."""

    source: Prompt | Sample
    prompt: Prompt
    ablation: AblationOn | TowerAblationOn


@dataclass(eq=False)
class EffectsWork:
    """The effects on one item after the other."""

    lens: Lens
    ablation: Ablation
    batches: Batches
    was_halved: bool = False
    own_metric: OwnAnswer | None = None
    forwards: Forwards = field(init=False)
    _at_hand: _AtHand | None = None

    def __post_init__(self) -> None:
        self.forwards = Forwards(self.lens, self.batches)
        self._rows_at_first = self.batches.rows

    @property
    def _is_halved(self) -> bool:
        return self.was_halved or self.batches.rows < self._rows_at_first

    def prepare(self, item: Item) -> Item:
        """The item with its prompt made, see `Item.ahead`."""
        return item.ahead(self.lens)

    def __call__(self, item: Item) -> dict[str, Tensor]:
        """What was said on the plain forward, and with each unit ablated.

        Raises:
            LeftOutError: the item cannot be used, and may be left out.
        """
        if isinstance(item.source, Bad):
            raise LeftOutError(f"{item.source.reason}\t{item.source.detail}", self._blank())
        if self._at_hand is None or self._at_hand.source is not item.source:
            prompt = self.prompt_of(item)
            self._at_hand = _AtHand(item.source, prompt, self.ablation.on(self.lens, prompt))
        prompt, ablation = self._at_hand.prompt, self._at_hand.ablation
        clean = self.forwards.clean(prompt)[item.row]
        goal = self.goal_of(item, clean)
        changed, way = ablation.changed(self.forwards, item.row)
        found = Outcomes.of(torch.cat([clean[None].to(changed.device), changed]), goal, self.own_metric)
        number = int(way) + (HALVED if self._is_halved else 0)
        return {**found.tensors(), "is_yes": torch.tensor(goal.is_yes), "way": torch.tensor(number)}

    def _blank(self) -> dict[str, Tensor]:
        """What stands in the place of an item that was left out."""
        n = 1 + len(self.ablation.units)
        nothing = torch.full((n, 3), torch.nan, dtype=torch.float64)
        none = torch.zeros(n, dtype=torch.int32)
        own = None if self.own_metric is None else nothing[:, 0]
        found = Outcomes(nothing[:, :2], nothing[:, 2], none, none.to(torch.int8), own)
        return {**found.tensors(), "is_yes": torch.tensor(-1), "way": torch.tensor(int(Way.LEFT_OUT))}

    def prompt_of(self, item: Item) -> Prompt:
        """The item's prompt; LeftOutError where none can be made, and it may be left out."""
        with item.leaving_out(PromptError, "no prompt", self._blank):
            return item.prompt_on(self.lens)

    def goal_of(self, item: Item, clean: Tensor) -> Goal:
        """What the item is about, by the logits of its plain forward; LeftOutError as `prompt_of`."""
        with item.leaving_out(ScoreError, "no answer token", self._blank):
            if item.answer is None and isinstance(item.source, Sample):
                return goal_of_texts(self.lens, clean, item.source.answer, item.source.wrong)
            return goal_of(self.lens, clean, item.answer)
