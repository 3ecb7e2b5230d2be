"""The attention tap of layers that call torch's fused kernel themselves, and not through transformers' functions.

While such a layer runs, its calls of `torch.nn.functional.scaled_dot_product_attention` are overheard: what the kernel
was given and what it returned is handed on, and what comes back is what the layer gets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...core.attention import AttentionCall

Attend = Callable[[AttentionCall, Tensor], Tensor]
"""Given a call and its output [batch, query, head, d_head], gives the output, edited or as it is."""


class Overheard(TorchFunctionMode):
    """Within it, attention goes through `attend`."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return out
        return self.attend(_call(*args, **(kwargs or {})), out.transpose(1, 2)).transpose(1, 2)


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
    scaling = query.shape[-1] ** -0.5 if scale is None else scale
    return AttentionCall(query, key, value, mask, scaling, is_causal)


@contextmanager
def overheard(module: nn.Module, attend: Attend) -> Iterator[None]:
    """Inside, a module's attention goes through `attend` whenever its forward runs, in whichever thread."""
    running: dict[int, Overheard] = {}

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        mode = running[threading.get_ident()] = Overheard(attend)
        mode.__enter__()  # type: ignore[no-untyped-call]

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        mode = running.pop(threading.get_ident(), None)
        if mode is not None:
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    hooks = module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
