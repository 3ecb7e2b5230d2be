"""Direct logit attribution: the answer's logit as the sum of what each part of the model wrote into the last row.

    logit[a] - logit[b] = sum over parts of c g . part + bias          see `answer_direction`

The last row's residual stream is the sum of its embedding and of what every layer added: heads' z W_O slices, attention
biases, feed-forward parts (after the normalisations behind them, frozen, in Gemma 2 and 3). A head's part is
sum_j a_ij (v_j W_O), so it splits by the span of the key j, exactly. The final norm's scale is held as it was: what a
part adds to the norm of the row, and so takes of everybody's share, is no part of its own. A soft cap is replaced by
its chord, the factor by which it makes the difference of the two logits smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..answers.contrast import AnswerLike, answer_token, token_text
from ..errors import ModelError, RemoteError, ScoreError, unknown
from ..prompts.named_spans import named_spans
from ..prompts.prompt import Prompt, check_prompt
from .answer_direction import AnswerDirection
from .frozen import close
from .last_row import LastRow
from .parts import UNITS, DirectAttribution
from .sublayers import taken_apart
from .unembedding import Unembedding

if TYPE_CHECKING:
    from ..lens import Lens

Answers = AnswerLike | Sequence[AnswerLike] | None


def direct_attribution(
    lens: Lens,
    prompt: Prompt,
    answer: Answers = None,
    against: Answers = None,
    *,
    by: Literal["layer", "head", "mlp", "span"] = "layer",
) -> DirectAttribution:
    """What each part of the model adds to an answer's logit at the last token, directly.

    One plain forward. What adds up, and what is left over, is in the result.

    Args:
        lens: the model.
        prompt: from `lens.prompt`.
        answer: a token as text or id, of each batch row or one for all; by default what the model answers.
        against: the logit to take away, likewise; None for none.
        by: "layer", all that a layer adds; "head"; "mlp", feed-forward parts; or "span", each head by the span of the
            keys that it reads: pictures, question, ...

    Raises:
        ScoreError: answers that are no single token, or as many as batch rows.
        ModelError: a layer adds something else than attention and feed-forward part, or the final norm is of another
            kind; by layer the former is no hindrance.
        RemoteError: the weights are on a server alone.
    """
    if by not in UNITS:
        raise ScoreError(unknown("part to attribute to", by, UNITS))
    check_prompt(prompt)
    unembedding = Unembedding.of(lens)
    if by != "layer":
        _check_parts(lens)
    spans = named_spans(prompt) if by == "span" else {}
    masks = torch.stack(list(spans.values())) if spans else None
    with torch.no_grad():
        row = LastRow.of(lens, prompt, by != "layer", masks)
    logits = row.run.logits[:, 0]
    last = row.run.reads["resid_post", lens.n_layers - 1][:, 0].to(logits.device)
    unembedding.check(last, logits, lens.adapter.model)
    ids = answer_ids(lens, prompt, answer, against, logits)
    goal = AnswerDirection.of(unembedding, last, ids)
    chosen = logits.gather(1, ids.to(logits.device)).double()
    difference = chosen[:, 0] - (chosen[:, 1] if ids.shape[1] > 1 else 0.0)
    ledger = _Ledger(lens, row, goal.direction, by, len(spans))
    ledger.fill()
    rest = {"embedding": ledger.along(row.stream("resid_pre", 0)), **ledger.rest, "final biases": goal.bias}
    rest = {name: amount.cpu() for name, amount in rest.items() if name == "embedding" or bool((amount != 0).any())}
    total = ledger.values.flatten(1).nansum(1) + sum(rest.values())
    return DirectAttribution(
        by=by,
        values=ledger.values,
        spans=tuple(spans),
        rest=rest,
        difference=difference.cpu(),
        remainder=difference.cpu() - total,
        chord=goal.chord.cpu(),
        answers=tuple(tuple(token_text(lens, token) for token in own) for own in ids.tolist()),
        model=lens.identity,
    )


def _check_parts(lens: Lens) -> None:
    crossing = lens.shape.crossing
    if crossing:
        raise ModelError(
            f"layers {crossing} attend to pictures by cross-attention, and a gate scales what they add, so it is not "
            "taken apart into heads and feed-forward parts\n  by='layer' adds up on every model"
        )
    if lens.remote:
        raise RemoteError(
            "attribution to heads and feed-forward parts needs the modules of each layer beside their activations\n"
            "  by='layer' works on a server; for the rest use a lens with remote=False"
        )


def answer_ids(
    lens: Lens, prompt: Prompt, answer: Answers, against: Answers, logits: Float[Tensor, "batch vocab"]
) -> Int[Tensor, "batch answer"]:
    """The tokens of both answers, or of one."""
    columns = []
    for name, given in (("answer", answer), ("against", against)):
        if given is None and name == "against":
            continue
        if given is None:
            columns.append(logits.argmax(1).tolist())
            continue
        listed = [given] * prompt.n_rows if isinstance(given, (str, int)) else list(given)
        if len(listed) != prompt.n_rows:
            raise ScoreError(f"{name} is one token for all {prompt.n_rows} batch rows, or one each, given {given!r}")
        columns.append([answer_token(lens, each, logits.shape[1]) for each in listed])
    ids = torch.tensor(columns).T
    same = [] if ids.shape[1] < 2 else (ids[:, 0] == ids[:, 1]).nonzero().flatten().tolist()
    if same:
        text = token_text(lens, int(ids[same[0], 0]))
        raise ScoreError(f"row {same[0]}: {text!r} against itself is 0, and nothing adds to it\n  give two answers")
    return ids


class _Ledger:
    """Adds up what each part says along the answer's direction.

    Attributes:
        values: Float[batch, unit ...], what was asked for, on the CPU.
        rest: everything else by name, Float[batch].
    """

    def __init__(self, lens: Lens, row: LastRow, direction: Tensor, by: str, n_spans: int) -> None:
        self.lens, self.row, self.direction, self.by = lens, row, direction, by
        self.dtype = row.run.reads["resid_post", 0].dtype
        sizes = {"layer": (), "mlp": (), "head": (lens.n_heads,), "span": (lens.n_heads, n_spans)}[by]
        shape = (len(direction), lens.n_layers, *sizes)
        self.values = torch.full(shape, torch.nan, dtype=torch.float64)
        self.rest: dict[str, Tensor] = {}

    def along(self, part: Float[Tensor, "batch d_model"], direction: Tensor | None = None) -> Float[Tensor, " batch"]:
        """What a part says, in logits."""
        towards = self.direction if direction is None else direction
        return (part.double().to(towards.device) * towards).sum(-1)

    def add(self, name: str, amount: Float[Tensor, " batch"]) -> None:
        """Add to what is not asked for one by one."""
        self.rest[name] = self.rest.get(name, 0) + amount

    def fill(self) -> None:
        """Go through the layers."""
        for layer in range(self.row.n_layers):
            pre, post = self.row.stream("resid_pre", layer), self.row.stream("resid_post", layer)
            if layer:
                before = self.row.stream("resid_post", layer - 1).to(pre.device)
                self.add("between layers", self.along(pre - before))  # features that the model adds there
            if self.by == "layer":
                self.values[:, layer] = self.along(post - pre.to(post.device)).cpu()
            else:
                self._take_apart(layer, pre, post)

    def _take_apart(self, layer: int, pre: Tensor, post: Tensor) -> None:
        parts = self.lens.adapter.layers[layer]
        attn, mlp = self.row.at("attn_out", layer), self.row.at("mlp_out", layer)
        found = taken_apart(parts, layer, pre, post, attn, mlp, self.dtype)
        self.add("parts without heads", self.along(found.other))
        if found.mlp is not None and mlp is not None:
            amount = self.along(mlp, found.mlp.pulled(self.direction)) + self.along(found.mlp.offset(pre))
            if self.by == "mlp":
                self.values[:, layer] = amount.cpu()
            else:
                self.add("feed-forward parts", amount)
        if found.attention is not None and attn is not None:
            direction = found.attention.pulled(self.direction)
            behind = self.along(found.attention.offset(pre))
            if self.by == "mlp":
                self.add("attention", self.along(attn, direction) + behind)
            else:
                self._heads(layer, attn, direction, behind)

    def _heads(self, layer: int, attn: Tensor, direction: Tensor, behind: Tensor) -> None:
        projection = self.lens.adapter.layers[layer].output_projection
        assert projection is not None
        z = self.row.heads(layer)
        slopes, offset = _through(projection, z, direction)
        by_head = (slopes * z.double()).sum(-1)
        said, scale = self.along(attn, direction), (slopes * z.double()).abs().sum((1, 2)) + offset.abs()
        if not close((by_head.sum(1) + offset)[:, None], said[:, None], scale[:, None], self.dtype):
            raise ModelError(
                f"the attention of layer {layer} gives something else than its heads through their output projection, "
                "so what each head contributes is not known\n  by='layer' adds up on every model"
            )
        self.add("attention biases", offset + behind)
        if self.by == "head":
            self.values[:, layer, : z.shape[1]] = by_head.cpu()
            return
        taken = _gated(self.row.heads_by_span(layer), z.double(), layer)
        self.values[:, layer, : z.shape[1]] = (slopes[:, :, None] * taken).sum(-1).cpu()


def _through(
    projection: nn.Module, z: Float[Tensor, "batch head d_head"], direction: Float[Tensor, "batch d_model"]
) -> tuple[Float[Tensor, "batch head d_head"], Float[Tensor, " batch"]]:
    """(the direction of each head's output, what the projection's bias says), fp64."""
    with torch.inference_mode(False), torch.enable_grad():
        x = z.detach().clone().flatten(1)[:, None].requires_grad_()
        out = projection(x)[:, 0]
        # in the model's precision a direction would be rounded: two numbers of it carry what one cannot
        high = direction.to(out.dtype)
        low = (direction - high.double()).to(out.dtype)
        slope = sum(
            torch.autograd.grad((out * each.to(out.device)).sum(), x, retain_graph=True)[0].double()
            for each in (high, low)
        )
        nothing = projection(torch.zeros_like(x))[:, 0].detach()
    assert isinstance(slope, Tensor)
    return slope[:, 0].reshape(z.shape), (nothing.double().to(direction.device) * direction).sum(-1)


def _gated(
    taken: Float[Tensor, "batch head span d_head"], z: Float[Tensor, "batch head d_head"], layer: int
) -> Float[Tensor, "batch head span d_head"]:
    """What heads take of each span, as it reaches W_O: some families have a gate of each number between.

    Raises:
        ModelError: what reaches W_O is no share of what was taken.
    """
    total = taken.sum(2)
    if torch.allclose(total, z, rtol=1e-3, atol=1e-3 * float(z.abs().max())):
        return taken
    gate = torch.where(total.abs() > 1e-12, z / total, torch.zeros_like(z))
    if bool((gate < -1e-3).any()) or bool((gate > 1 + 1e-3).any()):
        raise ModelError(
            f"what the heads of layer {layer} give is not what they take from their keys, nor a gated share of it, so "
            "it has no parts by span\n  by='head' does not ask for that"
        )
    return taken * gate[:, :, None]
