"""How an answer hangs on the pixels that the model takes: gradients, and integrated gradients.

    gradient              d m / d x                                            (Simonyan et al., arXiv:1312.6034)
    integrated gradients  (x - b) mean over k of d m / d x at b + (k - 1/2) / n (x - b),  k = 1 .. n
                                                                            (Sundararajan et al., arXiv:1703.01365)

m is a logit, a difference of two, or any function of the logits at the last prompt token; x are the pixels as the
processor made them, b those of a baseline. Integrated gradients add up to m(x) - m(b) as n grows; what is missing is
told. Pixels are put into the picture by the visual token that they reach, see `pixel_places`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..answers.contrast import AnswerLike, token_text
from ..errors import ModelError, PromptError, RemoteError, ScoreError, unknown
from ..figures.canvas import canvases_of
from ..interventions.base import Intervention
from ..prompts.prompt import Prompt, check_prompt
from .attribution import answer_ids
from .pixel_map import PixelAttribution
from .pixel_places import NOWHERE, pixels_of, places_of

if TYPE_CHECKING:
    from ..lens import Lens

METHODS = ("integrated_gradients", "gradient")
PixelMetric = Callable[[Tensor], Tensor]
Baseline = float | Prompt
"""A number for every processed pixel, 0 being about the mean colour; or a prompt with other pictures of these sizes."""


def pixel_attribution(
    lens: Lens,
    prompt: Prompt,
    answer: AnswerLike | None = None,
    against: AnswerLike | None = None,
    *,
    metric: PixelMetric | None = None,
    method: Literal["integrated_gradients", "gradient"] = "integrated_gradients",
    steps: int = 64,
    baseline: Baseline = 0.0,
    interventions: Sequence[Intervention] = (),
) -> PixelAttribution:
    """What each pixel, and so each patch, adds to an answer's logit at the last token, or how it would move it.

    One forward and one backward pass for a gradient, `steps` of them for integrated gradients; and a backward pass
    through the projector for each bit of the number of visual tokens.

    Args:
        lens: the model, here and not on a server.
        prompt: of one row, with pictures or videos.
        answer: a token as text or id; by default what the model answers.
        against: the logit to take away, likewise; None for none.
        metric: instead, a function of the logits at the last token, Float[vocab], that gives one number.
        method: "integrated_gradients", in logits, which adds up; or "gradient", in logits per unit of a processed
            pixel.
        steps: points on the path from the baseline to the picture; `missing` of the result says whether they do.
        baseline: where the path begins: a number for every processed pixel, 0 by default, which normalisation makes
            about the mean colour; or a prompt with other pictures, of the same sizes.
        interventions: edits under which it is measured.

    Raises:
        ScoreError: a batch, no such method, answers that are no single token, a metric that gives no number.
        PromptError: no pixels, or a baseline of another layout.
        ModelError: no gradient reaches the pixels, as where pictures become discrete tokens, or it is NaN.
        RemoteError: the model is on a server.
    """
    check_prompt(prompt)
    _check(lens, prompt, method, steps)
    pixels = pixels_of(prompt)
    if not pixels:
        raise PromptError("the prompt has no pixels, so nothing can be attributed to them\n  give it pictures")
    begin = pixels_at(baseline, prompt)
    if metric is not None and not (answer is None and against is None):
        raise ScoreError("give answers or a metric of your own, not both: they all say what is explained")
    plain = Forwards(lens, prompt, tuple(interventions), None)
    logits = plain.logits(pixels)
    ids = () if metric is not None else tuple(answer_ids(lens, prompt, answer, against, logits[None])[0].tolist())
    goal = metric or LogitOf(ids)
    explained = replace(plain, metric=goal)
    score = number_of(goal, logits)
    if method == "gradient":
        values, other = explained.slopes(pixels), None
    else:
        total = {name: torch.zeros_like(each, dtype=torch.float64) for name, each in pixels.items()}
        for step in range(steps):
            share = (step + 0.5) / steps
            for name, slope in explained.slopes(_between(begin, pixels, share)).items():
                total[name] += slope
        values = {name: total[name] / steps * (each - begin[name]).double() for name, each in pixels.items()}
        other = float(number_of(goal, plain.logits(begin)))
    values = {name: each.float().cpu() for name, each in values.items()}
    places = places_of(lens, prompt)
    return PixelAttribution(
        method=method,
        values=values,
        places=places,
        weights=_by_token(values, places, prompt.n_tokens, method),
        canvases=canvases_of(prompt, 0),
        answers=tuple(token_text(lens, token) for token in ids) or (str(getattr(metric, "__name__", "metric")),),
        ids=ids,
        score=float(score),
        baseline_score=other,
        steps=1 if method == "gradient" else steps,
        model=lens.identity,
    )


def _check(lens: Lens, prompt: Prompt, method: str, steps: int) -> None:
    if lens.remote is not False:
        raise RemoteError(
            "a gradient of pixels needs the model here, but it is on a server\n  use a lens with remote=False"
        )
    if prompt.n_rows != 1:
        raise ScoreError(f"pixels are attributed to one prompt at a time, given a batch of {prompt.n_rows} rows")
    if method not in METHODS:
        raise ScoreError(unknown("method of pixel attribution", method, METHODS))
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ScoreError(f"steps is the number of points on the path, 1 or more, given {steps!r}")


def pixels_at(baseline: Baseline, prompt: Prompt) -> dict[str, Tensor]:
    """The pixels of a baseline, as a prompt's own are laid out.

    Raises:
        PromptError: it is a prompt of another layout, or neither a prompt nor a number.
    """
    pixels = pixels_of(prompt)
    if isinstance(baseline, Prompt):
        other = pixels_of(baseline)
        given = {name: list(each.shape) for name, each in other.items()}
        expected = {name: list(each.shape) for name, each in pixels.items()}
        if given != expected or baseline.spans != prompt.spans:
            raise PromptError(
                f"the baseline's pictures are of another layout: expected pixels {expected} and the same visual "
                f"tokens, given {given}\n  give a prompt with the same text and pictures of the same sizes"
            )
        return {name: other[name].to(each) for name, each in pixels.items()}
    if isinstance(baseline, bool) or not isinstance(baseline, (int, float)):
        raise PromptError(f"a baseline is a number for every processed pixel or a prompt, given {baseline!r}")
    return {name: torch.full_like(each, float(baseline)) for name, each in pixels.items()}


def _between(begin: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    return {name: begin[name] + share * (each - begin[name]) for name, each in end.items()}


def _by_token(
    values: Mapping[str, Tensor], places: Mapping[str, Tensor], n_tokens: int, method: str
) -> Float[Tensor, " position"]:
    """What is on each token's pixels: the sum where values add up, the sum of their sizes for a gradient."""
    weights = torch.zeros(n_tokens, dtype=torch.float64)
    for name, value in values.items():
        known = places[name] != NOWHERE
        own = value[known].double()
        weights.index_add_(0, places[name][known], own.abs() if method == "gradient" else own)
    return weights.float()


@dataclass(frozen=True)
class LogitOf:
    """A token's logit, or its difference to another's.

    Attributes:
        ids: of one token, or two.
    """

    ids: tuple[int, ...]

    def __call__(self, logits: Float[Tensor, " vocab"]) -> Float[Tensor, ""]:
        """Of the logits at the last token."""
        return logits[self.ids[0]] - (logits[self.ids[1]] if len(self.ids) > 1 else 0.0)


def number_of(metric: PixelMetric, logits: Float[Tensor, " vocab"]) -> Float[Tensor, ""]:
    """What a metric gives; ScoreError for anything but one finite number."""
    found: Any = metric(logits)
    if not isinstance(found, Tensor) or found.numel() != 1 or not bool(found.isfinite().all()):
        name = getattr(metric, "__name__", "the metric")
        raise ScoreError(f"{name} gave {found!r:.60}\n  expected one finite number, as a tensor, of logits [vocab]")
    return found.reshape(())


@dataclass(frozen=True, eq=False)
class Forwards:
    """Runs a prompt with other pixels.

    Attributes:
        lens, prompt, interventions: what runs.
        metric: what is explained.
    """

    lens: Lens
    prompt: Prompt
    interventions: tuple[Intervention, ...] = ()
    metric: PixelMetric | None = None

    def logits(self, pixels: Mapping[str, Tensor], grad: bool = False) -> Float[Tensor, " vocab"]:
        """At the last prompt token."""
        shown = replace(self.prompt, inputs={**self.prompt.inputs, **pixels})
        with torch.set_grad_enabled(grad):
            found: Tensor = self.lens.run(shown, self.interventions, logits="last", grad=grad).logits[0, -1]
        return found

    def slopes(self, pixels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """d metric / d pixel.

        Raises:
            ModelError: there is no such gradient, or it is no number.
        """
        assert self.metric is not None
        leaves = {name: each.detach().clone().requires_grad_() for name, each in pixels.items()}
        with torch.inference_mode(False):
            number = number_of(self.metric, self.logits(leaves, grad=True))
            found: Sequence[Tensor | None] = [None] * len(leaves)
            if number.requires_grad:
                found = torch.autograd.grad(number, list(leaves.values()), allow_unused=True)
        kind = type(self.lens.model).__name__
        if all(slope is None for slope in found):
            raise ModelError(
                f"no gradient reaches the pixels of {kind}: they become discrete tokens, or a quantised or frozen part "
                "cuts them off\n  patch pictures or ablate visual tokens instead"
            )
        slopes = {
            name: torch.zeros_like(leaf) if slope is None else slope
            for (name, leaf), slope in zip(leaves.items(), found, strict=True)
        }
        if not all(bool(slope.isfinite().all()) for slope in slopes.values()):
            raise ModelError(f"the gradient of {kind} by its pixels is NaN or infinite; try float32")
        return slopes
