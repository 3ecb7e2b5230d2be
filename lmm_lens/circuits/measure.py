"""Measure a circuit: its best edges kept alone in real forwards, and random edges beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ScoreError
from ..patching.task import shown_progress
from ..runs import files
from ..warnings import warn
from .circuit import Circuit, mask_of
from .faithfulness import Faithfulness
from .graph import WHOLE, Graph
from .joint_graph import JointGraph
from .pair import Pair
from .patched import JointForwards

if TYPE_CHECKING:
    from ..lens import Lens
    from .find import Answers, Prompts

PERCENT = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
"""Of a model's edges, by default."""


def measure(
    circuit: Circuit,
    lens: Lens,
    clean: Prompts,
    corrupt: Prompts,
    answer: Answers,
    against: Answers,
    sizes: Sequence[int] | None,
    n_random: int,
    seed: int,
    progress: bool,
) -> Faithfulness:
    """See `Circuit.faithfulness`."""
    from .find import pairs_of

    files.check_same_model("this circuit", circuit.model, lens.identity, "find it again with this model")
    chosen = sizes_of(circuit.n_edges, sizes)
    draw = torch.Generator().manual_seed(seed)
    masks = [circuit.mask(n) for n in chosen]
    controls = [[random_like(circuit, n, draw) for n in chosen] for _ in range(n_random)]
    tower = isinstance(circuit.graph, JointGraph)
    by_span = circuit.graph.spans[:1] != (WHOLE,)
    lds: list[Tensor] = []
    contrasts, marks = [], []
    pairs = pairs_of(lens, clean, corrupt, answer, against, by_span, True, same_spans=False, tower=tower)
    with shown_progress(len(chosen) * (1 + n_random), progress) as advance:
        for pair in pairs:
            spans = _spans_in(circuit.graph, pair)
            forwards = JointForwards(pair)
            found = []
            for keep in (*masks, *(mask for row in controls for mask in row)):
                found.append(forwards.logit_differences(keep[:, :, spans]))
                advance()
            lds.append(torch.stack(found, 0).float())
            contrasts.append(pair.contrast)
            marks.append(pair.marks)
    clean_ld, corrupt_ld = (
        torch.cat([getattr(c, name) for c in contrasts]).float() for name in ("clean_ld", "corrupt_ld")
    )
    _check_gap(clean_ld, corrupt_ld)
    known = _known(circuit.marks, torch.cat(marks))
    if known:
        warn(
            f"{known} of these {len(clean_ld)} pairs are among those the circuit was found on, so that it looks better "
            "than it is: give others"
        )
    every = torch.cat(lds, 1).unflatten(0, (1 + n_random, len(chosen)))
    return Faithfulness(
        sizes=torch.tensor(chosen),
        per_pair=every[0],
        random=every[1:],
        clean_ld=clean_ld,
        corrupt_ld=corrupt_ld,
        n_edges=circuit.n_edges,
        method=circuit.method,
        n_known=known,
        circuit=circuit.mark,
    )


def curve_of(circuit: Circuit, curve: object, keep: float) -> Faithfulness:
    """What was given as the curve of a circuit; ScoreError for anything else, or another circuit's."""
    if not isinstance(curve, Faithfulness):
        raise ScoreError(
            "smallest needs a measured curve, since scores of single edges do not say what they do together, given "
            f"{curve!r}\n"
            "  curve = circuit.faithfulness(lens, clean, corrupt, ...) on pairs that it was not found on\n"
            f"  circuit.smallest(curve, keep={keep:g})"
        )
    if curve.n_edges != circuit.n_edges or curve.circuit not in ("", circuit.mark):
        raise ScoreError(
            f"this curve is of another circuit, by {curve.method} with {curve.n_edges:,} edges; this one, by "
            f"{circuit.method}, ranks {circuit.n_edges:,} in an order of its own\n"
            "  measure this one: curve = circuit.faithfulness(lens, clean, corrupt, ...)"
        )
    return curve


def sizes_of(n_edges: int, sizes: Sequence[int] | None) -> list[int]:
    """The numbers of edges to keep, ascending; ScoreError for one that there is not."""
    found = [max(1, round(percent / 100 * n_edges)) for percent in PERCENT] if sizes is None else list(sizes)
    wrong = [n for n in found if not 0 <= n <= n_edges]
    if wrong or not found:
        raise ScoreError(f"sizes are numbers of edges, 0 to {n_edges}, given {wrong or 'none'}")
    return sorted(set(found))


def random_like(circuit: Circuit, n: int, draw: torch.Generator) -> Tensor:
    """Random edges, as many between each two layers at each span as the n best have; as a mask."""
    blocks = circuit.graph.blocks()
    chosen = []
    taken = torch.bincount(blocks[circuit.order[:n]], minlength=int(blocks.max()) + 1)
    shuffled = torch.randperm(len(blocks), generator=draw)
    for block in taken.nonzero().flatten().tolist():
        members = shuffled[blocks[shuffled] == block]
        chosen.append(members[: int(taken[block])])
    return mask_of(circuit.graph, torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.long))


def _spans_in(graph: Graph | JointGraph, pair: Pair) -> list[int]:
    """Where a pair's spans are among the circuit's; ScoreError for one that is not."""
    lacking = [span for span in pair.whole.spans if span not in graph.spans]
    if lacking:
        raise ScoreError(
            f"these prompts have tokens in {', '.join(lacking)}, where the circuit has no edges: its spans are "
            f"{', '.join(graph.spans)}\n  find it on prompts of the same form, or with by_span=False"
        )
    return [graph.spans.index(span) for span in pair.whole.spans]


def _check_gap(clean: Tensor, corrupt: Tensor) -> None:
    gap, spread = float((clean - corrupt).mean()), float((clean - corrupt).abs().mean())
    if not abs(gap) > 1e-3 * spread:
        raise ScoreError(
            f"on the mean of these {len(clean)} pairs clean and corrupt have the same logit difference, "
            f"{float(clean.mean()):.4g}, so faithfulness is undefined: 0 / 0\n"
            "  give pairs in which the clean prompt is answered with `answer` rather than `against`"
        )


def _known(mine: Tensor, theirs: Tensor) -> int:
    """How many of their prompts are among mine."""
    if mine.shape[1] != theirs.shape[1]:
        return 0
    scale = mine.abs().amax().clamp_min(1e-30)
    return int(((theirs[:, None] - mine[None]).abs().amax(-1) <= 1e-4 * scale).any(1).sum())
