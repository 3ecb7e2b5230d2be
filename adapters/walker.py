"""Find the decoder layers of any Hugging Face model, and the hooked parts of each.

The layers are the longest module list whose members hold an attention module with a `layer_idx` and an output
projection. It is looked for in what the model itself calls its decoder, and only where that has none in the whole of
it: most vision towers have no `layer_idx`, but some are language models themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from lmm_lens.errors import ModelError

ATTENTION = ("self_attn", "attention", "attn", "self_attention", "cross_attn", "mixer")
OUTPUT_PROJECTION = ("o_proj", "out_proj", "dense", "c_proj", "wo")
NO_PATTERN = ("LinearAttention", "Mamba", "Conv")  # in the names of classes that stand in its place without a pattern
MLP = ("mlp", "feed_forward", "block_sparse_moe", "moe", "ffn")


@dataclass(frozen=True, eq=False)
class Layer:
    """One decoder layer and the modules that its hook points sit on.

    Attributes:
        module: the layer; its input is resid_pre, its output resid_post.
        attention: its attention module, None in layers without heads (linear attention, state space).
        output_projection: W_O; its input is z, the heads' outputs side by side.
        mlp: its feed-forward module, None where none was recognised.
        n_heads: query heads, 0 without attention.
        d_head: size of one head's output.
        is_cross_attention: whether the keys are not the sequence but the vision tower's output.
        attends_in: the module whose forward computes attention by torch's `scaled_dot_product_attention` or `softmax`,
            where it does not go through the attention functions of transformers.
    """

    module: nn.Module
    attention: nn.Module | None
    output_projection: nn.Module | None
    mlp: nn.Module | None
    n_heads: int
    d_head: int
    is_cross_attention: bool = False
    attends_in: nn.Module | None = None

    @classmethod
    def fused(cls, block: nn.Module, output_projection: nn.Module, mlp: nn.Module, config: Any) -> Layer:
        """A layer without an attention module, which computes attention in its own forward.

        Args:
            block: the layer.
            output_projection: W_O.
            mlp: what gives the feed-forward part's output.
            config: says how many heads there are.
        """
        projection: Any = output_projection
        n_heads, width = config.num_attention_heads, int(projection.in_features)
        return cls(block, output_projection, output_projection, mlp, n_heads, width // n_heads, attends_in=block)


def every_module(model: nn.Module) -> list[nn.Module]:
    """`list(model.modules())`, which spends most of its time on names; calls of a lens ask at every turn."""
    found, seen = list[nn.Module](), set[nn.Module]()
    todo: list[nn.Module | None] = [model]
    while todo:
        module = todo.pop()
        if module is not None and module not in seen:
            seen.add(module)
            found.append(module)
            if module._modules:
                todo += reversed(module._modules.values())
    return found


def parents_of(modules: Iterable[nn.Module], layer: nn.Module) -> tuple[nn.Module, ...]:
    """The modules that hold a list with this layer in it."""
    lists = {each for each in modules if isinstance(each, nn.ModuleList) and layer in each}
    return tuple(each for each in modules if not lists.isdisjoint(each._modules.values()))


def find_layers(model: nn.Module) -> tuple[Layer, ...]:
    """The decoder layers in order.

    Raises:
        ModelError: nothing in the model looks like a decoder.
    """
    candidates = _decoder_lists(model)
    if not candidates:
        raise ModelError(
            f"no decoder layers were found in {type(model).__name__}\n"
            "  expected a module list whose members hold attention with a layer_idx and an output projection\n"
            "  write an adapter that overrides `find_layers` to name them"
        )
    return tuple(_parts(layer) for layer in max(candidates, key=len))


def _decoder_lists(model: nn.Module) -> list[nn.ModuleList]:
    """The module lists that may be decoder layers."""
    named = getattr(model, "get_decoder", None)
    decoder = named() if callable(named) else None
    for part in (decoder, model):
        modules = part.modules() if isinstance(part, nn.Module) else ()
        lists = [module for module in modules if isinstance(module, nn.ModuleList)]
        found = [layers for layers in lists if any(_attention(layer) is not None for layer in layers)]
        if found:
            return found
    return []


def first_of(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """The first of a module's parts by these names, if it has one."""
    found = [getattr(module, name) for name in names if isinstance(getattr(module, name, None), nn.Module)]
    return found[0] if found else None


def _attention(layer: nn.Module) -> nn.Module | None:
    attention = first_of(layer, ATTENTION)
    if attention is None or not hasattr(attention, "layer_idx"):
        return None
    if any(name in type(attention).__name__ for name in NO_PATTERN):
        return None
    return attention if first_of(attention, OUTPUT_PROJECTION) is not None else None


def _parts(layer: nn.Module) -> Layer:
    attention, mlp = _attention(layer), first_of(layer, MLP)
    if attention is None:
        return Layer(layer, None, None, mlp, 0, 0)
    projection: Any = first_of(attention, OUTPUT_PROJECTION)
    width: int = getattr(projection, "in_features", None) or projection.weight.shape[-1]
    d_head: Any = getattr(attention, "head_dim", None)
    if d_head is None:
        config = getattr(attention, "config", None)
        n_heads: Any = getattr(attention, "num_heads", None) or getattr(config, "num_attention_heads", None)
        if n_heads is None:
            raise ModelError(f"the number of heads of {type(attention).__name__} is not known; write an adapter")
        d_head = width // n_heads
    cross = attention is getattr(layer, "cross_attn", None)
    return Layer(layer, attention, projection, mlp, width // d_head, d_head, cross)
