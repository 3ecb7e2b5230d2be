"""How a model's class is called, and which tokens its layers run on.

transformers' own classes take `input_ids` in which each visual token stands by itself. Remote code has ways of its own:
a placeholder that becomes many tokens inside `forward`, negative ids, ranges of positions, arguments under other names.
What an adapter says of it here is all that the rest of the library needs to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lmm_lens.errors import ModelError, PromptError

from .walker import Layer, every_module

PADDING = 0
"""The id that stands for padding in a sequence that an adapter makes: never that of a visual token."""


class Calls:
    """The part of an adapter that calls its model."""

    model: Any
    layers: tuple[Layer, ...]

    ends: tuple[int, ...] = ()
    """Ids at which the class's own `generate` ends a row, beside those of the generation config."""

    def expanded(self, inputs: Mapping[str, Any]) -> Tensor | tuple[Tensor, Tensor]:
        """The token ids of the sequence that runs; override where it is another than `input_ids`.

        Args:
            inputs: all that the model is given.

        Returns:
            Int[batch, position], `image_token_id` at each visual token; or that and Bool[batch, position], which tokens
            are real, where `attention_mask` does not say it.
        """
        ids: Tensor = inputs["input_ids"]
        return ids

    def forward(self, inputs: dict[str, Any], **options: Any) -> Any:
        """Call the model; override where the class takes its inputs, a copy of the prompt's, in another way."""
        return self.model(**inputs, **options)

    def generate(self, inputs: dict[str, Any], **options: Any) -> Any:
        """Have the model generate; override where the class does it under another name, or with other arguments."""
        return self.model.generate(**inputs, **options)

    def sequence(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The ids of the sequence that runs, and which of its tokens are real, both [batch, position].

        Raises:
            PromptError: the class cannot make a sequence of these inputs.
            ModelError: what `expanded` says is none.
        """
        ids: Tensor = inputs["input_ids"]
        real = inputs.get("attention_mask", torch.ones_like(ids)) != 0
        if type(self).expanded is Calls.expanded:
            return ids, real
        try:
            with torch.no_grad():
                found = self.expanded(inputs)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise PromptError(
                f"{type(self).__name__}.expanded cannot tell the sequence of these inputs: "
                f"{type(error).__name__}: {error}\n  given {sorted(inputs)}"
            ) from error
        found, mask = found if isinstance(found, tuple) else (found, real)
        is_ids = isinstance(found, Tensor) and found.ndim == 2 and not found.is_floating_point()
        if not is_ids or len(found) != len(ids) or not isinstance(mask, Tensor) or mask.shape != found.shape:
            shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in (found, mask)]
            raise ModelError(
                f"{type(self).__name__}.expanded gives the ids of the sequence that runs, [batch, position], and a "
                f"mask of the same shape where it is longer than input_ids {tuple(ids.shape)}\n"
                f"  given {shapes[0]} and a mask {shapes[1]}"
            )
        return found.masked_fill(mask == 0, PADDING), mask != 0

    @property
    def own_ways(self) -> tuple[str, ...]:
        """What of its class only this adapter knows, and other frameworks therefore cannot do."""
        ways = [name for name in ("forward", "generate") if getattr(type(self), name) is not getattr(Calls, name)]
        return (*ways, *(["attends_in"] if any(layer.attends_in is not None for layer in self.layers) else []))

    @cached_property
    def runs_alone(self) -> tuple[Any, ...]:
        """Models inside the model that `generate` may run by themselves, from embeddings, as remote code does."""
        return tuple(
            module
            for module in every_module(self.model)
            if module is not self.model
            and callable(getattr(module, "generate", None))
            and any(part is self.layers[0].module for part in module.modules())
        )
