"""A circuit as a graph: layers up, a lane a span."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ScoreError
from ..figures import new_axes
from .graph import DEEPSTACK, EMBED, HEAD, LOGITS, MLP, WHOLE, Entry, K, Node, Q, V
from .joint_graph import IN_TOWER, JointGraph, TowerEntry, TowerNode

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .circuit import Circuit
    from .graph import Graph

RED, BLUE, GREY, LANE = "#b2182b", "#2166ac", "#8a8a8a", "#f3f3f1"
DASHES = {Q: (0, (1, 1.2)), K: (0, (3, 1.5))}
PROJECTOR = "projector"
MOVE = (0, (1, 2.5))
LANE_WIDTH = 2.3  # inches a span with edges
Place = tuple[float, float]
Spot = tuple[str, int, int, int]
"""What is drawn once: kind, layer, number, lane."""


def connected(graph: Graph | JointGraph, edges: Iterable[int]) -> list[int]:
    """Of some edges, in order, those on a way from what is given to the answer.

    A node's value at a span comes out of entries there, and through a head's k and v out of those at any span.
    """
    found = list(edges)
    while True:
        read, wrote = set[tuple[object, ...]](), set[tuple[object, ...]]()
        for edge in found:
            node, entry, span = _of(graph, edge)
            wrote.add((*_unit_of(node), span))
            for unit in _units_of(graph, entry):
                read.add((*unit, span, entry.kind in (K, V)))
        kept = []
        for edge in found:
            node, entry, span = _of(graph, edge)
            fed = node.kind in (EMBED, DEEPSTACK) or any(
                unit[:3] == _unit_of(node) and (unit[3] == span or unit[4]) for unit in read
            )
            used = entry.kind in (LOGITS, PROJECTOR) or any(
                unit[:3] in _units_of(graph, entry) and (unit[3] == span or entry.kind in (K, V)) for unit in wrote
            )
            if fed and used:
                kept.append(edge)
        if len(kept) == len(found):
            return kept
        found = kept


def _of(graph: Graph | JointGraph, edge: int) -> tuple[Node, Entry, int]:
    """An edge's node, entry and span; those of a vision tower as of layers below the decoder's, numbered below -1."""
    node_number, entry_number, span = graph.edges[edge].tolist()
    node, entry = graph.nodes[node_number], graph.entries[entry_number]
    if isinstance(node, TowerNode):
        node = Node(node.kind.removeprefix(IN_TOWER), node.layer - _below(graph), node.head)
    if isinstance(entry, TowerEntry):
        kind = entry.kind.removeprefix(IN_TOWER)
        layer = entry.layer - (kind == LOGITS and entry.shared)  # one that reads earlier stands at the layer it reads
        entry = Entry(PROJECTOR if kind == LOGITS else kind, layer - _below(graph), entry.head)
    return node, entry, span


def _below(graph: Graph | JointGraph) -> int:
    """How far the layers of a vision tower are drawn below their numbers."""
    return graph.tower.n_layers + 2 if isinstance(graph, JointGraph) else 0


def _unit_of(node: Node) -> tuple[str, int, int]:
    return node.kind, node.layer, node.head


def _units_of(graph: Graph | JointGraph, entry: Entry) -> list[tuple[str, int, int]]:
    """The nodes whose value an entry is part of: under grouped queries k and v are of several heads."""
    if entry.kind in (MLP, LOGITS, PROJECTOR):
        return [(entry.kind, entry.layer, 0)]
    if entry.layer < 0:
        return [(HEAD, entry.layer, entry.head)]
    n, kv = graph.n_heads[entry.layer], graph.n_kv[entry.layer]
    group = n // kv if entry.kind in (K, V) else 1
    return [(HEAD, entry.layer, head) for head in range(entry.head * group, (entry.head + 1) * group)]


def circuit_graph(circuit: Circuit, ax: Axes | None = None, n: int = 60) -> Axes:
    """The circuit as a graph; `Circuit.plot` documents the arguments.

    Raises:
        ScoreError: none of the edges is on a way to the answer.
    """
    graph = circuit.graph
    looked_at = circuit.kept[:n].tolist()
    edges = connected(graph, looked_at)
    if not edges:
        raise ScoreError(
            f"none of the {len(looked_at)} best edges is on a way from the prompt to the answer\n"
            "  look at more of them: plot(n=...)"
        )
    lanes = sorted({span for edge in edges for span in [_of(graph, edge)[2]]} | {graph.answer_span})
    spots = _spots(graph, edges)
    at = _places(graph, lanes, spots)
    height = min(max(3.6, 0.62 * (len(_levels(graph, spots)) + 1)), 14)
    ax = ax or new_axes(LANE_WIDTH * len(lanes) + 1.1, height)
    top = at[LOGITS, graph.n_layers, 0, graph.answer_span][1]
    for lane in range(len(lanes)):
        ax.axvspan(lane + 0.04, lane + 0.96, color=LANE, zorder=0, linewidth=0)
    visual = [
        lane for lane in lanes if graph.spans[lane] == WHOLE or graph.spans[lane].split()[0] in ("image", "video")
    ]
    moved = _draw_moves(ax, at, spots, visual)
    largest = float(circuit.scores[edges].abs().max())
    for edge in reversed(edges):  # the strongest on top
        node, entry, span = _of(graph, edge)
        score = float(circuit.scores[edge])
        start = at[(*_unit_of(node), span)]
        for unit in _units_of(graph, entry):
            if (*unit, span) in at:
                _curve(ax, start, at[(*unit, span)], score, largest, entry.kind)
    _draw_spots(ax, graph, at)
    ax.set_xticks([lane + 0.5 for lane in range(len(lanes))], [graph.spans[span].replace("_", " ") for span in lanes])
    levels = _levels(graph, spots)
    shown = sorted({layer for layer, kind in levels if kind in (HEAD, MLP)})
    middles = [np.mean([y for (at_layer, _), y in levels.items() if at_layer == layer]) for layer in shown]
    ax.set_yticks(
        middles, [f"layer {layer}" if layer >= 0 else f"V layer {layer + _below(graph)}" for layer in shown], fontsize=8
    )
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set(xlim=(0, len(lanes)), ylim=(-0.6, top + 0.6))
    pair = f"{circuit.answers[0][0]!r} against {circuit.answers[0][1]!r}" if len(circuit.answers) == 1 else ""
    told = pair or f"mean of {len(circuit.answers)} pairs"
    ax.set_title(f"{len(edges)} of {circuit.n_edges:,} edges by {circuit.method}, {told}", fontsize=9)
    kinds = {_of(graph, edge)[1].kind for edge in edges}
    _legend(ax, circuit.scores[edges].tolist(), kinds, moved)
    return ax


def _spots(graph: Graph | JointGraph, edges: Sequence[int]) -> list[Spot]:
    """Everything that an edge leaves or enters, at its span."""
    found: dict[Spot, None] = {}
    for edge in edges:
        node, entry, span = _of(graph, edge)
        found[(*_unit_of(node), span)] = None
    wrote = {spot[:3] for spot in found}
    for edge in edges:
        _, entry, span = _of(graph, edge)
        for unit in _units_of(graph, entry):
            if unit in wrote or unit[0] in (LOGITS, PROJECTOR):
                found[(*unit, span)] = None
    return list(found)


def _levels(graph: Graph | JointGraph, spots: Sequence[Spot]) -> dict[tuple[int, str], float]:
    """The height of each layer's heads and feed-forward part that are drawn, one above the other."""
    rank = {EMBED: 0, HEAD: 1, MLP: 2, DEEPSTACK: 3, LOGITS: 4, PROJECTOR: 4}
    present = sorted({(layer, rank[kind], kind) for kind, layer, _, _ in spots})
    return {(layer, kind): float(height) for height, (layer, _, kind) in enumerate(present)}


def _places(graph: Graph | JointGraph, lanes: Sequence[int], spots: Sequence[Spot]) -> dict[Spot, Place]:
    """Where each spot is drawn: a head at the same place in every lane."""
    levels = _levels(graph, spots)
    found: dict[Spot, Place] = {}
    for layer, kind in levels:
        heads = sorted({number for k, at, number, _ in spots if (k, at) == (kind, layer)})
        for spot in spots:
            if (spot[0], spot[1]) == (kind, layer):
                if kind == HEAD:
                    x = 0.13 + 0.52 * (heads.index(spot[2]) + 0.5) / len(heads)
                else:
                    x = {MLP: 0.78, EMBED: 0.4, LOGITS: 0.4, PROJECTOR: 0.4}.get(kind, 0.9)
                found[spot] = (lanes.index(spot[3]) + x, levels[layer, kind])
    return found


def _draw_moves(ax: Axes, at: dict[Spot, Place], spots: Sequence[Spot], visual: Iterable[int]) -> bool:
    """A head that reads in one lane and writes in another carries something across; whether any does."""
    found = False
    for unit in {spot[:3] for spot in spots if spot[0] == HEAD}:
        xs = sorted(place[0] for spot, place in at.items() if spot[:3] == unit)
        y = next(place[1] for spot, place in at.items() if spot[:3] == unit)
        ax.plot([xs[0], xs[-1]], [y, y], color=GREY, linewidth=1.0, linestyle=MOVE, zorder=1)
        found = found or len(xs) > 1
    into = [place for spot, place in at.items() if spot[0] == EMBED and spot[1] == -1 and spot[3] in visual]
    for start in [place for spot, place in at.items() if spot[0] == PROJECTOR]:
        for end in into:  # what the projector gives is what enters the decoder there
            ax.plot(*zip(start, end, strict=True), color=GREY, linewidth=1.0, linestyle=MOVE, zorder=1)
    return found


def _curve(ax: Axes, start: Place, end: Place, score: float, largest: float, kind: str) -> None:
    """An edge, bent outwards where it passes over layers, within its lane."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    share, steps = abs(score) / largest, end[1] - start[1]
    middle = (start[0] + end[0]) / 2
    outwards = 1 if middle % 1 > 0.5 else -1
    bend = 0.0 if steps <= 1 else min(0.24, 0.05 * steps) * outwards
    line = Path([start, (middle + bend, (start[1] + end[1]) / 2), end], [Path.MOVETO, Path.CURVE3, Path.CURVE3])
    ax.add_patch(
        PathPatch(
            line,
            facecolor="none",
            edgecolor=RED if score > 0 else BLUE,
            linewidth=0.5 + 4.5 * share,
            alpha=0.4 + 0.55 * share**0.5,
            linestyle=DASHES.get(kind, "-"),
            zorder=2,
        )
    )


def _draw_spots(ax: Axes, graph: Graph | JointGraph, at: dict[Spot, Place]) -> None:
    for (kind, layer, number, _), (x, y) in at.items():
        named = {EMBED: "embed" if layer == -1 else "patches", LOGITS: "logits", MLP: "MLP", DEEPSTACK: "deepstack"}
        head = f"{layer}.{number}" if layer >= 0 else f"V{layer + _below(graph)}.{number}"
        name = {**named, PROJECTOR: "projector"}.get(kind, head)
        box = {"boxstyle": "round,pad=0.25" if kind == HEAD else "square,pad=0.25", "linewidth": 0.8}
        color = {HEAD: "#ffffff", MLP: "#e8e0cf"}.get(kind, "#d5e3d0")
        ax.text(
            x, y, name, ha="center", va="center", fontsize=6.5, zorder=4, bbox={**box, "fc": color, "ec": "#444444"}
        )


def _legend(ax: Axes, scores: Sequence[float], kinds: Iterable[str], moves: bool) -> None:
    """What is in the figure, and no more."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=color,
            linewidth=0.5 + 4.5 * abs(most) / max(map(abs, scores)),
            label=f"{word}, up to {abs(most):.2g} logits",
        )
        for color, word, most in ((RED, "helps the answer", max(scores)), (BLUE, "hurts it", min(scores)))
        if (most > 0) == (color == RED) and most != 0
    ]
    handles += [
        Line2D([], [], color="#444444", linewidth=1.2, linestyle=DASHES[kind], label=f"into {kind}")
        for kind in DASHES
        if kind in kinds
    ]
    if moves:
        handles.append(Line2D([], [], color=GREY, linewidth=1, linestyle=MOVE, label="a head, from tokens to others"))
    figure = ax.get_figure(root=True)
    if figure is not None and len(figure.axes) == 1:
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    else:
        ax.legend(handles=handles, fontsize=6, frameon=False)
