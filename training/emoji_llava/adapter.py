"""A low-rank adapter on the attention's projections: W x + scale * B A x, with A and B in fp32."""

import math
from typing import Any

import torch
from torch import Tensor, nn

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


class Adapter:
    """Adds itself to a language model by forward hooks; `weights` are its parameters, by their committed names."""

    def __init__(self, language: Any, rank: int, scale: float) -> None:
        self.weights: dict[str, Tensor] = {}
        self.scale = scale
        for name, module in language.named_modules():
            if name.rsplit(".", 1)[-1] in TARGETS:
                down = torch.empty(rank, module.in_features)
                nn.init.kaiming_uniform_(down, a=math.sqrt(5))
                up = torch.zeros(module.out_features, rank)
                self.weights[f"adapter.{name}.weight.A"], self.weights[f"adapter.{name}.weight.B"] = down, up
                module.register_forward_hook(self._adds(down, up))

    def _adds(self, down: Tensor, up: Tensor) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            low = inputs[0] @ down.to(inputs[0].dtype).T
            return output + self.scale * (low @ up.to(low.dtype).T)

        return hook
