"""Which prompt a pass of the model is of, and where in its sequence it begins.

A generation is one pass over the prompt and then one a token, all with one cache. Between them the model may be called
with something else, as contrastive decoding does from a logits processor. So passes are told apart by their cache, and
each prompt goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from ...core.course import Course
from ...core.tapping import Tapping
from ...errors import InterventionError, PromptError
from ...prompts.prompt import Prompt
from ...prompts.tensors import tensors_in
from ..base import PromptOf, TapsOf


@dataclass(eq=False)
class Under:
    """A prompt under way.

    Attributes:
        prompt: what runs.
        course: its taps.
        cache: gives the cache that its next pass has; None before the first, and without a cache.
        next: where its next pass begins.
        n_passes: how many it had.
    """

    prompt: Prompt
    course: Course
    cache: Callable[[], Any] | None = None
    next: int = 0
    n_passes: int = 0


@dataclass(eq=False)
class Pass:
    """A pass of the model.

    Attributes:
        of: the prompt that it is of.
        first: absolute position of its first token.
        length: of its tokens, as they run; 0 where it is not known.
    """

    of: Under
    first: int
    length: int

    @property
    def is_late_step(self) -> bool:
        """Whether it is of one token, and neither the prompt's first pass nor its first step."""
        return self.length == 1 and self.of.n_passes > 1


class Passes:
    """The passes of one session.

    Args:
        tapping: gets the course of each pass.
        taps_of: gives the taps of a prompt.
        prompt: the prompt about to be run; None to make one of whatever the model is called with.
        prompt_of: makes it.
        ends: token ids that end a batch row.

    Attributes:
        n: how often the model ran.
        ended: which batch rows of the given prompt have ended for another reason than a token, Bool[batch]; set by
            whoever knows, between two passes.
    """

    def __init__(
        self,
        tapping: Tapping,
        taps_of: TapsOf,
        prompt: Prompt | None,
        prompt_of: PromptOf | None,
        ends: Sequence[int] = (),
    ) -> None:
        self.tapping, self.taps_of, self.prompt, self.prompt_of = tapping, taps_of, prompt, prompt_of
        self.ends = torch.tensor(list(ends), dtype=torch.long)
        self.n = 0
        self.ended: Tensor | None = None
        self._only: Under | None = None  # the given prompt
        self._by_cache: WeakKeyDictionary[Any, Under] = WeakKeyDictionary()

    def begin(self, prompt: Prompt) -> Under:
        """Bind the taps to a prompt, whose first pass comes next."""
        under = Under(prompt, self.tapping.start(prompt.n_rows, self.taps_of(prompt)))
        if self.prompt is not None:
            self._only = under
        return under

    def before(self, kwargs: Mapping[str, Any]) -> Pass | None:
        """A pass begins, with these arguments; None for one that is not of the given prompt.

        Raises:
            InterventionError: it goes on with a sequence that was not seen here.
        """
        cache = kwargs.get("past_key_values")
        first = _length_of(cache)
        under = self._of_given(kwargs, cache, first) if self._only is not None else self._of_any(kwargs, cache, first)
        if under is None:
            return None
        self.tapping.course, self.tapping.first, self.tapping.fired = under.course, first, set()
        if first:
            self._note_ends(under, kwargs.get("input_ids"))
        return Pass(under, first, _n_running(under, kwargs, first))

    def _of_given(self, kwargs: Mapping[str, Any], cache: Any, first: int) -> Under | None:
        under = self._only
        assert under is not None
        if under.n_passes and under.cache is not None:
            return under if cache is under.cache() else None
        if under.n_passes and not _same_pictures(under.prompt, kwargs):
            return None
        if cache is not None:
            under.cache = _reference_to(cache)
        return under

    def _of_any(self, kwargs: Mapping[str, Any], cache: Any, first: int) -> Under:
        if first == 0:
            assert self.prompt_of is not None
            under = self.begin(self.prompt_of(kwargs))
            if _is_object(cache):
                self._by_cache[cache] = under
            return under
        known = self._by_cache.get(cache) if _is_object(cache) else None
        if known is None or known.next != first:
            raise InterventionError(
                f"the model was called with a cache of {first} tokens that were not seen here\n"
                "  run the prompt inside the same `with` block, so that its visual tokens are known"
            )
        return known

    def _note_ends(self, under: Under, ids: Tensor | None) -> None:
        """Rows that were given a token that ends them are only padded from here on."""
        if under.course.n_rows < 2:  # the only one: it ends with the generation
            return
        if ids is not None:
            under.course.note_ends(ids, self.ends)
        if self.ended is not None:
            under.course.end(self.ended)

    def after(self, done: Pass, output: Any) -> None:
        """The pass has ended, and gave this."""
        self.n += 1
        cache = getattr(output, "past_key_values", None)
        if self._only is not None and cache is not None and (done.first == 0 or not _is_object(cache)):
            done.of.cache = _reference_to(cache)  # the model may have made it itself
        elif _is_object(cache) and done.first == 0:
            self._by_cache[cache] = done.of
        done.of.n_passes += 1
        done.of.next = done.first + done.length

    @staticmethod
    def check_length(under_way: Pass | None, length: int) -> None:
        """PromptError where the layers run on a sequence of another length than the tokens that were given."""
        if under_way is not None and under_way.length and length != under_way.length:
            raise PromptError(
                f"the model was given {under_way.length} tokens and runs {length}: it expands its placeholders in its "
                "own forward, so that no position of the prompt is where its tokens are\n"
                "  give token ids in which each visual token stands by itself, as they run, to lens.prompt(inputs=...) "
                "or an adapter whose `expanded` gives them: Lens(model, adapter=...)"
            )

    def settle(self) -> None:
        """Add up what the taps of all prompts noted."""
        for under in (self._only, *list(self._by_cache.values())):
            if under is not None:
                self.tapping.course = under.course
                self.tapping.settle()
        self.tapping.settle()


def _is_object(cache: Any) -> bool:
    """Whether it is a cache of transformers, the same one in all passes; not lists of keys and values, as older code
    keeps them and makes anew in each."""
    return cache is not None and hasattr(cache, "get_seq_length")


def _length_of(cache: Any) -> int:
    """How many tokens a cache holds."""
    if not cache and not _is_object(cache):
        return 0
    return int(cache.get_seq_length()) if _is_object(cache) else int(cache[0][0].shape[-2])


def _reference_to(cache: Any) -> Callable[[], Any]:
    """Gives a cache, without keeping one of transformers alive."""
    return ref(cache) if _is_object(cache) else lambda: cache


def _n_running(under: Under, kwargs: Mapping[str, Any], first: int) -> int:
    """How many tokens the layers run in a pass that is given this; 0 where that cannot be told."""
    if not first and not under.n_passes:
        return under.prompt.n_tokens
    ids, embeds = (x if isinstance(x := kwargs.get(name), Tensor) else None for name in ("input_ids", "inputs_embeds"))
    if ids is None:
        return 0 if embeds is None else embeds.shape[1]
    # without a cache the whole prompt comes again, with its placeholders
    return ids.shape[1] + (0 if first else under.prompt.n_tokens - under.prompt.inputs["input_ids"].shape[1])


def _same_pictures(prompt: Prompt, kwargs: Mapping[str, Any]) -> bool:
    """Whether a pass without a cache is given the very pictures of a prompt."""
    for name, value in prompt.inputs.items():
        for own, given in zip(tensors_in(value), tensors_in(kwargs.get(name)), strict=False):
            if own.is_floating_point() and (given.data_ptr() != own.data_ptr() or given.shape != own.shape):
                return False
    return True
