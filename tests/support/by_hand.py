"""Patching with hooks written by hand on the Hugging Face model, one prompt at a time and without this library."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.models import Inputs
from tests.support.reference import attention_of, first_of

Change = Callable[[Tensor], Tensor | None]


@contextmanager
def hooked(model: nn.Module, site: str, layer: int, change: Change) -> Iterator[None]:
    """Hand the activation to `change`, and put back what it returns."""
    module = model.get_decoder().layers[layer]
    if site == "z":
        module = attention_of(module).o_proj
    elif site in ("attn_out", "mlp_out"):
        module = attention_of(module) if site == "attn_out" else module.mlp

    def before(module: nn.Module, args: tuple, kwargs: dict) -> Any:
        new = change(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def after(module: nn.Module, args: tuple, output: Any) -> Any:
        new = change(first_of(output))
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    early = site in ("resid_pre", "z")
    hook = module.register_forward_pre_hook(before, with_kwargs=True) if early else module.register_forward_hook(after)
    try:
        yield
    finally:
        hook.remove()


class ByHand:
    """One pair of single prompts: clean activations, and runs of the corrupt prompt with something changed."""

    def __init__(
        self, model: nn.Module, clean: Inputs, corrupt: Inputs, answers: tuple[int, int] | None = None
    ) -> None:
        self.model, self.clean, self.corrupt = model, clean, corrupt
        a, b = self.logits(clean), self.logits(corrupt)
        # the tokens that tell the two runs apart best, so that the effect is well defined
        self.answers = answers or (int((a - b).argmax()), int((b - a).argmax()))
        self.clean_ld, self.corrupt_ld = self.ld(a), self.ld(b)
        self.sources: dict[tuple[str, int], Tensor] = {}

    def logits(self, inputs: Inputs) -> Tensor:
        with torch.no_grad():
            return self.model(**inputs, use_cache=False).logits[0, -1]

    def ld(self, logits: Tensor) -> float:
        return float(logits[self.answers[0]] - logits[self.answers[1]])

    def source(self, site: str, layer: int) -> Tensor:
        """The clean activation."""
        if (site, layer) not in self.sources:

            def keep(x: Tensor) -> None:
                self.sources[site, layer] = x.clone()

            with hooked(self.model, site, layer, keep):
                self.logits(self.clean)
        return self.sources[site, layer]

    def effect(self, site: str, layer: int, positions: Iterable[int], head: int | None = None) -> float:
        source = self.source(site, layer)
        columns = slice(None)
        if head is not None:
            size = attention_of(self.model.get_decoder().layers[layer]).head_dim
            columns = slice(head * size, (head + 1) * size)

        def change(x: Tensor) -> Tensor:
            x = x.clone()
            for position in positions:
                x[0, position, columns] = source[0, position, columns]
            return x

        with hooked(self.model, site, layer, change):
            patched = self.ld(self.logits(self.corrupt))
        return (patched - self.corrupt_ld) / (self.clean_ld - self.corrupt_ld)


def repainted(inputs: Mapping[str, Tensor], seed: int = 7) -> Inputs:
    """The same prompt with another picture."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator).to(value.dtype) if value.is_floating_point() else value
        for name, value in inputs.items()
    }
