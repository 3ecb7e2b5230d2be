"""The logit lens: what the residual stream of each token would say if the model ended after a layer.

    logits[l, p] = cap(W_U norm_f(h[l, p]))        h = resid_post

(nostalgebraist 2020; at image tokens Neo et al., ICLR 2025, arXiv:2410.07149.) norm_f is the model's own final
normalisation, applied once, also to the last layer, where the readout is what the model says; cap its soft cap and
scale. Where features of the pictures enter again after a layer (deepstack), h is what the layer gave before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.taps import TapContext
from ..errors import HookError, ScoreError
from ..figures.canvas import canvases_of
from ..hooks.heads import check_layer
from ..hooks.points import Read
from ..hooks.results import Run
from ..interventions.base import Intervention
from ..prompts.prompt import Prompt, check_prompt
from ..prompts.rows import RowsLike
from .forms import Form, forms_of, token_names
from .translators import Translators
from .unembedding import Unembedding
from .vocabulary import WordReader, ids_of, split
from .words import LogitLens

if TYPE_CHECKING:
    from ..lens import Lens

NAME, LAST = "logit lens", "logit lens of the last token"


def logit_lens(
    lens: Lens,
    prompt: Prompt,
    rows: RowsLike = "image",
    *,
    layers: Iterable[int] | None = None,
    top: int = 5,
    words: Sequence[str | int] = (),
    translators: Translators | Mapping[int, tuple[Tensor, Tensor]] | None = None,
    interventions: Sequence[Intervention] = (),
) -> LogitLens:
    """Read tokens of a prompt as words, layer by layer.

    One forward, and one product with the output embedding for each row and layer; what is kept of it are a few numbers.
    On a server the residual stream of these rows is fetched and read here.

    Args:
        lens: the model, with a processor if words are text.
        prompt: from `lens.prompt`.
        rows: which tokens: "image", "last", positions (`prompt.words(...)`), Bool[batch, position], ...
        layers: after which layers; all by default.
        top: how many of the likeliest words are kept.
        words: words whose rank, logit and probability are kept, each by its first token with a leading space and
            without, as far as the vocabulary has both; or token ids.
        translators: from `fit_translators`, or {layer: (A, b)}: maps that rows go through first.
        interventions: edits under which the stream is read.

    Raises:
        HookError: no such layer or rows, rows that select nothing, a layer without a translator.
        ScoreError: a word that the vocabulary does not have, or translators of another model or width.
        ModelError: what follows the model's layers is not known to be a norm and an output embedding.
        RemoteError: that is on the server alone.
    """
    check_prompt(prompt)
    unembedding = Unembedding.of(lens)
    last = lens.n_layers - 1
    every = range(lens.n_layers) if translators is None else [*_layers_of(translators), last]
    chosen = tuple(sorted({check_layer(layer, lens.n_layers) for layer in (every if layers is None else layers)}))
    if not chosen:
        raise HookError("no layers were given to read")
    maps = Translators.of(translators) if isinstance(translators, Mapping) else translators
    if maps is not None:
        maps.check(chosen, lens)
    n_vocab = _n_vocab(unembedding, lens)
    if not 0 < top <= n_vocab:
        raise ScoreError(f"top is how many of the {n_vocab} words are kept, 1 or more, given {top}")
    if isinstance(words, str):
        raise ScoreError(f"words are a list, as in words=[{words!r}]")
    forms = forms_of(lens, words, n_vocab)
    reader = WordReader(unembedding, top, tuple(form.token for form in forms), lens.shape.d_model, maps)
    run, packed = _read(lens, prompt, rows, chosen, reader, interventions)
    unembedding.check(run.reads[LAST, last][:, 0], run.logits[:, 0], lens.adapter.model)
    return _result(lens, prompt, run, packed, chosen, reader, forms, maps)


def _layers_of(translators: Translators | Mapping[int, tuple[Tensor, Tensor]]) -> Iterable[int]:
    return translators.layers if isinstance(translators, Translators) else translators


def _n_vocab(unembedding: Unembedding, lens: Lens) -> int:
    weight = getattr(unembedding.head, "weight", None)
    found = getattr(unembedding.head, "out_features", None) or (weight.shape[0] if weight is not None else None)
    return int(found or lens.adapter.model.get_input_embeddings().weight.shape[0])


def _read(
    lens: Lens,
    prompt: Prompt,
    rows: RowsLike,
    layers: Sequence[int],
    reader: WordReader,
    interventions: Sequence[Intervention],
) -> tuple[Run, list[Tensor]]:
    """The run, and the packed numbers of each layer [batch, query, column]; see `WordReader`."""
    n_numbers = prompt.n_rows * prompt.n_tokens * reader.d_model

    def reduced(hidden: Tensor, context: TapContext) -> Tensor:
        return reader.read(hidden, context.layer, n_numbers)

    # a server has no output embedding to give to a function that travels
    own = Read("resid_post", layers, rows=rows, reduce=None if lens.remote else reduced, name=NAME)
    check = Read("resid_post", [lens.n_layers - 1], rows="last", name=LAST)
    run = lens.run(prompt, interventions, [own, check], logits="last")
    found = [run.reads[NAME, layer] for layer in layers]
    if lens.remote:
        where = lens.device
        with torch.no_grad():
            found = [reader.read(x.to(where), layer, n_numbers) for x, layer in zip(found, layers, strict=True)]
    return run, [each.cpu() for each in found]


def _result(
    lens: Lens,
    prompt: Prompt,
    run: Run,
    packed: Sequence[Tensor],
    layers: tuple[int, ...],
    reader: WordReader,
    forms: tuple[Form, ...],
    translators: Translators | None,
) -> LogitLens:
    numbers = torch.stack(list(packed))  # layer batch query column
    positions = run.positions[NAME].cpu()
    numbers = numbers.masked_fill((positions < 0)[None, :, :, None], torch.nan)
    ids, logits, log_sum, entropy, chosen, ranks = split(numbers, reader.columns, list(reader.columns))
    top = ids_of(ids)
    return LogitLens(
        layers=layers,
        positions=positions,
        tokens=prompt.tokens,
        top=top,
        top_logits=logits.float(),
        log_sum=log_sum[..., 0].float(),
        entropy=entropy[..., 0].float(),
        forms=forms,
        logits=chosen.float(),
        ranks=ids_of(ranks),
        texts=token_names(lens, sorted({int(token) for token in top.unique().tolist()} - {-1})),
        canvases=tuple(canvases_of(prompt, row) for row in range(prompt.n_rows)),
        translated=translators is not None,
        model=lens.identity,
    )
