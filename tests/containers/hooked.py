"""Models with everything that an identity must find again in another process."""

import copy
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lmm_lens import Lens
from lmm_lens.bundled import shapes

NAMES = frozenset(("a", "b", "c", "d"))


def steering(vector: torch.Tensor, names: set[str]) -> Any:
    def hook(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + vector if names & NAMES and len(names) in {3, 5, 7} else output

    return hook


class Scaled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.kinds = inner, {"x", "y", "z"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * len(self.kinds & {"x", "q", "w"})


def identities() -> dict[str, Any]:
    """The bundled model, and copies of it with a hook, with a module of another class, and with adapters."""
    plain = Lens.demo()
    model, processor = copy.deepcopy((plain.model, plain.processor))
    model.get_decoder().layers[1].mlp.register_forward_hook(steering(torch.arange(128.0), {"a", "f", "g"}))
    own = copy.deepcopy(plain.model)
    own.get_decoder().layers[2].mlp = Scaled(own.get_decoder().layers[2].mlp)
    torch.manual_seed(0)
    adapted = get_peft_model(
        copy.deepcopy(plain.model), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    ).eval()
    return {
        "plain": plain.identity,
        "hooked": Lens(model, processor).identity,
        "own module": Lens(own, shapes.load()[1]).identity,
        "adapted": Lens(adapted, shapes.load()[1]).identity,
    }
