"""Run and generate with taps on the plain Hugging Face model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...adapters import Adapter
from ...core.carried import Carried
from ...errors import LensError
from ...prompts.prompt import Prompt
from ..base import Continuation, Forward, ForwardPass, PromptOf, Remote, TapsOf
from ..options import Options
from ..placement import device_of
from .session import NativeSession


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
    runs_replays = True
    remote: Remote = False
    weights_elsewhere: str | None = None

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.model: Any = adapter.model
        self.options = Options(self.model)

    def forward(
        self,
        prompt: Prompt,
        taps_of: TapsOf,
        *,
        last_only: bool = False,
        grad: bool = False,
        carried: Carried | None = None,
    ) -> Forward:
        """As in `Backend.forward`."""
        keep, last = self.options.keeping(prompt, last_only)
        with torch.set_grad_enabled(grad), self._session(taps_of, prompt, None, carried) as session:
            logits = self.model(**{"use_cache": False, **prompt.inputs, **keep}).logits
        if last is not None:
            logits = logits[torch.arange(prompt.n_rows), last][:, None]
        return Forward(logits, session.tapping)

    def forward_all(self, passes: Sequence[ForwardPass]) -> Iterator[Forward]:
        """As in `Backend.forward_all`."""
        carried = Carried()
        for each in passes:
            done = self.forward(each.prompt, each.taps_of, last_only=True, carried=carried)
            if each.tokens is not None:
                done = Forward(done.logits.gather(2, each.tokens.to(done.logits.device)[:, None]), done.tapping)
            yield done

    def generate(self, prompt: Prompt, taps_of: TapsOf, options: Mapping[str, Any]) -> Continuation:
        """As in `Backend.generate`."""
        config = copy.deepcopy(self.model.generation_config)
        config.update(**self.options.generating(options), return_dict_in_generate=True)
        with torch.no_grad(), self.session(taps_of, prompt) as session:
            out = self.model.generate(**prompt.inputs, generation_config=config, logits_processor=[_refuse_nan])
        logits = None if out.logits is None else torch.stack(out.logits, 1)
        return Continuation(out.sequences[:, prompt.n_tokens :], logits, session.tapping)

    def session(
        self, taps_of: TapsOf, prompt: Prompt | None = None, prompt_of: PromptOf | None = None
    ) -> NativeSession:
        """As in `Backend.session`."""
        return self._session(taps_of, prompt, prompt_of, None)

    def _session(
        self, taps_of: TapsOf, prompt: Prompt | None, prompt_of: PromptOf | None, carried: Carried | None
    ) -> NativeSession:
        return NativeSession(self.model, self.adapter.layers, taps_of, prompt, prompt_of, carried)

    @contextmanager
    def at(self, remote: Remote) -> Iterator[None]:
        """As in `Backend.at`: here is the only place."""
        if remote is not False:
            raise LensError(f'remote={remote!r} needs backend="nnsight", this lens has {self.name!r}')
        yield

    def pickled(self) -> None:
        """As in `Backend.pickled`: never on its way to a server."""

    @property
    def device(self) -> torch.device:
        """Where the prompt's tensors go: the device on which the input embeddings are computed."""
        return device_of(self.model.get_input_embeddings(), self.model)
