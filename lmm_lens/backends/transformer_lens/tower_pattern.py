"""The attention of one layer of the vision tower in one pass, with its whole pattern, for hooks that want to see it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...core.attention import AttentionCall
from ...core.envoys import all_rows
from ...core.packed_part import of_another
from ...core.rows import Chunk
from ...core.whole_pattern import WholePattern
from ...errors import HookError
from ..native import interface
from ..native.tower import TowerSession
from .architectures.hooked_attention import eager_pattern, for_each_head


class HookedPattern:
    """A listener to the attention of one layer, which computes it from its pattern.

    Args:
        layer: which.
        module: its attention.
        n_tokens: of a row.
        session: whose taps see the pattern before the hooks do.
        hooked: the hooks.

    Attributes:
        is_packed: whether the layer attends part by part.
    """

    def __init__(
        self,
        layer: int,
        module: nn.Module,
        n_tokens: int,
        session: TowerSession | None,
        hooked: Callable[[Tensor], Tensor],
    ) -> None:
        self.layer, self.module, self.n_tokens = layer, module, n_tokens
        self.session, self.hooked = session, hooked
        self.thread: int | None = threading.get_ident()
        self._parts: list[AttentionCall] = []
        self._open = ExitStack()

    @property
    def is_packed(self) -> bool:
        return bool(self._parts)

    def open(self) -> None:
        """Begin to listen."""
        config: Any = self.module.config
        self._open.callback(interface.stop_listening, self)
        interface.listen(self)
        self._open.enter_context(interface.switched([config]))

    def close(self) -> None:
        """Listen no more."""
        self._open.close()

    def owns(self, module: nn.Module) -> bool:
        """Whether the module is the attention."""
        return module is self.module

    def attend(self, module: nn.Module, call: AttentionCall, own: object) -> Float[Tensor, "row token head d_head"]:
        """The attention as its pattern says; of a part of a sequence as it would be by itself."""
        length = call.query.shape[2]
        if length < self.n_tokens and call.query.shape[0] == 1:
            self._parts.append(call)
            return read_from(call, pattern_of(call))
        if length != self.n_tokens or call.key.shape[2] != length:
            raise HookError(
                f"layer {self.layer} of the vision tower attends {tuple(call.query.shape)} to "
                f"{tuple(call.key.shape)}, which are no rows of {self.n_tokens} tokens\n"
                "  hook z and the residual stream"
            )
        return self._read([call])[0]

    def read(self) -> Float[Tensor, "row token head d_head"]:
        """What the heads of a packed sequence read."""
        return torch.cat(self._read(self._parts), dim=1)

    def _read(self, calls: list[AttentionCall]) -> list[Tensor]:
        """What the heads of some parts read from the pattern that taps and hooks leave, part by part.

        Raises:
            InterventionError: they give attention to tokens of another part.
        """
        pattern = _laid_out([pattern_of(call) for call in calls], 0.0)
        session = self.session
        if session is not None and ("pattern", self.layer) in session.tapping.taps:
            scores = [call.scores(_every_row(call.query)) for call in calls]
            values = torch.cat([call.value for call in calls], dim=2).transpose(1, 2)
            whole = WholePattern(pattern, _laid_out(scores, torch.finfo(scores[0].dtype).min), values)
            session.tapping.attend(self.layer, whole)
            pattern = whole.pattern
        pattern = self.hooked(pattern)
        found, beside, first = [], pattern, 0
        for call in calls:
            own = slice(first, first + call.query.shape[2])
            if len(calls) > 1:
                beside = beside.clone() if beside is pattern else beside
                beside[:, :, own, own] = 0
            found.append(read_from(call, pattern[:, :, own, own]))
            first = own.stop
        if beside is not pattern and bool((beside != 0).any()):
            raise of_another()
        return found


def pattern_of(call: AttentionCall) -> Float[Tensor, "row head token key"]:
    """The pattern of a call, as the model's own eager attention computes it."""
    given = call.query, call.key, call.mask, call.scaling, call.softcap, call.extra_logits, call.position_bias
    return eager_pattern(*given)


def read_from(call: AttentionCall, pattern: Tensor) -> Float[Tensor, "row token head d_head"]:
    """What the heads of a call read from its values by a pattern."""
    return (pattern @ for_each_head(call.value, call.query)).transpose(1, 2)


def _every_row(query: Tensor) -> Chunk:
    return all_rows(query.shape[0], query.shape[2], query.device)


def _laid_out(parts: list[Tensor], fill: float) -> Float[Tensor, "row head token token"]:
    """Parts of a pattern along the diagonal of the whole."""
    if len(parts) == 1:
        return parts[0]
    n = sum(part.shape[-1] for part in parts)
    whole = parts[0].new_full((*parts[0].shape[:2], n, n), fill)
    first = 0
    for part in parts:
        own = slice(first, first + part.shape[-1])
        whole[:, :, own, own] = part
        first = own.stop
    return whole
