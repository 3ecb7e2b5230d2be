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
        out = func(*args, **(kwargs or {}))
        if not (func is KERNEL or func in SOFTMAX) or not self.session.is_acting():
            return out
        parts = self.session.layers[self.layer]
        if func is not KERNEL and (out.ndim != 4 or out.shape[1] != parts.n_heads):  # of a gate, or a router
            return out
        if ("pattern", self.layer) in self.session.tapping.fired:
            raise HookError(
                f"layer {self.layer} ({type(parts.module).__name__}) attends twice in its forward, and which is its "
                "pattern is not known\n  z, attn_out and the residual stream can be read and edited"
            )
        if func is KERNEL:
            assert parts.attention is not None
            call = _call(*args, **(kwargs or {}))
            return self.session.attend(parts.attention, call, out.transpose(1, 2)).transpose(1, 2)
        whole = WholePattern(out, args[0] if args else (kwargs or {})["input"])
        self.session.attend_whole(self.layer, whole)
        return whole.pattern


def _call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionCall:
    """What the kernel was given."""
    mask = None if attn_mask is None else attn_mask[(None,) * (4 - attn_mask.ndim)]
    return AttentionCall(query, key, value, mask, query.shape[-1] ** -0.5 if scale is None else scale, is_causal)


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
