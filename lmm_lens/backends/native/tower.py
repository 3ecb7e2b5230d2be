"""Taps in the vision tower: torch's own hooks on its layers, and the attention tap on its attention.

The tower runs as the plain Hugging Face module on every backend of this machine, so one way of hooking it serves all.
What it runs is known when it runs: how many rows (pictures, tiles, frames), how many tokens. Then interventions and
reads are bound, and the first layer begins.

Packed towers put all pictures into one sequence, [token, width], and attend picture by picture (or window by window),
one call each: such a call is a pass over its part of the sequence, whose keys begin where it begins.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, cast

from torch import Tensor, nn

from ...adapters.towers import Tower
from ...adapters.walker import Layer
from ...core.attention import AttentionCall, FusedAttention
from ...core.packed_part import PackedPart
from ...core.tapping import Tapping
from ...core.taps import Tap
from ...core.tower_rows import as_rows, check_length
from ...errors import HookError, InterventionError
from ...prompts.prompt import Prompt
from ...prompts.tower import tower_prompt
from ..base import TapsOf
from ..interrupts import GUARD, uninterrupted
from ..streams import stream_of
from . import interface
from .module_hooks import hook_on, modules_of


class TowerSession:
    """A context in which the vision tower runs with taps.

    Args:
        tower: the one that runs.
        model_name: what the model is called, for errors.
        taps_of: gives the taps of what the tower runs.
        thread: whose passes; None for every thread's.

    Attributes:
        tapping: what the taps read and did.
        prompt: what the tower ran; None before it did.
        n_passes: how often it ran.
    """

    def __init__(self, tower: Tower, model_name: str, taps_of: TapsOf, thread: int | None) -> None:
        self.tower, self.model_name, self.taps_of, self.thread = tower, model_name, taps_of, thread
        self.layers = self.tower.layers
        self.tapping = Tapping([layer.n_heads for layer in self.layers])
        self.prompt: Prompt | None = None
        self.n_passes = 0
        self._layer_of = {id(layer.attention): number for number, layer in enumerate(self.layers)}
        self._attended: dict[int, int] = {}  # tokens of the pass that each layer has attended from
        self._hooks = ExitStack()

    # ------------------------------------------------------------------ opening and closing

    @uninterrupted
    def __enter__(self) -> TowerSession:
        GUARD.open()
        try:
            for number, parts in enumerate(self.layers):
                if number == 0:  # before what is tapped there
                    begin = parts.module.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True)
                    self._hooks.callback(begin.remove)
                self._install(number)
            self._hooks.callback(interface.stop_listening, self)
            interface.listen(self)
            configs = [cast(Any, layer.attention).config for layer in self.layers if layer.attends_in is None]
            self._hooks.enter_context(interface.switched(configs))
        except BaseException:
            self.__exit__()
            raise
        if GUARD.waiting:
            self.__exit__()
        return self

    @uninterrupted
    def __exit__(self, *exception: object) -> None:
        try:
            self.tapping.settle()
        finally:
            self._hooks.close()
            GUARD.close()

    def owns(self, module: nn.Module) -> bool:
        """Whether the module is one of the tower's attention modules."""
        return id(module) in self._layer_of

    def _is_ours(self) -> bool:
        attention = self.layers[0].attention
        assert attention is not None
        return self.thread in (None, threading.get_ident()) and interface.listener_of(attention) is self

    # ------------------------------------------------------------------ a pass

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """The tower begins to run: bind the taps to what it runs."""
        if kwargs is None or not self._is_ours():  # as in `hook_on`
            return
        x = as_rows(stream_of(module, args, kwargs)[1], 0)
        tower = self.tower
        places = tower.n_class, tower.n_registers, tower.class_behind, tower.knows_places
        prompt = tower_prompt(x.shape[0], x.shape[1], *places)
        if self.n_passes and self.tapping.kept:
            raise HookError(
                "the vision tower ran twice, on pictures and on videos, so it is not known whose activations are "
                "to be read\n  give pictures and videos in prompts of their own"
            )
        taps = self.taps_of(prompt)
        check_taps(self.tower, self.model_name, taps)
        self.prompt, self.n_passes, self._attended = prompt, self.n_passes + 1, {}
        self.tapping.start(prompt.n_rows, taps)
        self.tapping.first = 0

    def check_ran(self) -> None:
        """Refuse a run in which the tower did not do what was asked.

        Raises:
            HookError: it did not run, or a tap was not reached.
        """
        if not self.n_passes:
            raise did_not_run(self.model_name)
        for site, layer in self.tapping.taps:
            if (site, layer) not in self.tapping.fired:
                raise HookError(
                    f"vision.{site} of layer {layer} did not fire, so nothing was read or edited there\n"
                    f"  {type(self.layers[layer].module).__name__} does not go through its module's forward"
                )

    # ------------------------------------------------------------------ hook points

    def _install(self, layer: int) -> None:
        """Hook what goes through a layer, its attention apart."""
        for site in modules_of(self.layers[layer]):
            self._hook(site, layer)

    def _hook(self, site: str, layer: int) -> None:
        parts = self.layers[layer]
        module = modules_of(parts)[site]
        if module is None:
            return

        def tapped(x: Tensor) -> Tensor:
            return self.through(in_shape(x, site, parts, layer), site, layer).reshape(x.shape)

        def acts() -> bool:
            return (site, layer) in self.tapping.taps and self._is_ours()

        # before those that capture features for the model
        self._hooks.callback(hook_on(module, site, tapped, acts, first=True).remove)

    def through(self, rows: Tensor, site: str, layer: int) -> Tensor:
        """Pass an activation [row, token, ...] through the taps of its hook point."""
        if (site, layer) not in self.tapping.taps:
            return rows
        assert self.prompt is not None
        check_length(rows.shape[1], layer, self.prompt.n_tokens)
        return self.tapping.through(rows, site, layer)

    def attend(self, module: nn.Module, call: AttentionCall, own: interface.Own) -> Tensor:
        """Called by the attention function of transformers."""
        out = own()
        layer = self._layer_of[id(module)]
        if self.prompt is None or ("pattern", layer) not in self.tapping.taps:
            return out
        n_rows, n_tokens = self.prompt.n_rows, self.prompt.n_tokens
        length = call.query.shape[2]
        fused = FusedAttention(call, out)
        if call.query.shape[0] != n_rows or call.key.shape[2] != length:
            raise HookError(
                f"layer {layer} of the vision tower attends {tuple(call.query.shape)} to {tuple(call.key.shape)}, "
                f"which are not its {n_rows} rows of {n_tokens} tokens\n"
                "  z and the residual stream can be read and edited"
            )
        first = self._attended.get(layer, 0)
        self._attended[layer] = first + length
        self.tapping.first = first
        try:
            self.tapping.attend(layer, PackedPart(fused, first) if length < n_tokens else fused)
        finally:
            self.tapping.first = 0
        return fused.out


def in_shape(x: Tensor, site: str, parts: Layer, layer: int) -> Tensor:
    """An activation at a hook point as [row, token, width], at z [row, token, head, d_head]."""
    rows = as_rows(x, layer)
    return rows.reshape(*rows.shape[:2], parts.n_heads, parts.d_head) if site == "z" else rows


def check_taps(tower: Tower, model_name: str, taps: Sequence[Tap]) -> None:
    """Refuse what would be nothing, or cannot be done.

    Raises:
        InterventionError: an edit behind what the features come from.
        HookError: a hook point that a layer does not have.
    """
    for tap in taps:
        parts = tower.layers[tap.layer]
        if tap.edits and tap.layer >= tower.n_used:
            raise behind(tap.layer, tower.n_used, model_name)
        if tap.site == "pattern" and parts.attends_in is not None:
            raise HookError(
                f"layer {tap.layer} of the vision tower ({type(parts.module).__name__}) computes attention in its "
                "own forward, out of reach\n  z, attn_out and the residual stream can be read and edited"
            )
        if tap.site == "mlp_out" and parts.mlp is None:
            raise HookError(f"layer {tap.layer} of the vision tower has no mlp_out")


def did_not_run(model_name: str) -> HookError:
    """Of a tower that was to be read or edited."""
    return HookError(
        f"the vision tower of {model_name} did not run, so nothing was read or edited in it\n"
        "  give a prompt with pictures, and their pixels"
    )


def behind(layer: int, n_used: int, model_name: str) -> InterventionError:
    """Of an edit behind what the features come from."""
    return InterventionError(
        f"layer {layer} of the vision tower runs, but {model_name} takes the features that leave layer {n_used - 1}: "
        f"what changes behind it reaches no answer\n  edit layers 0 to {n_used - 1}"
    )
