"""LatentLens: a visual token read by the words in context whose residual stream is nearest to its own.

    reading of (l, p) = the words t and layers m of the bank with the largest cosine of h[l, p] and h[m, t]

(arXiv:2602.00462; h = resid_post.) Layers need not match: a token early on may be nearest to a word as it is later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.taps import TapContext
from ..errors import HookError, ScoreError
from ..figures.canvas import canvases_of
from ..hooks.heads import check_layer
from ..hooks.points import Read
from ..interventions.base import Intervention
from ..prompts.prompt import Prompt, check_prompt
from ..prompts.rows import RowsLike
from ..runs.files import check_same_model
from .bank import EmbeddingBank
from .neighbours import LatentLens
from .vocabulary import LEAST, ids_of

if TYPE_CHECKING:
    from ..lens import Lens

NAME = "latent lens"


def latent_lens(
    lens: Lens,
    prompt: Prompt,
    bank: EmbeddingBank,
    rows: RowsLike = "image",
    *,
    layers: Iterable[int] | None = None,
    top: int = 5,
    interventions: Sequence[Intervention] = (),
) -> LatentLens:
    """Read tokens of a prompt by their nearest words in context.

    One forward, and one product with the bank for each row and layer, a few rows at a time.

    Args:
        lens: the model.
        prompt: from `lens.prompt`.
        bank: from `embedding_bank`, of this model.
        rows: which tokens: "image", positions, Bool[batch, position], ...
        layers: after which layers the tokens are read; all by default. The bank's layers are all compared with.
        top: how many neighbours are kept.
        interventions: edits under which the stream is read.

    Raises:
        HookError: no such layer or rows, or rows that select nothing.
        ScoreError: a bank of another model, or of fewer words.
    """
    check_prompt(prompt)
    model = lens.identity
    check_same_model("this bank", bank.model, model)
    wanted = range(lens.n_layers) if layers is None else layers
    chosen = tuple(sorted({check_layer(layer, lens.n_layers) for layer in wanted}))
    if not chosen:
        raise HookError("no layers were given to read")
    if not 0 < top <= len(bank):
        raise ScoreError(f"top is how many of the bank's {len(bank)} words are kept, 1 or more, given {top}")
    reader = NeighbourReader(bank.vectors.flatten(0, 1), top)

    def reduced(hidden: Tensor, context: TapContext) -> Tensor:
        return reader.read(hidden)

    # the bank does not travel to a server: the streams of these rows come here
    read = Read("resid_post", chosen, rows=rows, reduce=None if lens.remote else reduced, name=NAME)
    run = lens.run(prompt, interventions, [read], logits="last")
    found = [run.reads[NAME, layer] for layer in chosen]
    packed = torch.stack([(reader.read(each) if lens.remote else each).cpu() for each in found])
    positions = run.positions[NAME].cpu()
    packed = packed.masked_fill((positions < 0)[None, :, :, None], torch.nan)
    ids, cosines = packed.split(top, -1)
    return LatentLens(
        layers=chosen,
        positions=positions,
        tokens=prompt.tokens,
        canvases=tuple(canvases_of(prompt, row) for row in range(prompt.n_rows)),
        neighbours=ids_of(ids),
        cosines=cosines.float(),
        bank_layers=bank.layers,
        words=bank.words,
        sentences=bank.sentences,
        sentence_of=bank.sentence_of,
        model=model,
    )


@dataclass(frozen=True, eq=False)
class NeighbourReader:
    """Turns rows of `resid_post` into the indices of their nearest vectors and the cosines, side by side.

    Attributes:
        vectors: Float[entry, d_model], of length 1.
        top: how many are kept.
    """

    vectors: Float[Tensor, "entry d_model"]
    top: int

    def read(self, hidden: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query column"]:
        """Of rows of one layer, in fp64, which holds indices too."""
        flat = torch.nn.functional.normalize(hidden.flatten(0, 1).float(), dim=-1)
        step = max(1, LEAST // len(self.vectors))
        vectors = self.vectors.to(flat.device)
        parts = [self._nearest(flat[start : start + step], vectors) for start in range(0, len(flat), step)]
        return torch.cat(parts).reshape(*hidden.shape[:2], -1)

    def _nearest(
        self, rows: Float[Tensor, "row d_model"], vectors: Float[Tensor, "entry d_model"]
    ) -> Float[Tensor, "row column"]:
        best = torch.empty(len(rows), 0, device=rows.device)
        where = torch.empty(len(rows), 0, dtype=torch.long, device=rows.device)
        width = max(self.top, LEAST // max(1, len(rows)))
        for start in range(0, len(vectors), width):
            cosines = rows @ vectors[start : start + width].float().T
            own = cosines.topk(min(self.top, cosines.shape[1]), -1)
            best, where = torch.cat([best, own.values], 1), torch.cat([where, own.indices + start], 1)
            order = best.topk(min(self.top, best.shape[1]), -1)
            best, where = order.values, where.gather(1, order.indices)
        return torch.cat([where.double(), best.double()], -1)
