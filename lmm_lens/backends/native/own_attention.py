"""The attention tap of layers that compute attention in their own forward, as remote code does.

transformers' own classes fetch an attention function by name, and a tap takes its place. Code from before that calls
torch: its fused kernel, or a softmax between two products. While such a layer runs, these calls are overheard. Beside
the kernel a pattern is read and edited as elsewhere; a softmax gives the pattern itself, and what comes back from the
taps is what the layer goes on with.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...core.attention import AttentionCall
from ...core.whole_pattern import WholePattern
from ...errors import HookError

if TYPE_CHECKING:
    from .interface import Own
    from .session import NativeSession

KERNEL = torch.nn.functional.scaled_dot_product_attention
SOFTMAX = (torch.nn.functional.softmax, torch.softmax, Tensor.softmax)


class OwnAttention(TorchFunctionMode):
    """Within it, the attention of one layer goes through the taps of a session.

    Args:
        session: the session.
        layer: which layer.
    """

    def __init__(self, session: NativeSession, layer: int) -> None:
        super().__init__()
        self.session, self.layer = session, layer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not (func is KERNEL or func in SOFTMAX) or not self.session.is_acting():
            return func(*args, **kwargs)
        parts = self.session.layers[self.layer]
        if func is KERNEL:
            self._check_first()
            assert parts.attention is not None
            return self.session.attend(parts.attention, *_overheard(*args, **kwargs)).transpose(1, 2)
        out = func(*args, **kwargs)
        if out.ndim != 4 or out.shape[1] != parts.n_heads:  # of a gate, or a router
            return out
        self._check_first()
        whole = WholePattern(out, args[0] if args else kwargs["input"])
        self.session.attend_whole(self.layer, whole)
        return whole.pattern

    def _check_first(self) -> None:
        if ("pattern", self.layer) in self.session.tapping.fired:
            name = type(self.session.layers[self.layer].module).__name__
            raise HookError(
                f"layer {self.layer} ({name}) attends twice in its forward, and which is its pattern is not known\n"
                "  z, attn_out and the residual stream can be read and edited"
            )


def _overheard(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[AttentionCall, Own]:
    """What the kernel was given, and the kernel on it."""

    def own(mask: Tensor | None = attn_mask, /) -> Tensor:
        causal = is_causal and mask is attn_mask  # another mask says all of what is seen
        options: dict[str, Any] = {
            "dropout_p": dropout_p,
            "is_causal": causal,
            "scale": scale,
            "enable_gqa": enable_gqa,
        }
        return KERNEL(query, key, value, mask, **options).transpose(1, 2)

    mask = None if attn_mask is None else attn_mask[(None,) * (4 - attn_mask.ndim)]
    scaling = query.shape[-1] ** -0.5 if scale is None else scale
    return AttentionCall(query, key, value, mask, scaling, is_causal), own


@contextmanager
def overheard(module: nn.Module, session: NativeSession, layer: int) -> Iterator[None]:
    """Inside, the attention that a module computes goes through the taps of a session, in whichever thread it runs."""
    running: dict[int, ExitStack] = {}

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        running[threading.get_ident()] = stack = ExitStack()
        stack.enter_context(OwnAttention(session, layer))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        stack = running.pop(threading.get_ident(), None)
        if stack is not None:
            stack.close()

    hooks = module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
