"""From a residual stream to logits, as the model itself goes: final normalisation, output embedding, scale, soft cap.

    logits(h) = cap(scale * W_U norm_f(h))

The modules are found by where they stand and never trusted: each run compares what they make of the last layer's output
with the logits that the model returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..backends.placement import has_weights
from ..backends.sources import source_of
from ..backends.unembedding import finishing
from ..core.envoys import finish
from ..errors import ModelError, RemoteError
from ..replay.check import agree

if TYPE_CHECKING:
    from ..adapters import Adapter
    from ..lens import Lens

NORMS = ("norm", "final_layernorm", "final_layer_norm", "final_norm", "ln_f", "norm_f", "ln_final", "embedding_norm")
HEADS = ("lm_head", "embed_out", "output")
NEVER = -1e30  # logits at or below belong to tokens that a model never says, as those of pictures


@dataclass(frozen=True, eq=False)
class Unembedding:
    """What stands behind the last decoder layer.

    Attributes:
        norm: the final normalisation; None for a model without.
        between: modules between it and the head, as a projection to a narrower space.
        head: the output embedding.
        cap, scale: what the model does to its output; None for nothing.
        never: Int[token], what the model never says, whose logits it overwrites; None for nothing.
    """

    norm: nn.Module | None
    between: tuple[nn.Module, ...]
    head: nn.Module
    cap: float | None
    scale: float | None
    never: Int[Tensor, " token"] | None = None

    @classmethod
    def of(cls, lens: Lens) -> Unembedding:
        """That of a lens's model.

        Raises:
            RemoteError: its weights are not here.
            ModelError: it has no output embedding that is known.
        """
        adapter = lens.adapter
        if not has_weights(adapter.model):
            raise RemoteError(
                "the final normalisation and the output embedding are on the server, and are not sent\n"
                "  open the lens with the weights here too: Lens(model, processor, backend='nnsight', remote=...)"
            )
        holder = _holder(adapter)
        head = _head(adapter.model)
        if head is None:
            raise ModelError(
                f"the output embedding of {type(adapter.model).__name__} was not found, so its residual stream cannot "
                "be read as words\n  expected get_output_embeddings() to return it"
            )
        own = dict(holder.named_children())
        norm = next((own[name] for name in NORMS if name in own), None)
        between = [own[name] for name in ("project_out",) if isinstance(own.get(name), nn.Module)]
        return cls(
            None if norm is None else _plain(norm),
            tuple(map(_plain, between)),
            _plain(head),
            *finishing(adapter.model, adapter),
            _never(adapter.model),
        )

    def raw(self, hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """What the output embedding gives, before scale and cap."""
        for module in ([] if self.norm is None else [self.norm]) + [*self.between, self.head]:
            hidden = module(hidden)
        return hidden

    def __call__(self, hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """The logits of these rows, in the model's precision."""
        logits = finish(self.raw(hidden), self.cap, self.scale)
        if self.never is not None:
            logits = logits.index_fill(-1, self.never.to(logits.device), torch.finfo(logits.dtype).min)
        return logits

    def check(self, hidden: Float[Tensor, "batch d_model"], logits: Float[Tensor, "batch vocab"], model: Any) -> None:
        """Hold what is made here of the last layer's output against the logits that the model itself returned.

        Raises:
            ModelError: they differ.
        """
        kind = type(model).__name__
        try:
            with torch.no_grad():
                mine = self(hidden.to(logits.device))
        except (RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"what follows the decoder layers of {kind} is no chain of norm and output embedding, so that its "
                f"residual stream cannot be read as words ({str(error).splitlines()[0]})"
            ) from error
        mine, theirs = (x.to(logits.device, logits.dtype).clamp_min(NEVER) for x in (mine, logits))
        said = (mine > NEVER) & (theirs > NEVER)
        if not torch.equal(mine > NEVER, theirs > NEVER) or not agree(mine.where(said, 0), theirs.where(said, 0)):
            away = float((mine - theirs).abs().max())
            raise ModelError(
                f"what follows the decoder layers of {kind} is not known: its norm and output embedding give logits up "
                f"to {away:.3g} away from its own, so that its residual stream cannot be read as words"
            )


def _holder(adapter: Adapter) -> nn.Module:
    """The module that holds the list of decoder layers."""
    first = adapter.layers[0].module
    model: nn.Module = adapter.model
    for module in model.modules():
        if any(isinstance(child, nn.ModuleList) and first in child for child in module._modules.values()):
            return module
    return model


def _head(model: Any) -> nn.Module | None:
    found: Any = model.get_output_embeddings() if callable(getattr(model, "get_output_embeddings", None)) else None
    if isinstance(found, nn.Module):
        return found
    modules: list[tuple[str, nn.Module]] = list(model.named_modules())
    return next((module for name, module in modules if name.rpartition(".")[2] in HEADS), None)


def _never(model: Any) -> Int[Tensor, " token"] | None:
    """Chameleon overwrites the logits of its picture tokens."""
    mapping = getattr(getattr(model, "model", None), "vocabulary_mapping", None)
    tokens = getattr(mapping, "image_tokens", None) if "finfo" in source_of(type(model).forward) else None
    return None if tokens is None else torch.as_tensor(tokens)


def _plain(module: nn.Module) -> nn.Module:
    """What a bridge wraps, where one does: its own hooks belong to runs of the bridge."""
    inner = getattr(module, "original_component", None)
    return inner if isinstance(inner, nn.Module) else module
