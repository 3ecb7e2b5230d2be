"""The user's model in nnsight's wrapping: kept up with what its user does to it, its hook points as jobs take them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...adapters import Adapter
from ...adapters.towers import Tower, tower_in
from ...core.envoys import NO_SCORES
from ...core.layer_envoys import LayerEnvoys
from ...core.taps import Tap
from ...errors import HookError, InterventionError, ModelError
from ...prompts.prompt import Prompt
from ..native.session import check_runnable
from ..options import Options
from ..placement import device_of, has_weights
from ..twins import structure_of
from .job import ModelEnvoys
from .traces import trace_under_way
from .wrap import envoys_of_model, label_operations, wrapped


class WrappedModel:
    """A model as nnsight sees it, for as long as it is the one that was wrapped.

    Args:
        adapter: of the user's model, which is never changed; without weights if only a server has them.
        envoy: the model in nnsight's wrapping, if there is one already.

    Attributes:
        envoy: its wrapping.
        options: what its `generate` takes.
        has_weights: whether they are here.
        lock: held by a session: what its envoys serve belongs to whichever trace is under way.
        tower_passes: what the vision tower runs, by whether that is on a server and of which pictures.
    """

    envoy: Any
    options: Options
    tower_passes: dict[tuple[bool, str], Prompt]

    def __init__(self, adapter: Adapter, envoy: Any = None) -> None:
        self.adapter, self._given = adapter, envoy
        self.has_weights = has_weights(adapter.model)
        self.lock = threading.RLock()
        self._wrap()

    def _wrap(self) -> None:
        self._structure = structure_of(self.adapter.model)
        self.envoy = wrapped(self.adapter.model, self.adapter.processor) if self._given is None else self._given
        self.options = Options(self.module)
        self._envoys: dict[bool, ModelEnvoys] = {}
        self.tower_passes = {}

    def renew(self) -> None:
        """Before a run, wrap the model anew where it is no longer what was wrapped.

        Raises:
            ModelError: its user has wrapped it, and then exchanged modules in it.
        """
        with self.lock:
            structure = structure_of(self.adapter.model)
            if structure == self._structure:
                return
            if self.module is not self.adapter.model:
                self.adapter.look_again()
                self._wrap()
            elif structure.has_modules_of(self._structure):  # the rest nnsight's wrapping has from the model itself
                self._structure = structure
            else:
                raise ModelError(
                    "modules of the model were exchanged after nnsight had wrapped it, and its envoys have the old ones"
                    "\n  load the model anew, change it, and then make the lens"
                )

    @property
    def module(self) -> nn.Module:
        """What is wrapped: a twin of the user's model, or that itself."""
        module: nn.Module = self.envoy._module
        return module

    @property
    def name(self) -> str:
        """Its class, for errors."""
        return type(self.adapter.model).__name__

    @property
    def tower(self) -> Tower:
        """The vision tower of what is wrapped."""
        return tower_in(self.module, self.adapter.tower)

    @property
    def device(self) -> torch.device:
        """Where the prompt's tensors go."""
        if not self.has_weights:
            return torch.device("cpu")
        return device_of(self.module.get_input_embeddings(), self.module)  # type: ignore[operator]

    def check_runnable(self) -> None:
        """ModelError where the user's model or its twin cannot run."""
        check_runnable(self.adapter.model, self.adapter.modules)
        check_runnable(self.module)

    # ------------------------------------------------------------------ hook points

    def envoys(self, from_weights: bool) -> ModelEnvoys:
        """The model as jobs take it: on a server patterns come from the weights that attention returns."""
        if from_weights not in self._envoys:
            self._envoys[from_weights] = envoys_of_model(self.envoy, self.adapter, from_weights)
        return self._envoys[from_weights]

    def checked(self, taps: Sequence[Tap], from_weights: bool) -> Sequence[Tap]:
        """The taps, the operations that they need labelled.

        Raises:
            HookError: a hook point that the layer does not have.
            InterventionError: something that a server does not have is needed there.
        """
        if from_weights and any(tap.needs_scores for tap in taps):
            raise InterventionError(NO_SCORES)
        for tap in taps:
            envoys = self.envoys(from_weights).layers[tap.layer]
            if tap.site not in envoys.sites:
                kind = type(self.adapter.layers[tap.layer].module).__name__
                if tap.site == "resid_pre":
                    raise HookError(
                        f"layer {tap.layer} ({kind}) has no resid_pre on a server: nnsight does not serve all that "
                        "it does with what enters it\n"
                        "  take resid_post of the layer before, or a lens with remote=False"
                    )
                raise HookError(f"layer {tap.layer} ({kind}) has no {tap.site}; it has {', '.join(envoys.sites)}")
            label_operations(envoys, tap.site)
        return taps

    def pass_under_way(self, envoys: LayerEnvoys, site: str) -> tuple[Any, int]:
        """Before a hook point is asked for inside a trace: which trace that is, and which pass over the layer it is.

        The operations that the hook point needs are labelled then.

        Raises:
            HookError: the trace is of another lens, whose model would answer.
        """
        mediator = trace_under_way()
        if mediator is None:  # nnsight says so
            return None, 0
        if mediator().interleaver is not self.envoy.interleaver:
            raise HookError("this trace is of another lens: inside `with a.trace(...)` call a.read and a.write")
        label_operations(envoys, site)
        # a step of `tracer.iter` that has just begun is counted by it; from then on, how often the layer ran
        return mediator, mediator().iteration or mediator().occurrence(f"{envoys.module.path}.output")
