"""Run and generate with taps on the plain Hugging Face model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor

from ...adapters import Adapter
from ...adapters.towers import Tower
from ...core.carried import Carried
from ...errors import HookError, LensError
from ...prompts.prompt import Prompt
from ...prompts.tensors import fresh
from ..base import Continuation, Forward, ForwardPass, PromptOf, Remote, TapsOf
from ..ends import Ends
from ..options import Options, ends_of, new_tokens
from ..placement import device_of
from .session import NativeSession
from .tower import TowerSession


class RefuseNaN(LogitsProcessor):
    """Greedy decoding would pick some token of NaN logits without a word.

    A class, not a function: transformers asks for the signature of its `__call__` at each step, and Python parses the
    text of a function's (see `lmm_lens.backends.sources`).

    Args:
        at_once: look at each step. Sampling needs it, for NaN would end it with an error of the device; greedy decoding
            does not, and a look waits for the device.
    """

    def __init__(self, at_once: bool) -> None:
        self.at_once = at_once
        self._found: list[Tensor] = []
        self._n_given = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores as they are."""
        if not self._found:
            self._n_given = input_ids.shape[1]
        self._found.append(scores.isnan().any())
        if self.at_once:
            self.check()
        return scores

    def check(self) -> None:
        """FloatingPointError where a step had some."""
        found = torch.stack(self._found).tolist() if self._found else []
        if True in found:
            raise FloatingPointError(f"NaN in the logits after {self._n_given + found.index(True)} tokens")


class NativeBackend:
    """The reference backend and the fast one.

    Args:
        adapter: of the model to run; neither is changed.
        around: what the user holds the model in, see `lmm_lens.backends.holders`.
    """

    name: ClassVar[str] = "native"
    ways_in: ClassVar[str] = "lens.run, lens.generate or the lens's own model"
    runs_replays: ClassVar[bool] = True
    remote: Remote = False
    weights_elsewhere: str | None = None

    def __init__(self, adapter: Adapter, around: Sequence[nn.Module] = ()) -> None:
        self.adapter, self.around = adapter, tuple(around)
        self.model: Any = adapter.model
        self.options = Options(self.model)

    @property
    def tower(self) -> Tower:
        """As in `Backend.tower`."""
        return self.adapter.tower

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
        inputs = fresh(prompt.inputs)
        options = {name: value for name, value in {"use_cache": False, **keep}.items() if name not in inputs}
        with torch.set_grad_enabled(grad), self._session(taps_of, prompt, None, carried) as session:
            logits = self._call(inputs, options).logits
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
        config, beside = self.options.generating(options)
        ids = prompt.inputs["input_ids"]
        refuse_nan = RefuseNaN(at_once=config.do_sample)
        beside["logits_processor"] = [refuse_nan, *beside.get("logits_processor", ())]
        with torch.no_grad(), self._session(taps_of, prompt, None, None, self._ends(config)) as session:
            if "stopping_criteria" in beside or config.stop_strings is not None:
                beside["stopping_criteria"] = [
                    Ends(config, beside.get("stopping_criteria", ()), self.adapter, session.end)
                ]
            out = self._generate(fresh(prompt.inputs), {"generation_config": config, **beside})
        refuse_nan.check()
        new = new_tokens(out.sequences, ids)
        if session.tapping.taps and session.n_passes != new.shape[1]:
            raise HookError(
                f"{new.shape[1]} tokens were generated, but {session.n_passes} passes were seen, so some were neither "
                f"read nor edited\n  generate of {type(self.model).__name__} runs another model than its own forward"
            )
        return Continuation(new, None if out.logits is None else torch.stack(out.logits, 1), session.tapping)

    def _call(self, inputs: dict[str, Any], options: dict[str, Any]) -> Any:
        return self.adapter.forward(inputs, **options)

    def _generate(self, inputs: dict[str, Any], options: dict[str, Any]) -> Any:
        return self.adapter.generate(inputs, **options)

    def _ends(self, config: GenerationConfig) -> list[int]:
        return [*ends_of(config), *self.adapter.ends]

    def prepare(self, prompt: Prompt) -> None:
        """As in `Backend.prepare`: nothing."""

    def session(
        self, taps_of: TapsOf, prompt: Prompt | None = None, prompt_of: PromptOf | None = None
    ) -> NativeSession:
        """As in `Backend.session`."""
        return self._session(taps_of, prompt, prompt_of, None)

    def tower_session(self, taps_of: TapsOf, thread: int | None) -> TowerSession:
        """As in `Backend.tower_session`."""
        return TowerSession(self.tower, type(self.adapter.model).__name__, taps_of, thread)

    def _session(
        self,
        taps_of: TapsOf,
        prompt: Prompt | None,
        prompt_of: PromptOf | None,
        carried: Carried | None,
        ends: Sequence[int] | None = None,
    ) -> NativeSession:
        self.adapter.look_again()
        if ends is None:
            ends = self._ends(self.options.defaults) if prompt_of is not None else ()
        return NativeSession(
            self.model,
            self.adapter.modules,
            self.adapter.layers,
            taps_of,
            prompt,
            prompt_of,
            carried,
            self.around,
            self.adapter.runs_alone,
            ends,
        )

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
