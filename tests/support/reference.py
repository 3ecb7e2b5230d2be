"""A slow, independent implementation of reads and edits, to compare with.

It shares nothing with the library: a copy of the model runs with an attention function of our own that forms the
full pattern of every layer, and plain hooks record or change the rest. Whatever is asked for by rows is cut out of
the full tensors by the tests.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "reference_eager"
Edit = Callable[[int, Tensor, int], Tensor]  # (layer, activation, absolute position of its first row) -> activation


@dataclass
class Pass:
    """Everything one forward pass computed: site -> layer -> tensor with all rows."""

    first: int
    sites: dict[str, dict[int, Tensor]] = field(default_factory=dict)


class Reference:
    """A copy of a model that records everything, and lets itself be edited.

    Attributes:
        model: the copy.
        layers: its decoder layers.
        passes: what each forward pass computed since the last `start`.
        edits: site -> function that changes the activation of a layer; only "pattern" and "z".
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval()
        nested = "text_config" in self.model.config.sub_configs
        self.model.set_attn_implementation({"text_config": NAME} if nested else NAME)
        self.layers = stack_of(self.model)
        self.passes: list[Pass] = []
        self.edits: dict[str, Edit] = {}
        self.seen = 0
        for index, layer in enumerate(self.layers):
            self._hook(index, layer)

    def _hook(self, index: int, layer: nn.Module) -> None:
        def entering(module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            if index == 0:
                self.passes.append(Pass(self.seen))
                self.seen += x.shape[1]
            self._record("resid_pre", index, x)

        layer.register_forward_pre_hook(entering, with_kwargs=True)
        layer.register_forward_hook(lambda m, a, out: self._record("resid_post", index, first_of(out)))
        feed_forward = part_of(layer, "mlp", "feed_forward", "fc2", "mixer")
        feed_forward.register_forward_hook(lambda m, a, out: self._record("mlp_out", index, first_of(out)))
        attention = attention_of(layer)
        if attention is None:
            return
        attention.reference = (self, index)

        def projecting(module: nn.Module, args: tuple) -> Any:
            z = args[0].unflatten(-1, (attention.config.num_attention_heads, -1))
            z = self._edited("z", index, z)
            self._record("z", index, z)
            return (z.flatten(-2),)

        part_of(attention, "o_proj", "out_proj").register_forward_pre_hook(projecting)
        attention.register_forward_hook(lambda m, a, out: self._record("attn_out", index, first_of(out)))

    def _record(self, site: str, layer: int, x: Tensor) -> None:
        self.passes[-1].sites.setdefault(site, {})[layer] = x.detach().clone()

    def _edited(self, site: str, layer: int, x: Tensor) -> Tensor:
        edit = self.edits.get(site)
        return x if edit is None else edit(layer, x.clone(), self.passes[-1].first)

    def pattern(self, layer: int, pattern: Tensor) -> Tensor:
        pattern = self._edited("pattern", layer, pattern)
        self._record("pattern", layer, pattern)
        return pattern

    @contextmanager
    def editing(self, **edits: Edit):
        """Change "pattern" or "z" inside the block."""
        self.edits = edits
        try:
            yield self
        finally:
            self.edits = {}

    def run(self, inputs: Mapping[str, Any]) -> Tensor:
        """Logits of all positions; `passes[0]` then holds the rest."""
        self.passes, self.seen = [], 0
        with torch.no_grad():
            return self.model(**inputs, use_cache=False).logits

    def generate(self, inputs: Mapping[str, Any], new: int, **options: Any) -> tuple[Tensor, Tensor]:
        """Greedy tokens [batch, new] and the logits of each step [batch, new, vocab]."""
        self.passes, self.seen = [], 0
        settings = {"max_new_tokens": new, "do_sample": False, "return_dict_in_generate": True, **options}
        with torch.no_grad():
            out = self.model.generate(**inputs, output_logits=True, **settings)
        return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)

    def read(self, site: str, layer: int) -> Tensor:
        """A site of the only pass of the last run."""
        return self.passes[0].sites[site][layer]


def first_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def stack_of(model: nn.Module) -> list[nn.Module]:
    """The decoder's layers."""
    decoder = model.get_decoder()
    while not hasattr(decoder, "layers"):
        decoder = getattr(decoder, "model", None) or decoder.decoder
    return list(decoder.layers)


def part_of(module: nn.Module, *names: str) -> nn.Module:
    """The first of these parts that there is."""
    return next(getattr(module, name) for name in names if hasattr(module, name))


def attention_of(layer: nn.Module) -> nn.Module | None:
    """The layer's attention, None in linear-attention layers."""
    found = getattr(layer, "self_attn", None) or getattr(layer, "cross_attn", None)
    if found is None and hasattr(getattr(layer, "mixer", None), "q_proj"):
        found = layer.mixer
    return None if "LinearAttention" in type(found).__name__ else found


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    sinks: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    """Attention as in the textbook: the whole pattern, in the precision of the queries."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    logits = torch.einsum("bhqd,bhkd->bhqk", query, key) * (scaling or query.shape[-1] ** -0.5)
    if position_bias is not None:
        logits = logits + position_bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if attention_mask is not None:
        logits = logits + attention_mask[..., : key.shape[2]]
    if sinks is not None:  # a logit of each query without a value
        logits = torch.cat([logits, sinks], -1)
    pattern = torch.exp(logits - logits.amax(-1, keepdim=True))
    pattern = (pattern / pattern.sum(-1, keepdim=True))[..., : key.shape[2]]
    reference, layer = module.reference
    pattern = reference.pattern(layer, pattern)
    return torch.einsum("bhqk,bhkd->bqhd", pattern, value), pattern


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, eager_mask)


# ---------------------------------------------------------------------- known answers


def without_heads(model: nn.Module, heads: Iterable[tuple[int, int]]) -> nn.Module:
    """A copy of the model in which the heads' slices of the output projection are deleted."""
    copied = copy.deepcopy(model).eval()
    for layer, head in heads:
        attention = attention_of(copied.get_decoder().layers[layer])
        size = attention.head_dim
        with torch.no_grad():
            attention.o_proj.weight[:, head * size : (head + 1) * size] = 0
    return copied


def zeroing(heads: Iterable[tuple[int, int]], rows: Callable[[int, int], bool]) -> Edit:
    """An edit of z, one row at a time: the heads are zero in the rows (batch row, position) that `rows` accepts."""
    chosen = set(heads)

    def edit(layer: int, z: Tensor, first: int) -> Tensor:
        for row in range(z.shape[0]):
            for index in range(z.shape[1]):
                for head in range(z.shape[2]):
                    if (layer, head) in chosen and rows(row, first + index):
                        z[row, index, head] = 0
        return z

    return edit


def heads_of(model: nn.Module, per_layer: int = 1) -> list[tuple[int, int]]:
    """Some heads, different ones in each layer that has heads."""
    layers = enumerate(model.get_decoder().layers)
    return [
        (index, (index + 2 * k) % 4)
        for index, layer in layers
        if attention_of(layer) is not None
        for k in range(per_layer)
    ]
