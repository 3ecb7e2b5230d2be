"""Find a circuit: a score for every edge of the model's graph, from a clean and a corrupt prompt.

The score of an edge is what the logit difference loses when that edge alone carries what its node wrote in the corrupt
run: in "exact" by a patched forward an edge, in "eap" and "eap-ig" to first order for all edges at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..answers.contrast import AnswerLike, AnswersLike
from ..errors import ScoreError, unknown
from ..patching.task import shown_progress
from ..prompts.prompt import Prompt
from ..replay import UnfitError
from .attribution import edge_scores
from .circuit import AVERAGES, Circuit
from .graph import Graph
from .joint_graph import JointGraph
from .pair import Pair, pair_of
from .patched import JointForwards

if TYPE_CHECKING:
    from ..lens import Lens

METHODS = ("eap-ig", "eap", "exact")
Prompts = Prompt | Sequence[Prompt]
Answers = AnswerLike | Sequence[AnswerLike] | None


def find_circuit(
    lens: Lens,
    clean: Prompts,
    corrupt: Prompts,
    *,
    answer: Answers = None,
    against: Answers = None,
    method: str = "eap-ig",
    by_span: bool = True,
    steps: int = 5,
    average: str = "signed",
    tower: bool = False,
    progress: bool = False,
) -> Circuit:
    """Score every edge of the model on pairs of prompts.

    Costs two forwards with pictures, and for "eap" one forward and one backward pass of the decoder, for "eap-ig" as
    many as `steps`; memory is that of a forward with gradients and a part of it. "exact" costs a forward an edge: for
    small models, and to see what the others are worth (`Circuit.rank_correlation`).

    Args:
        lens: the model, on the native backend.
        clean: a prompt, a batch, or several batches.
        corrupt: as many; row i of both is a pair with the same layout that differs in one thing.
        answer: what is right for the clean prompt, a token id or a text of one token, of all pairs or one each; by
            default what the model answers.
        against: the same for the corrupt prompt.
        method: "eap-ig", "eap" or "exact"; see `lmm_lens.circuits.attribution`.
        by_span: whether the same edge at tokens of another span is another edge; the spans are those of
            `activation_patching`.
        steps: points of the line between both prompts' embeddings, for "eap-ig".
        average: how edges are ranked over pairs: "signed", by the size of their mean score, or "absolute", by their
            mean size. The first lets edges cancel that help in one pair and hurt in another; the second hides that.
        tower: whether edges begin in the vision tower: between what enters its first layer, its heads and feed-forward
            parts, and the projector, whose output is what the decoder's embeddings are at visual tokens. The line of
            "eap-ig" then runs between what enters the tower. See `lmm_lens.circuits.joint_graph`.
        progress: show a progress bar, for "exact".

    Returns:
        Circuit: all edges, best first. `circuit.top(100)` keeps the best, `circuit.faithfulness(...)` measures them.

    Raises:
        ScoreError: the model has paths that are not known (cross-attention, linear attention, projections of q, k and
            v in one; with `tower` batches of packed pictures), another backend, prompts or answers that tell nothing
            apart.
        InterventionError: a clean and a corrupt prompt have another layout.
    """
    for name, given, valid in (("method", method, METHODS), ("average", average, AVERAGES)):
        if given not in valid:
            raise ScoreError(unknown(name, given, valid))
    if method == "eap-ig" and steps < 1:
        raise ScoreError(f"the line between both prompts has at least 1 point, given steps={steps}")
    pairs = list(pairs_of(lens, clean, corrupt, answer, against, by_span, method == "exact", tower=tower))
    graph = pairs[0].whole
    found = [_scores(pair, method, steps, progress) for pair in pairs]
    defined = torch.cat([~pair.contrast.gap.isnan() for pair in pairs])
    scores = torch.cat(found)[defined]  # row edge
    return Circuit(
        graph=graph,
        method=method if method != "eap-ig" else f"eap-ig, {steps} steps",
        average=average,
        scores=scores.mean(0).float(),
        sizes=scores.abs().mean(0).float(),
        n_kept=len(graph.edges),
        clean_ld=torch.cat([pair.contrast.clean_ld for pair in pairs]).float(),
        corrupt_ld=torch.cat([pair.contrast.corrupt_ld for pair in pairs]).float(),
        answers=tuple(texts for pair in pairs for texts in pair.contrast.texts),
        marks=torch.cat([pair.marks for pair in pairs]),
        model=lens.identity,
    )


def pairs_of(
    lens: Lens,
    clean: Prompts,
    corrupt: Prompts,
    answer: Answers,
    against: Answers,
    by_span: bool,
    keep_corrupt: bool,
    same_spans: bool = True,
    tower: bool = False,
) -> Iterable[Pair]:
    """Each batch of pairs, run and taken apart; ScoreError as `find_circuit`."""
    batches = [[each] if isinstance(each, Prompt) else list(each) for each in (clean, corrupt)]
    if len(batches[0]) != len(batches[1]) or not batches[0]:
        raise ScoreError(
            f"expected as many corrupt batches as clean ones, given {len(batches[1])} and {len(batches[0])}"
        )
    n_rows = sum(prompt.n_rows for prompt in batches[0] if isinstance(prompt, Prompt))
    answers = _answers(answer, against, n_rows)
    graph: Graph | JointGraph | None = None
    start = 0
    for one, other in zip(*batches, strict=True):
        stop = start + (one.n_rows if isinstance(one, Prompt) else 0)
        own = None if answers is None else answers[start:stop]
        pair = pair_of(lens, one, other, own, by_span, keep_corrupt, tower)
        if same_spans and graph is not None and pair.whole != graph:
            raise ScoreError(
                f"all batches must have the same spans: {', '.join(graph.spans)}\n"
                f"  one of them has {', '.join(pair.whole.spans)}; give them alone, or by_span=False"
            )
        graph, start = pair.whole, stop
        yield pair


def _answers(answer: Answers, against: Answers, n_rows: int) -> AnswersLike | None:
    """(correct, incorrect) of each pair."""
    if answer is None and against is None:
        return None
    if answer is None or against is None:
        raise ScoreError(
            "give both answers or neither: answer= is right for the clean prompt, against= for the corrupt one"
        )
    columns = [[each] * n_rows if isinstance(each, (str, int)) else list(each) for each in (answer, against)]
    if any(len(column) != n_rows for column in columns):
        given = " and ".join(str(len(column)) for column in columns)
        raise ScoreError(f"expected one answer for all pairs or one each, for {n_rows} pairs; given {given}")
    return list(zip(*columns, strict=True))


def _scores(pair: Pair, method: str, steps: int, progress: bool) -> Float[Tensor, "batch edge"]:
    """The scores of one batch, edge by edge."""
    if method == "exact":
        return _exact(pair, progress)
    try:
        return edge_scores(pair, method, steps)
    except UnfitError as why:
        raise ScoreError(
            f"no circuit can be found in this model: {why}\n"
            "  activation_patching and head_effects measure its activations and heads"
        ) from why


def _exact(pair: Pair, progress: bool) -> Float[Tensor, "batch edge"]:
    """What each row's logit difference loses by each edge, one patched forward an edge."""
    graph, forwards = pair.whole, JointForwards(pair)
    found = torch.empty(len(pair.marks), len(graph.edges), dtype=torch.float64)
    keep = graph.exists.clone()
    everything = forwards.logit_differences(keep)
    with shown_progress(len(graph.edges), progress) as advance:
        for index, (node, entry, span) in enumerate(graph.edges.tolist()):
            keep[node, entry, span] = False
            found[:, index] = everything - forwards.logit_differences(keep, graph.entries[entry].layer)
            keep[node, entry, span] = True
            advance()
    return found
