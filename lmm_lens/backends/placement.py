"""Where a model's weights lie: on one device, on several, or away between calls, as accelerate dispatches them.

`device_map="auto"`, `cpu_offload` and `disk_offload` put a hook on each module, which moves its inputs to where it is
computed and, where its weights are kept elsewhere, fetches them for each call; in between they are on "meta".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.walker import every_module
from ..core.attention import AttentionCall
from ..errors import HookError, ModelError


def device_of(module: nn.Module, model: nn.Module) -> torch.device:
    """Where a module with weights computes, in a model that may be dispatched."""
    device = next(module.parameters()).device
    if device.type != "meta":
        return device
    found = (getattr(hook, "execution_device", None) for part in (module, model) for hook in accelerate_hooks(part))
    return next((torch.device(where) for where in found if where is not None), device)


def has_weights(model: nn.Module) -> bool:
    """Whether there are any, here or kept elsewhere by accelerate."""
    on_meta = all(parameter.device.type == "meta" for parameter in model.parameters())
    return not on_meta or any(accelerate_hooks(module) for module in every_module(model))


def fetched(model: nn.Module, name: str) -> Tensor:
    """A weight that accelerate keeps elsewhere, by its name in the state dict; ModelError where nobody keeps it."""
    path = name.split(".")
    for cut in reversed(range(len(path))):  # a hook may also keep the weights of the modules below its own
        for hook in accelerate_hooks(model.get_submodule(".".join(path[:cut]))):
            try:
                weight: Tensor = hook.weights_map[".".join(path[cut:])]
                return weight
            except (AttributeError, KeyError, TypeError):  # no such map, or not in it
                continue
    raise ModelError(
        f"the weights of {type(model).__name__} are on the meta device: {name} has no values\n"
        "  load them, with from_pretrained(..., device_map=...) where they do not fit on one device"
    )


@dataclass(frozen=True)
class Shards:
    """The processes that share each layer of a tensor-parallel model: each holds some of its heads.

    Every process runs the same program, so each sees the whole activation, edits it alike, and goes on with its part.

    Attributes:
        group: of torch.distributed; None where the model is not shared.
    """

    group: Any

    @classmethod
    def of(cls, model: nn.Module) -> Shards:
        """As transformers has laid the model out."""
        mesh: Any = getattr(model, "_device_mesh", None)
        shared = mesh is not None and "tp" in (mesh.mesh_dim_names or ()) and mesh["tp"].size() > 1
        return cls(mesh["tp"].get_group() if shared else None)

    def whole(self, x: Tensor, dim: int, size: int) -> Tensor:
        """The activation of all processes, whose `dim` has `size` entries in all.

        Raises:
            HookError: a gradient is asked for, or the processes' parts do not make up the whole.
        """
        if x.shape[dim] == size:
            return x
        n = torch.distributed.get_world_size(self.group) if self.group is not None else 1
        if x.shape[dim] * n != size:
            raise HookError(
                f"an activation has {x.shape[dim]} of {size} entries in each of {n} processes, so it cannot be joined"
            )
        if torch.is_grad_enabled() and x.requires_grad:
            raise HookError(
                "no gradients pass through heads that a tensor-parallel model divides among processes\n"
                "  load the model in one process, with device_map='auto'"
            )
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(n)]
        torch.distributed.all_gather(parts, x.contiguous(), self.group)
        return torch.cat(parts, dim)

    def call(self, call: AttentionCall, n_heads: int) -> AttentionCall:
        """A layer's attention with the heads of all processes."""
        own = call.query.shape[1]
        query, key, value = (self.whole(x, 1, x.shape[1] * n_heads // own) for x in (call.query, call.key, call.value))
        extra, bias = call.extra_logits, call.position_bias
        if extra is not None and extra.shape[0] == own:
            extra = self.whole(extra, 0, n_heads)
        if bias is not None and bias.shape[1] == own:
            bias = self.whole(bias, 1, n_heads)
        return AttentionCall(query, key, value, call.mask, call.scaling, call.is_causal, call.softcap, extra, bias)

    def own(self, x: Tensor, dim: int, size: int) -> Tensor:
        """This process's part of a whole activation, `size` entries of `dim`."""
        if x.shape[dim] == size:
            return x
        return x.narrow(dim, torch.distributed.get_rank(self.group) * size, size)


def accelerate_hooks(module: nn.Module) -> list[Any]:
    """What accelerate put on a module."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))  # several stand in a SequentialHook
