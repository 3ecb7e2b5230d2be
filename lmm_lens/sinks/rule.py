"""Which tokens are attention sinks, given the sink dimensions, and where those come from.

A sink is a token with a massive activation in a few fixed dimensions of the residual stream (Kang et al., ICLR 2025,
arXiv:2503.03321, section 3). It soaks up attention without carrying content, text tokens and patches alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import InterventionError, ScoreError
from ..kernels import sink_score
from ..prompt import Prompt
from ..rows import bind_rows
from ..taps import Place, Read, Tap
from .known import known_for

if TYPE_CHECKING:
    from ..lens import Lens


@dataclass(frozen=True)
class SinkRule:
    """Tokens with phi >= threshold on the sink dimensions are sinks.

    Attributes:
        dims: the sink dimensions of the residual stream; empty for a model measured to have none.
        threshold: tau, in units of the token's RMS; the paper's is 20. phi never exceeds sqrt(d_model).
        source: where the dimensions come from.
        control: None, or the seed of a control experiment: as many random tokens take the sinks' place, see
            `as_many_others`.
    """

    dims: tuple[int, ...]
    threshold: float = 20.0
    source: str = "given by the user"
    control: int | None = None

    def checked(self, d_model: int) -> SinkRule:
        """This rule, if a model of that width can have such sinks; ScoreError otherwise."""
        outside = [d for d in self.dims if not 0 <= d < d_model]
        if outside:
            raise ScoreError(
                f"sink dimensions {outside} lie outside the model: d_model is {d_model}\n"
                '  give the dimensions of this model, or sink_dims="auto" to discover them'
            )
        if not self.threshold > 0:
            raise ScoreError(f"sink_threshold must be positive, given {self.threshold}")
        if self.dims and self.threshold >= d_model**0.5:
            raise ScoreError(
                f"sink_threshold {self.threshold:g} can never be reached: phi is at most sqrt(d_model) = "
                f'{d_model**0.5:.1f}\n  give a lower threshold, or sink_threshold="auto"'
            )
        return self

    def positions(self, lens: Lens, prompt: Prompt, layer: int, row: int = 0) -> tuple[int, ...]:
        """The visual sink tokens of one layer and prompt row."""
        read = Read("resid_pre", [layer], reduce=lambda x, place: sink_score(x, self.dims), name="phi")
        run = lens.run(prompt, read=[read], logits="last")
        is_sink = run.reads["phi", layer][row] >= self.threshold
        found = run.positions["phi"][row][is_sink].tolist()
        return tuple(position for position in found if prompt.mask("visual")[row, position])

    def tap(self, prompt: Prompt, layer: int) -> Tap:
        """A tap that files the layer's sink tokens in the run's memo, for `sinks`."""
        visual, real = prompt.mask("visual"), prompt.mask("all")

        def remember(resid: Tensor, place: Place) -> Tensor:
            found = place.valid & (sink_score(resid, self.dims) >= self.threshold)
            known = place.memo.get(self._key("found", place))
            mask = torch.zeros(found.shape[0], place.n_seen, dtype=torch.bool, device=found.device)
            if known is not None:
                width = min(known.shape[1], place.n_seen)
                mask[:, :width] = known[:, :width]
            mask.scatter_(1, place.positions, found)
            place.memo[self._key("found", place)] = mask
            if self.control is not None:
                mask = as_many_others(mask, visual, real, self.control, layer)
            place.memo[self._key("sinks", place)] = mask
            return found

        return Tap("resid_pre", layer, bind_rows("all", prompt), remember)

    def sinks(self, place: Place) -> Bool[Tensor, "batch position"]:
        """The sink tokens of this layer so far, or their random control, that `tap` has filed in this run."""
        return place.memo[self._key("sinks", place)]

    def _key(self, what: str, place: Place) -> tuple[object, ...]:
        return what, self.dims, self.threshold, self.control, place.layer  # one entry a rule: two may act in one run


def is_known(config: Any) -> bool:
    """Whether a model's card or the table of published dimensions names its sinks."""
    return "sink_dims" in (getattr(config, "lmm_lens", None) or {}) or known_for(config) is not None


def as_many_others(
    sinks: Bool[Tensor, "batch seen"],
    visual: Bool[Tensor, "batch position"],
    real: Bool[Tensor, "batch position"],
    seed: int,
    layer: int,
) -> Bool[Tensor, "batch seen"]:
    """As many random visual tokens as there are visual sinks, and as many text tokens as text sinks: the control.

    Drawn from the prompt's tokens that are no sinks. A token's rank in the draw depends on its place from the row's
    first real token and on the seed alone, so the draw holds over decoding steps and does not depend on padding.

    Raises:
        InterventionError: a row has fewer such tokens than sinks.
    """
    n_rows, n_prompt = visual.shape
    generator = torch.Generator().manual_seed(1000 * seed + layer)
    draw = torch.rand(n_prompt, generator=generator, dtype=torch.float64)
    place = (real.cumsum(1) - 1).clamp_min(0)
    rank = draw[place]  # batch position
    found = torch.nn.functional.pad(sinks.cpu(), (0, max(0, n_prompt - sinks.shape[1])))
    chosen = torch.zeros(n_rows, max(n_prompt, sinks.shape[1]), dtype=torch.bool)
    for kind, name in ((visual, "visual"), (real & ~visual, "text")):
        pool = kind & ~found[:, :n_prompt]
        is_text = name == "text"
        n_sinks = (found[:, :n_prompt] & kind).sum(1) + (found[:, n_prompt:].sum(1) if is_text else 0)
        short = (pool.sum(1) < n_sinks).nonzero().flatten().tolist()
        if short:
            row = short[0]
            raise InterventionError(
                f"layer {layer} has {int(n_sinks[row])} {name} sinks in batch row {row} but only "
                f"{int(pool[row].sum())} other {name} tokens, so there is no control of the same size"
            )
        order = rank.masked_fill(~pool, 2.0).argsort(1).argsort(1)
        chosen[:, :n_prompt] |= pool & (order < n_sinks[:, None])
    return chosen[:, : sinks.shape[1]].to(sinks.device)


def rule_for(config: Any, dims: Sequence[int] | None = None, threshold: float | None = None) -> SinkRule:
    """The sink rule of a model: the user's, its own config's, or a published one.

    Args:
        config: the model's config. A dict `config.lmm_lens` with `sink_dims` and `sink_threshold` is a model card's
            word.
        dims: dimensions given by the user.
        threshold: tau given by the user.

    Raises:
        ScoreError: nothing is known of this model, or a dimension lies outside it.
    """
    text = config.get_text_config()
    card = getattr(config, "lmm_lens", None) or {}
    published = known_for(config)
    if dims is not None:
        rule = SinkRule(tuple(int(d) for d in dims), 20.0 if threshold is None else float(threshold))
    elif "sink_dims" in card:
        tau = card.get("sink_threshold", 20.0) if threshold is None else threshold
        rule = SinkRule(tuple(card["sink_dims"]), float(tau), "the model's own card")
    elif published:
        tau = 20.0 if threshold is None else float(threshold)
        rule = SinkRule(published.dims, tau, f"{published.model}: {published.source}")
    else:
        raise ScoreError(
            f"the sink dimensions of this {text.model_type} model (d_model {text.hidden_size}) are not known\n"
            "  pass sink_dims=(...), and sink_threshold where d_model is below 400; "
            "find_sinks(lens, prompts) discovers both"
        )
    return rule.checked(text.hidden_size)
