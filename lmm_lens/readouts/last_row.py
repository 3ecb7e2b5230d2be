"""The residual stream of each prompt's last token, layer by layer, and the parts that it is the sum of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.taps import Tap, TapContext
from ..hooks.points import ModelShape, Read, Reader
from ..hooks.results import Run
from ..prompts.prompt import Prompt
from ..prompts.rows import bind_rows

if TYPE_CHECKING:
    from ..lens import Lens

BY_SPAN = "z by span"


@dataclass(frozen=True, eq=False)
class SpanReader:
    """Reads what the last row's heads take from each span of keys: [batch, head, 1, span, d_head].

    Attributes:
        masks: Bool[span, batch, position].
        layers: of which.
    """

    masks: Tensor
    layers: tuple[int, ...]

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """A read of the pattern in each layer."""
        masks = self.masks

        def by_span(pattern: Tensor, context: TapContext) -> Tensor:
            assert context.read_values is not None
            taken = []
            for mask in masks:
                keys = context.columns(mask, pattern.shape[-1])[:, None, None]
                taken.append(context.read_values(pattern * keys).transpose(1, 2))  # batch head query d_head
            return torch.stack(taken, 3)

        rows = bind_rows("last", prompt)
        return [Tap("pattern", layer, rows, by_span, name=BY_SPAN) for layer in self.layers]


@dataclass(frozen=True, eq=False)
class LastRow:
    """What was read of the last tokens.

    Attributes:
        run: the run.
        n_layers: of the model.
    """

    run: Run
    n_layers: int

    @classmethod
    def of(cls, lens: Lens, prompt: Prompt, parts: bool, masks: Tensor | None) -> LastRow:
        """Read it in one forward.

        Args:
            lens: the model.
            prompt: the prompt.
            parts: whether attention, heads and feed-forward parts are read, beside the streams.
            masks: spans of keys, Bool[span, batch, position], to read what heads take of each; None for not.
        """
        layers, attending = lens.adapter.layers, lens.shape.self_attention
        reads: list[Reader | str] = [Read("resid_pre", rows="last"), Read("resid_post", rows="last")]
        if parts:
            fed = [index for index, layer in enumerate(layers) if layer.mlp is not None]
            reads += [Read("mlp_out", fed, rows="last")] if fed else []
            reads += [Read(site, attending, rows="last") for site in ("attn_out", "z") if attending]
        if masks is not None:
            reads.append(SpanReader(masks, tuple(attending)))
        return cls(lens.run(prompt, read=reads, logits="last"), lens.n_layers)

    def at(self, site: str, layer: int) -> Float[Tensor, "batch d_model"] | None:
        """One part of each batch row, in the model's precision; None where it was not read."""
        found = self.run.reads.get((site, layer))
        return None if found is None else self._here(found[:, 0])

    def stream(self, site: str, layer: int) -> Float[Tensor, "batch d_model"]:
        """The stream before or behind a layer, fp64."""
        return self._here(self.run.reads[site, layer][:, 0]).double()

    def heads(self, layer: int) -> Float[Tensor, "batch head d_head"]:
        """What its heads give."""
        return self._here(self.run.reads["z", layer][:, 0])

    def heads_by_span(self, layer: int) -> Float[Tensor, "batch head span d_head"]:
        """What they take of each span, fp64."""
        return self._here(self.run.reads[BY_SPAN, layer][:, :, 0]).double()

    def _here(self, read: Tensor) -> Tensor:
        """Where the logits are: layers may lie on several devices."""
        return read.to(self.run.logits.device)
