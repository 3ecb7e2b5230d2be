"""Attention sinks: which tokens they are, and where that is known beforehand.

A sink is a token with a massive activation in a few fixed dimensions of the residual stream (Kang et al., ICLR 2025,
arXiv:2503.03321, section 3). It soaks up attention without carrying content, text tokens and patches alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from .errors import ScoreError
from .kernels import sink_score
from .prompt import Prompt
from .rows import bind_rows
from .taps import Place, Tap


@dataclass(frozen=True)
class SinkRule:
    """Tokens with phi >= threshold on the sink dimensions are sinks.

    Attributes:
        dims: the sink dimensions of the residual stream; empty for a model measured to have none.
        threshold: tau, in units of the token's RMS; the paper's is 20. phi never exceeds sqrt(d_model).
        source: where the dimensions come from.
    """

    dims: tuple[int, ...]
    threshold: float = 20.0
    source: str = "given by the user"

    def tap(self, prompt: Prompt, layer: int) -> Tap:
        """A tap that files the layer's sink tokens under `("sinks", layer)` of the run's memo."""

        def remember(resid: Tensor, place: Place) -> Tensor:
            found = place.valid & (sink_score(resid, self.dims) >= self.threshold)
            known = place.memo.get(("sinks", layer))
            mask = torch.zeros(found.shape[0], place.n_seen, dtype=torch.bool, device=found.device)
            if known is not None:
                width = min(known.shape[1], place.n_seen)
                mask[:, :width] = known[:, :width]
            mask.scatter_(1, place.positions, found)
            place.memo["sinks", layer] = mask
            return found

        return Tap("resid_pre", layer, bind_rows("all", prompt), remember)


def remembered(place: Place) -> Bool[Tensor, "batch position"]:
    """The sink tokens of this layer that its tap has filed."""
    return place.memo["sinks", place.layer]


# language model -> sink dimensions; (model_type of the text config, d_model) identifies it
KNOWN: dict[tuple[str, int], tuple[tuple[int, ...], str]] = {
    ("llama", 4096): ((1415, 2533), "LLaMA-2-7B: Kang et al., ICLR 2025, paper and code"),
    ("llama", 5120): ((2100, 4743), "LLaMA-2-13B: Kang et al., ICLR 2025, code"),
}


def rule_for(config: Any, dims: Sequence[int] | None = None, threshold: float | None = None) -> SinkRule:
    """The sink rule of a model: the user's, its own config's, or a published one.

    Args:
        config: the model's config. A dict `config.lmm_lens` with `sink_dims` and `sink_threshold` is a model card's word.
        dims: dimensions given by the user.
        threshold: tau given by the user.

    Raises:
        ScoreError: nothing is known of this model, or a dimension lies outside it.
    """
    text = config.get_text_config()
    card = getattr(config, "lmm_lens", None) or {}
    # LLaMA-3 shares model_type and width with LLaMA-2 but not the dimensions; its vocabulary tells them apart
    published = KNOWN.get((text.model_type, text.hidden_size)) if text.vocab_size < 40_000 else None
    if dims is not None:
        rule = SinkRule(tuple(int(d) for d in dims), 20.0 if threshold is None else float(threshold))
    elif "sink_dims" in card:
        tau = card.get("sink_threshold", 20.0) if threshold is None else threshold
        rule = SinkRule(tuple(card["sink_dims"]), float(tau), "the model's own card")
    elif published:
        rule = SinkRule(published[0], 20.0 if threshold is None else float(threshold), published[1])
    else:
        raise ScoreError(
            f"the sink dimensions of this {text.model_type} model (d_model {text.hidden_size}) are not known\n"
            "  pass sink_dims=(...), and sink_threshold where d_model is below 400"
        )
    outside = [d for d in rule.dims if not 0 <= d < text.hidden_size]
    if outside:
        raise ScoreError(f"sink dimensions {outside} lie outside the model: d_model is {text.hidden_size}")
    if rule.dims and rule.threshold >= text.hidden_size**0.5:
        raise ScoreError(
            f"sink_threshold {rule.threshold:g} can never be reached: phi is at most sqrt(d_model) = "
            f"{text.hidden_size**0.5:.1f}\n  give a lower threshold"
        )
    return rule
