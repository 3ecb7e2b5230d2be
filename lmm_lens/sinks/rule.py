"""Which tokens are attention sinks, given the sink dimensions, and where those come from.

A sink is a token with a massive activation in a few fixed dimensions of the residual stream (Kang et al., ICLR 2025,
arXiv:2503.03321, section 3). It soaks up attention without carrying content, text tokens and patches alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.kernels import is_sink
from ..core.sinks import SinkKey, file_sinks
from ..core.taps import Tap, TapContext
from ..errors import ScoreError
from ..hooks.points import Read
from ..hooks.runner import Runner
from ..prompts.prompt import Prompt
from ..prompts.rows import bind_rows
from ..prompts.text_config import text_config_of
from ..warnings import warn
from .known import known_for

COUNTED_BY = "visual sinks by "
COUNTED = f"{COUNTED_BY}sink_dims="
MOST = 0.5  # of the visual tokens: from so many on, a rule does not tell sinks from others
FEW = 16  # visual tokens, of which most may well be sinks


@dataclass(frozen=True)
class SinkRule:
    """Tokens with phi >= threshold on the sink dimensions are sinks.

    Attributes:
        dims: the sink dimensions of the residual stream; empty for a model measured to have none.
        threshold: tau, in units of the token's RMS; the paper's is 20. phi never exceeds sqrt(d_model).
        source: where the dimensions come from.
        control: None, or the seed of a control experiment: as many random tokens take the sinks' place, see
            `lmm_lens.core.sinks.as_many_others`.
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

    def positions(self, lens: Runner, prompt: Prompt, layer: int, row: int = 0) -> tuple[int, ...]:
        """The visual sink tokens of one layer and prompt row."""
        dims, threshold = self.dims, self.threshold
        read = Read("resid_pre", [layer], reduce=lambda x, context: is_sink(x, dims, threshold), name="sinks")
        run = lens.run(prompt, read=[read], logits="last")
        found = run.positions["sinks"][row][run.reads["sinks", layer][row]].tolist()
        return tuple(position for position in found if prompt.mask("visual")[row, position])

    @property
    def key(self) -> SinkKey:
        """Names this rule where its sinks are filed: two rules may act in one run."""
        return self.dims, self.threshold, self.control

    @property
    def counted(self) -> str:
        """Names the sum of (visual sinks, visual tokens) that its taps leave in a run, see `told_of_many`."""
        return f"{COUNTED}{list(self.dims)}, sink_threshold={self.threshold:g}"

    def tap(self, prompt: Prompt, layer: int) -> Tap:
        """A tap that files the layer's sink tokens in the run, for `lmm_lens.core.sinks.sinks_of`."""
        visual, real, key = prompt.mask("visual"), prompt.mask("all"), self.key
        n_prompt, counted = visual.shape[1], self.counted

        def remember(resid: Tensor, context: TapContext) -> Tensor:
            found = file_sinks(resid, context, key, visual, real)
            if context.n_seen == n_prompt:  # not while decoding, where no visual token comes any more

                def make() -> tuple[Tensor, Tensor]:
                    inside = visual.to(found.device).gather(1, context.positions) & context.valid
                    return inside, inside.sum()

                known_as = "patches", id(visual), found.device
                is_patch, n_patches = context.state.columns.get(known_as, visual, n_prompt, n_prompt, make)
                context.add(counted, torch.stack([(found & is_patch).sum(), n_patches]))
            return found

        return Tap("resid_pre", layer, bind_rows("all", prompt), remember)


def told_of_many(sums: dict[tuple[str, int], Tensor]) -> None:
    """Take what rules counted in a run out of its sums, and warn of those under which most visual tokens are sinks."""
    totals: dict[str, dict[int, Tensor]] = {}
    for name, layer in [named for named in sums if named[0].startswith(COUNTED)]:
        totals.setdefault(name, {})[layer] = sums.pop((name, layer)).cpu()
    for name, counts in totals.items():
        n_sinks, n_visual = torch.stack([counts[layer] for layer in sorted(counts)]).unbind(1)
        crowded = (n_sinks > MOST * n_visual) & (n_visual >= FEW)
        if bool(crowded.any()):
            share = float((n_sinks[crowded] / n_visual[crowded]).mean())
            warn(
                f"{share:.0%} of the visual tokens are sinks in {int(crowded.sum())} of {len(counts)} layers, by "
                f"{name.removeprefix(COUNTED_BY)}: there it does not tell sinks from others\n"
                '  give a higher threshold, or sink_threshold="auto"; find_sinks(lens, prompts) shows the gap'
            )


def is_known(config: Any) -> bool:
    """Whether a model's card or the table of published dimensions names its sinks."""
    return "sink_dims" in (getattr(config, "lmm_lens", None) or {}) or known_for(config) is not None


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
    text = text_config_of(config)
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
            '  pass sink_dims=(...), and sink_threshold where d_model is below 400, or "auto" for either: '
            "find_sinks(lens, prompts) shows what that finds"
        )
    return rule.checked(text.hidden_size)
