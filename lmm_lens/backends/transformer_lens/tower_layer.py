"""One layer of a bridge's vision tower: what goes through it is handed to taps, then to TransformerLens's hook points.

Patterns are computed where their hook point is hooked, and nowhere else; the layer goes on with what the hooks leave.
Towers that pack pictures attend part by part, in calls of their own: their pattern is put together, hooked once as a
whole, [1, head, token, token], and what the heads read from it replaces what enters the output projection.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from ...adapters.walker import Layer
from ...core.tower_rows import as_rows
from ...errors import HookError
from ..native import interface
from ..native.module_hooks import hook_on, modules_of
from ..native.tower import TowerSession, behind, in_shape
from ..streams import stream_of
from .tower_pattern import HookedPattern


class TowerLayer:
    """A layer of the tower and its hook points.

    Args:
        number: which.
        parts: its modules.
        points: the hook points it has.
        n_used: how many layers of the tower the model's features come through.
        model_name: what the model is called, for errors.
    """

    def __init__(
        self, number: int, parts: Layer, points: Mapping[str, HookPoint], n_used: int, model_name: str
    ) -> None:
        self.number, self.parts, self.points = number, parts, dict(points)
        self.n_used, self.model_name = n_used, model_name
        self._patterns: dict[int, HookedPattern] = {}  # of the passes under way, by thread

    def install(self) -> None:
        """Put torch's hooks on the layer's modules, to stay. A copy of the model has copies of them."""
        parts = self.parts
        for site, module in modules_of(parts).items():
            if module is not None:  # before those that capture features for the model
                hook_on(module, site, partial(self.passing, site), partial(self.acts, site), first=True)
        if "pattern" in self.points:
            assert parts.attention is not None
            parts.attention.register_forward_pre_hook(self.begin_attention, with_kwargs=True)
            parts.attention.register_forward_hook(self.end_attention, prepend=True, always_call=True)

    # ------------------------------------------------------------------ what goes through

    def acts(self, site: str) -> bool:
        """Whether somebody reads or edits there now."""
        session = self.session()
        tapped = session is not None and (site, self.number) in session.tapping.taps
        return tapped or is_hooked(self.points[site]) or (site == "z" and self._pattern() is not None)

    def passing(self, site: str, x: Tensor) -> Tensor:
        """An activation as taps and hooks leave it."""
        pattern = self._pattern() if site == "z" else None
        if pattern is not None and pattern.is_packed:
            x = pattern.read().reshape(x.shape)
        rows, session = in_shape(x, site, self.parts, self.number), self.session()
        if session is not None:
            rows = session.through(rows, site, self.number)
        return self.hooked(site, rows).reshape(x.shape)

    def hooked(self, site: str, x: Tensor) -> Tensor:
        """An activation as the hooks of its point leave it.

        Raises:
            InterventionError: they change it behind what the features come from.
            HookError: what they leave has another shape.
        """
        point = self.points[site]
        if not is_hooked(point):
            return x
        found: Tensor = point(x)
        if found.shape != x.shape:
            raise HookError(
                f"a hook of {point.name} gave {tuple(found.shape)} in the place of {tuple(x.shape)}\n"
                "  give a tensor of the same shape, or nothing"
            )
        if self.number >= self.n_used and found is not x and not torch.equal(found, x):
            raise behind(self.number, self.n_used, self.model_name)
        return found

    def session(self) -> TowerSession | None:
        """The open session of this thread, if there is one."""
        assert self.parts.attention is not None
        listener: Any = interface.listener_of(self.parts.attention)
        listener = listener.session if isinstance(listener, HookedPattern) else listener
        return listener if isinstance(listener, TowerSession) else None

    # ------------------------------------------------------------------ patterns

    def _pattern(self) -> HookedPattern | None:
        return self._patterns.get(threading.get_ident())

    def begin_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """Compute the pattern in the attention that begins, where its point is hooked."""
        if kwargs is None or not is_hooked(self.points["pattern"]):
            return
        n_tokens = as_rows(stream_of(module, args, kwargs)[1], self.number).shape[1]
        hooked = partial(self.hooked, "pattern")
        pattern = HookedPattern(self.number, module, n_tokens, self.session(), hooked)
        pattern.open()
        self._patterns[threading.get_ident()] = pattern

    def end_attention(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Leave it, also by an error."""
        pattern = self._patterns.pop(threading.get_ident(), None)
        if pattern is not None:
            pattern.close()


def is_hooked(point: HookPoint) -> bool:
    """Whether somebody has put a hook there, by whichever way."""
    return bool(point._forward_hooks or point._forward_pre_hooks or point._backward_hooks)
