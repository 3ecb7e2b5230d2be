"""Prompts, and samples of data sets, as the items of a long run: one a prompt row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..data import DataSet, Sample
from ..data.problems import Bad
from ..data.sample import prompt_of
from ..errors import LensError, ScoreError
from ..prompts.prompt import Prompt
from ..runs.checkpoint import digest, digest_of_text, fingerprint
from ..runs.job import LeftOutError
from .contrast import AnswerLike
from .outcomes import answers_at

if TYPE_CHECKING:
    from ..lens import Lens

Answers = Sequence[tuple[AnswerLike, AnswerLike | None]]


@dataclass(frozen=True, eq=False)
class Item:
    """One row of a run.

    Attributes:
        name: for people.
        source: a sample, a prompt, or a row of a data set that gives no sample.
        row: which row of the prompt.
        answer: (right, wrong) as given; None for a sample's own, or the model's.
        may_be_left_out: whether the run goes on without it where it cannot be used.
        prompt: what the source was made into ahead of time.
    """

    name: str
    source: Prompt | Sample | Bad
    row: int = 0
    answer: tuple[AnswerLike, AnswerLike | None] | None = None
    may_be_left_out: bool = False
    prompt: Prompt | None = None

    def prompt_on(self, lens: Lens) -> Prompt:
        """Its prompt, made now where it was not made ahead of time.

        Raises:
            PromptError: none can be made of its source.
        """
        if self.prompt is not None:
            return self.prompt
        assert not isinstance(self.source, Bad)
        return prompt_of(lens, self.source)

    def ahead(self, lens: Lens) -> Item:
        """The same with its prompt made, as another thread does ahead of time; as it was where none can be made."""
        if not isinstance(self.source, Sample):
            return self
        try:
            return replace(self, prompt=self.prompt_on(lens))
        except Exception:
            return self  # tried again when its turn comes, where the error belongs to it

    @contextmanager
    def leaving_out(
        self, kind: type[LensError] | tuple[type[LensError], ...], reason: str, blank: Callable[[], dict[str, Tensor]]
    ) -> Iterator[None]:
        """Inside, an error of this kind is the item's own, and ends nothing where it may be left out.

        Args:
            kind: of the error, or several.
            reason: for people.
            blank: makes what stands in the item's place.

        Raises:
            LeftOutError: in place of such an error.
        """
        try:
            yield
        except kind as error:
            if not self.may_be_left_out:
                raise
            raise LeftOutError(f"{reason}\t{str(error).splitlines()[0]}", blank()) from None


def key_of(item: Item) -> str:
    """What tells an item from others: its name and digests of what the model is given and of the answers."""
    source = item.source
    if isinstance(source, Bad):
        parts = {"row": digest_of_text(str(source))}
    else:
        parts = dict(source.digests) if isinstance(source, Sample) else {"prompt": digest(source)}
    if item.answer is not None:
        parts["answers"] = digest_of_text(fingerprint(item.answer))
    return "\t".join((item.name, " ".join(f"{name}:{value}" for name, value in parts.items())))


class Items:
    """Prompts and samples as items, one a row; has a length where the prompts have one.

    Args:
        prompts, answers: as in `head_effects`.
        contrast: the metric that needs a wrong answer, if it does.
    """

    def __init__(self, prompts: Any, answers: Answers | None, contrast: str) -> None:
        self.prompts, self.answers, self.contrast, self.n_used = prompts, answers, contrast, 0
        if isinstance(prompts, Prompt):
            self.prompts = [prompts]
        elif not isinstance(prompts, Iterable) or isinstance(prompts, (str, bytes, Mapping)):
            raise ScoreError(f"expected prompts made by lens.prompt(...) or samples, given {type(prompts).__name__}")
        if answers is not None and isinstance(self.prompts, (list, tuple)) and len(self) < len(answers):
            self.n_used = len(self)
            self.check_all_used()

    def __len__(self) -> int:
        counted = isinstance(self.prompts, (list, tuple))
        return sum(getattr(each, "n_rows", 1) for each in self.prompts) if counted else len(self.prompts)

    def __iter__(self) -> Iterator[Item]:
        skips = isinstance(self.prompts, DataSet) and self.prompts.on_bad == "skip"
        for number, source in enumerate(self.prompts.rows() if isinstance(self.prompts, DataSet) else self.prompts):
            if isinstance(source, Bad):
                yield Item(source.where, source, may_be_left_out=True)
                continue
            if isinstance(source, Sample):
                yield replace(self._item(source.id, source, 0), may_be_left_out=skips)
                continue
            if not isinstance(source, Prompt):
                raise ScoreError(f"expected prompts made by lens.prompt(...) or samples, given {source!r} at {number}")
            for row in range(source.n_rows):
                name = f"prompt {number}" + (f" row {row}" if source.n_rows > 1 else "")
                yield self._item(name, source, row)

    def _item(self, name: str, source: Prompt | Sample, row: int) -> Item:
        answer = answers_at(self.answers, self.n_used)
        self.n_used += 1
        wrong = answer[1] if answer is not None else getattr(source, "wrong", None)
        if self.contrast and wrong is None:
            raise ScoreError(
                f"{self.contrast} needs a wrong answer for every prompt, and {name} has none\n"
                "  give answers=[(right, wrong), ...] or samples with `wrong`, or take metric='log_prob'"
            )
        return Item(name, source, row, answer)

    def check_all_used(self) -> None:
        """ScoreError for more answers than prompts."""
        if self.answers is not None and len(self.answers) != self.n_used:
            raise ScoreError(f"{len(self.answers)} answers were given for {self.n_used} prompt rows: give one a row")
