"""From the last layer's output to the logits: final normalisation, output embedding, and what is done to its output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from ..backends.unembedding import finishing
from ..core.envoys import finish
from .check import UnfitError, agree

if TYPE_CHECKING:
    from ..adapters import Adapter


@dataclass(frozen=True, eq=False)
class Unembedding:
    """The modules after the decoder layers, one after the other.

    Attributes:
        modules: each is given what the one before returned.
        cap, scale: what the model does to the output of the last; None for nothing.
    """

    modules: tuple[nn.Module, ...]
    cap: float | None
    scale: float | None

    def __call__(self, hidden: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query vocab"]:
        """The logits of these rows."""
        for module in self.modules:
            hidden = module(hidden)
        return finish(hidden, self.cap, self.scale)


@dataclass(eq=False)
class UnembeddingRecorder:
    """Notes which modules without children run after the last layer."""

    seen: list[nn.Module] = field(default_factory=list)
    handle: Any = None

    def open(self) -> None:
        """Called at the end of the last layer."""

        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if next(module.children(), None) is None:
                self.seen.append(module)

        self.handle = hooks.register_module_forward_hook(note)

    def close(self) -> None:
        """Stop noting."""
        if self.handle is not None:
            self.handle.remove()

    def finished(self, model: Any, out: Tensor, logits: Tensor, adapter: Adapter) -> Unembedding:
        """The modules, checked to turn the last layer's output into the model's logits; UnfitError where it does not.

        Args:
            model: whose forward ran.
            out: Float[batch, d_model], the last layer's output at each row's last prompt token.
            logits: Float[batch, vocab], there.
            adapter: of the model.
        """
        unembedding = Unembedding(tuple(self.seen), *finishing(model, adapter))
        try:
            with torch.no_grad():
                mine = unembedding(out[:, None])[:, 0]
        except (TypeError, RuntimeError, ValueError) as error:
            raise UnfitError(f"what follows its layers is not a chain of modules ({error})") from error
        if not agree(mine, logits):
            raise UnfitError("what follows its layers is not a chain of modules")
        return unembedding
