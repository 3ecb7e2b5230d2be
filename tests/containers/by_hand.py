"""The six operations on a model as its user holds it, with hooks by hand and an attention function of our own.

Nothing is copied, since not everything that people hold can be: the attention function is set and taken back.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "containers_eager"
Heads = list[tuple[int, int]]
Edit = Callable[[int, Tensor], Tensor]


class ByHand:
    """A Hugging Face model with bare hands.

    Args:
        model: the one that runs, out of whatever it is held in.
        inputs: of one prompt.
        image_token: the id of visual tokens.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Tensor], image_token: int) -> None:
        self.model, self.inputs, self.image_token = model, dict(inputs), image_token
        self.layers = list(model.model.language_model.layers)
        self.residuals: dict[int, Tensor] = {}
        self.patterns: dict[int, Tensor] = {}

    @property
    def visual(self) -> Tensor:
        """Bool[position]."""
        return self.inputs["input_ids"][0] == self.image_token

    def logits(self, ids: Tensor | None = None, inputs: Mapping[str, Tensor] | None = None) -> Tensor:
        """Of the last position; `ids` are tokens made so far."""
        given = dict(self.inputs if inputs is None else inputs)
        if ids is not None:
            given["input_ids"] = torch.cat([given["input_ids"], ids], 1)
            given["attention_mask"] = torch.ones_like(given["input_ids"])
        with torch.no_grad():
            return self.model(**given, use_cache=False).logits[0, -1].float()

    # ------------------------------------------------------------------ z

    def d_head(self, layer: int) -> int:
        return int(self.layers[layer].self_attn.head_dim)

    @contextmanager
    def editing_z(self, heads: Heads, edit: Callable[[int, int, Tensor], Tensor]) -> Iterator[None]:
        """Inside, each head's columns [batch, row, d_head] of what the output projection is given are edited."""
        with ExitStack() as hooks:
            for layer in {layer for layer, _ in heads}:

                def before(module: Any, args: tuple[Tensor, ...], layer: int = layer) -> tuple[Tensor]:
                    z, size = args[0].clone(), self.d_head(layer)
                    for _, head in (each for each in heads if each[0] == layer):
                        columns = slice(head * size, head * size + size)
                        z[..., columns] = edit(layer, head, z[..., columns])
                    return (z,)

                hooks.callback(self.layers[layer].self_attn.o_proj.register_forward_pre_hook(before).remove)
            yield

    def ablated(self, heads: Heads) -> Tensor:
        with self.editing_z(heads, lambda layer, head, z: z * 0):
            return self.logits()

    def patched(self, heads: Heads, clean: Mapping[str, Tensor]) -> Tensor:
        """Logits with the heads' z of another prompt of the same length."""
        kept: dict[tuple[int, int], Tensor] = {}

        def keep(layer: int, head: int, z: Tensor) -> Tensor:
            kept[layer, head] = z.clone()
            return z

        with self.editing_z(heads, keep):
            self.logits(inputs=clean)
        with self.editing_z(heads, lambda layer, head, z: kept[layer, head]):
            return self.logits()

    def generated(self, heads: Heads, n: int) -> list[int]:
        """Greedy tokens, the heads ablated behind the image; each step from the beginning, without cache."""
        after = int(self.visual.nonzero().max()) + 1

        def edit(layer: int, head: int, z: Tensor) -> Tensor:
            z[:, after:] = 0
            return z

        ids = torch.empty(1, 0, dtype=torch.long)
        for _ in range(n):
            with self.editing_z(heads, edit):
                ids = torch.cat([ids, self.logits(ids).argmax()[None, None]], 1)
        return [int(x) for x in ids[0]]

    # ------------------------------------------------------------------ pattern

    @contextmanager
    def textbook(self, edit: Edit | None = None) -> Iterator[None]:
        """Inside, attention forms the whole pattern, which is kept, and edited first."""
        config = self.model.config.get_text_config()
        before = config._attn_implementation
        for index, layer in enumerate(self.layers):
            layer.self_attn.by_hand = (self, index, edit)
        try:
            self.model.set_attn_implementation({"text_config": NAME})
            yield
        finally:
            self.model.set_attn_implementation({"text_config": before})
            for layer in self.layers:
                del layer.self_attn.by_hand

    def visual_mass(self) -> Tensor:
        """Float[layer, head], of the last row."""
        with self.textbook():
            self.logits()
        return torch.stack([self.patterns[i][0, :, -1, self.visual].sum(-1) for i in range(len(self.layers))])

    def redistributed(self, dim: int, tau: float, p: float, layers: range) -> Tensor:
        """Logits with VAR in the last row: sinks, by one dimension of the residual stream, give to other patches."""
        last, visual = len(self.visual) - 1, self.visual

        def edit(layer: int, pattern: Tensor) -> Tensor:
            if layer not in layers:
                return pattern
            x = self.residuals[layer][0].float()
            sink = (x[:, dim] / x.pow(2).mean(1).sqrt()).abs() >= tau
            for head in range(pattern.shape[1]):
                row = pattern[0, head, last].clone()
                takers = visual & ~sink
                if float(row[visual].sum()) < 0.01 or float(row[takers].sum()) <= 0 or not bool(sink.any()):
                    continue
                freed = p * row[sink].sum()
                share = row[takers] / row[takers].sum()
                row[sink] *= 1 - p
                row[takers] += freed * share
                pattern[0, head, last] = row
            return pattern

        def entering(layer: int) -> Any:
            def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                self.residuals[layer] = args[0] if args else kwargs["hidden_states"]

            return keep

        with ExitStack() as hooks:
            for index, layer in enumerate(self.layers):
                hook = layer.register_forward_pre_hook(entering(index), with_kwargs=True)
                hooks.callback(hook.remove)
            hooks.enter_context(self.textbook(edit))
            return self.logits()


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **others: Any
) -> tuple[Tensor, None]:
    """Softmax attention, in words."""
    owner, layer, edit = module.by_hand
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = (query @ key.transpose(2, 3)).float() * scaling
    if mask is not None:
        scores = scores + mask[..., : key.shape[2]]
    pattern = scores.softmax(-1)
    pattern = pattern if edit is None else edit(layer, pattern.clone())
    owner.patterns[layer] = pattern
    return (pattern.to(value.dtype) @ value).transpose(1, 2), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, eager_mask)
