"""Run and generate with taps on the plain Hugging Face model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...adapters import Adapter
from ...core.tapping import Tapping
from ...core.taps import Tap
from ...lens.program import Planned
from ...prompts.prompt import Prompt
from ..options import Options
from ..placement import device_of
from .session import Session

Bind = Callable[[Prompt], Sequence[Tap]]


def _refuse_nan(tokens: Tensor, scores: Tensor) -> Tensor:
    """A logits processor: greedy decoding would pick some token of NaN logits without a word."""
    if bool(scores.isnan().any()):
        raise FloatingPointError(f"NaN in the logits after {tokens.shape[1]} tokens")
    return scores


class NativeBackend:
    """The reference backend and the fast one.

    Args:
        adapter: of the model to run; neither is changed.
    """

    name = "native"
    ways_in = "lens.run, lens.generate or the lens's own model"

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.model: Any = adapter.model
        self.options = Options(self.model)

    def forward(
        self, prompt: Prompt, bind: Bind, last_only: bool, grad: bool, stash: dict[Any, Any] | None = None
    ) -> tuple[Float[Tensor, "batch position vocab"], Tapping]:
        """One pass over the prompt.

        Args:
            prompt: the prompt.
            bind: gives the taps.
            last_only: return logits of each row's last token alone, [batch, 1, vocab].
            grad: keep the graph.
            stash: what earlier runs have left to this one.
        """
        keep, last = self.options.keeping(prompt, last_only)
        with torch.set_grad_enabled(grad), self.session(bind, prompt, stash=stash) as session:
            logits = self.model(**{"use_cache": False, **prompt.inputs, **keep}).logits
        if last is not None:
            logits = logits[torch.arange(prompt.n_rows), last][:, None]
        return logits, session.tapping

    def forward_all(self, plan: Sequence[tuple[Planned, Bind]]) -> Iterator[tuple[Tensor, Tapping]]:
        """Several passes, one after the other, which share a stash; logits of the last tokens."""
        stash: dict[Any, Any] = {}
        for planned, bind in plan:
            logits, tapping = self.forward(planned.prompt, bind, True, False, stash)
            if planned.tokens is not None:
                logits = logits.gather(2, planned.tokens.to(logits.device)[:, None])
            yield logits, tapping

    def generate(
        self, prompt: Prompt, bind: Bind, options: Mapping[str, Any]
    ) -> tuple[Int[Tensor, "batch new"], list[Tensor] | None, Tapping]:
        """Generate with transformers' own `generate`, cache and all; greedy unless the options say otherwise.

        Returns:
            The new tokens, the logits of each step if `output_logits` was asked for, and what the taps did.
        """
        config = copy.deepcopy(self.model.generation_config)
        config.update(**self.options.generating(options), return_dict_in_generate=True)
        with torch.no_grad(), self.session(bind, prompt) as session:
            out = self.model.generate(**prompt.inputs, generation_config=config, logits_processor=[_refuse_nan])
        return out.sequences[:, prompt.n_tokens :], out.logits, session.tapping

    def session(
        self,
        bind: Bind,
        prompt: Prompt | None = None,
        prompt_of: Callable[[Mapping[str, Any]], Prompt] | None = None,
        stash: dict[Any, Any] | None = None,
    ) -> Session:
        """A context in which the model runs with the taps that `bind` gives."""
        return Session(self.model, self.adapter.layers, bind, prompt, prompt_of, stash)

    @property
    def device(self) -> torch.device:
        """Where the prompt's tensors go: the device on which the input embeddings are computed."""
        return device_of(self.model.get_input_embeddings(), self.model)
