"""Metrics of answers of one's own: a function of all logits at the last prompt token, and of the answers.

    def margin(logits, goal):
        '''Logit of the right answer minus the largest other one.'''
        others = logits.clone()
        others[:, list(goal.right)] = -torch.inf
        return logits[:, goal.right[0]] - others.amax(1)

    effects = head_effects(lens, samples, metric=margin)

`logits` is Float[forward, vocab] in fp64, the plain forward first, so that a metric may compare with it, as a KL
divergence does; `goal` is a `Goal` with the answers' token ids. It gives one number a forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..errors import ScoreError
from .outcomes import ANSWER_METRICS, YES_NO, Goal

AnswerFunction = Callable[[Tensor, Goal], Tensor]


@dataclass(frozen=True)
class OwnAnswer:
    """A number of a forward by a function of the user's.

    Attributes:
        name: what the results call it.
        meaning: in one line.
        function: (logits, goal) -> numbers, see above.
    """

    name: str
    meaning: str
    function: AnswerFunction

    @classmethod
    def of(cls, function: AnswerFunction) -> OwnAnswer:
        """That of a function; ScoreError where it has no name of its own."""
        name = str(getattr(function, "__name__", ""))
        if not callable(function) or not name.isidentifier():
            raise ScoreError(
                f"metric is a name, or a function (logits, goal) -> numbers with a name, given {function!r}\n"
                "  write it with def: the results are called by its name"
            )
        if name in (*ANSWER_METRICS, *YES_NO):
            raise ScoreError(f"{name!r} is a metric of this library: give your own another name")
        return cls(name, (inspect.getdoc(function) or name).splitlines()[0], function)

    def __call__(self, logits: Float[Tensor, "forward vocab"], goal: Goal) -> Float[Tensor, " forward"]:
        """The numbers, fp64; ScoreError where the function returns something else, or what is not finite."""
        found = self.function(logits, goal)
        if not isinstance(found, Tensor) or found.shape != logits.shape[:1]:
            given = f"{list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ScoreError(
                f"{self.name} returned {given}\n"
                f"  expected one number a forward, [{len(logits)}], of logits [forward, vocab] = {list(logits.shape)}"
            )
        if not bool(found.isfinite().all()):
            at = int((~found.isfinite()).nonzero()[0])
            which = "the plain forward" if at == 0 else f"forward {at}"
            raise ScoreError(f"{self.name} gave {float(found[at])} for {which}\n  a metric is a finite number")
        return found.double()
