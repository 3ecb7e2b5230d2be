"""Where an activation goes into a module or comes out of it: torch's hooks, in the shape that taps need.

Objects and no functions: a copy of the module has copies of them, which call copies of what they hand activations to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...adapters import Layer
from ...core.flat import in_rows
from ..streams import stream_of

ENTERING = ("resid_pre", "z")


def modules_of(parts: Layer) -> dict[str, nn.Module | None]:
    """By hook point, the module of a layer that is entered or left there; None where it has none. Not of patterns."""
    return {
        "resid_pre": parts.module,
        "z": parts.output_projection,
        "attn_out": parts.attention,
        "mlp_out": parts.mlp,
        "resid_post": parts.module,
    }


@dataclass(frozen=True, eq=False)
class _Before:
    """Hands over what enters a module."""

    tapped: Callable[[Tensor], Tensor]
    acts: Callable[[], bool]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        # without kwargs torch calls another thread's pass while this hook is being added or taken away
        if kwargs is None or not self.acts():
            return None
        if args and isinstance(args[0], Tensor):
            return (self.tapped(args[0]), *args[1:]), kwargs
        name, x = stream_of(module, args, kwargs)
        return args, {**kwargs, name: self.tapped(x)}


@dataclass(frozen=True, eq=False)
class _After:
    """Hands over what leaves a module."""

    tapped: Callable[[Tensor], Tensor]
    acts: Callable[[], bool]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not self.acts():
            return None
        x = output[0] if isinstance(output, tuple) else output
        found = self.tapped(in_rows(x, args[0] if args else None)).reshape(x.shape)
        return (found, *output[1:]) if isinstance(output, tuple) else found


def hook_on(
    module: nn.Module, site: str, tapped: Callable[[Tensor], Tensor], acts: Callable[[], bool], first: bool = False
) -> RemovableHandle:
    """Hand what enters a module, or leaves it, to a function, and go on with what that gives.

    Args:
        module: the module of the hook point.
        site: the hook point, which says whether the module is entered or left.
        tapped: the function.
        acts: whether it is to be called now.
        first: before hooks of others on what leaves the module, as those that capture features for the model.

    In a pass HookError is raised where the module is entered otherwise than by a tensor.
    """
    if site in ENTERING:
        return module.register_forward_pre_hook(_Before(tapped, acts), with_kwargs=True)
    return module.register_forward_hook(_After(tapped, acts), prepend=first)
