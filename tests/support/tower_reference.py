"""Attention of vision towers from their own weights, in straight sums: slow, and sharing nothing with the library.

What the modules are given is kept by torch's hooks: the stream as attention reads it, angles of rotary positions,
masks, and where packed pictures and windows begin. Everything behind that is written out here, token by token where a
tower has a rule of its own.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

QUERY, KEY, VALUE = (f"{name}_proj" for name in "qkv")


@dataclass
class Attended:
    """What one attention module did.

    Attributes:
        pattern: [row, head, query, key].
        z: [row, query, head, d_head].
    """

    pattern: Tensor
    z: Tensor


def attended(model: nn.Module, inputs: dict[str, Any], modules: list[nn.Module], n_heads: int) -> list[Attended]:
    """What the tower's attention modules do in one forward, in order."""
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args, kwargs: given.append((args, kwargs)), with_kwargs=True)
        for module in modules
    ]
    try:
        with torch.no_grad():
            model(**inputs)
            return [of_module(module, n_heads, *each) for module, each in zip(modules, given, strict=True)]
    finally:
        for hook in hooks:
            hook.remove()


def of_module(module: Any, n_heads: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
    x = args[0] if args else kwargs["hidden_states"]
    x = x if x.ndim == 3 else x[None]  # packed: one row
    query, key, value = projected(module, x, n_heads)
    if kwargs.get("position_embeddings") is not None:
        cos, sin = kwargs["position_embeddings"]
        # Qwen's and its kin's turn in single precision whatever the model's
        whole = torch.float64 if type(module).__name__ == "PixtralAttention" else torch.float32
        query, key = (turned(each, cos, sin, whole) for each in (query, key))
    if (kwargs.get("freqs_ci") if len(args) < 2 else None) is not None:
        query, key = (turned_in_pairs(each, kwargs["freqs_ci"]) for each in (query, key))
    logits = torch.einsum("rqhd,rkhd->rhqk", query, key) / query.shape[-1] ** 0.5
    bounds = kwargs.get("cu_seqlens")
    if bounds is not None:
        logits = logits.masked_fill(~within(bounds.tolist(), x.shape[1]), -torch.inf)
    mask = kwargs.get("attention_mask")
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    weights = torch.exp(logits - logits.amax(-1, keepdim=True))
    pattern = weights / weights.sum(-1, keepdim=True)
    return Attended(pattern, torch.einsum("rhqk,rkhd->rqhd", pattern, value))


def projected(module: Any, x: Tensor, n_heads: int) -> list[Tensor]:
    """Queries, keys and values, [row, token, head, d_head]."""
    if hasattr(module, "qkv"):
        joint = module.qkv.weight.unflatten(0, (3, n_heads, -1))  # the three behind one another
        bias = torch.zeros(joint.shape[:3]).to(joint)
        if module.qkv.bias is not None:
            bias = module.qkv.bias.unflatten(0, (3, n_heads, -1))
        return [torch.einsum("rtm,hdm->rthd", x, joint[i]) + bias[i] for i in range(3)]
    found = []
    for name in (QUERY, KEY, VALUE):
        weight, bias = getattr(module, name).weight, getattr(module, name).bias
        out = torch.einsum("rtm,om->rto", x, weight) + (0 if bias is None else bias)
        norm = getattr(module, name.replace("proj", "norm"), None)
        if norm is not None and not isinstance(norm, nn.Identity):  # over all heads, before they part
            out = out.float() * torch.rsqrt(out.float().square().mean(-1, keepdim=True) + norm.variance_epsilon)
            out = norm.weight * out.to(x.dtype)
        found.append(out.unflatten(-1, (n_heads, -1)))
    return found


def turned(x: Tensor, cos: Tensor, sin: Tensor, whole: torch.dtype) -> Tensor:
    """Each pair (i, i + d/2) of numbers turned by its token's angle."""
    half = x.shape[-1] // 2
    cos, sin = (each.reshape(-1, each.shape[-1]).to(whole) for each in (cos, sin))
    found, y = torch.empty_like(x), x.to(whole)
    for token in range(x.shape[1]):
        for i in range(half):
            one, other = y[:, token, :, i], y[:, token, :, i + half]
            found[:, token, :, i] = (one * cos[token, i] - other * sin[token, i]).to(x.dtype)
            found[:, token, :, i + half] = (other * cos[token, i + half] + one * sin[token, i + half]).to(x.dtype)
    return found


def turned_in_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Each pair (2 i, 2 i + 1) turned by its token's angle, in single precision, as Llama 4 does."""
    # all at once, since complex products round in another way one by one
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * angles.reshape(1, x.shape[1], 1, -1)
    return torch.view_as_real(pairs).flatten(-2).to(x.dtype)


def within(bounds: list[int], n: int) -> Tensor:
    """Which tokens are in one part of a packed sequence, [query, key]."""
    part = [sum(token >= bound for bound in bounds) for token in range(n)]
    return torch.tensor([[mine == other for other in part] for mine in part])
