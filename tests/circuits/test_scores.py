"""Scores of edges against autograd and brute force on the Hugging Face model, in fp64."""

import pytest
import torch

from lmm_lens.circuits import find_circuit
from tests.circuits.pairs import exact, masks_of

CLOSE = 2e-6  # of the largest score; transformers' norms round to fp32 whatever the model's precision
QUICK = ("llava", "gemma3", "qwen3_vl")
OTHERS = (
    "qwen2_vl",
    "qwen2_5_vl",
    "glm4v",
    "mistral3",
    "pixtral_llava",
    "vipllava",
    "video_llava",
    "paligemma",
    "paligemma2",
    "llava_next",
    "llava_onevision",
    "internvl",
    "idefics3",
    "smolvlm",
    "idefics2",
)
FAMILIES = [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)]


def dense(circuit):
    """The scores as [node, entry, span], 0 where there is no edge."""
    found = torch.zeros(circuit.graph.exists.shape, dtype=torch.float64)
    node, entry, span = circuit.graph.edges.T
    found[node, entry, span] = circuit.scores.double()
    return found


def assert_close(found, expected):
    assert (found - expected).abs().max() <= CLOSE * expected.abs().max() + 1e-9


@pytest.mark.parametrize("name", FAMILIES)
def test_eap_equals_autograd_with_an_input_for_every_entry(name):
    it = exact(name)
    circuit = find_circuit(it.lens, *it.prompts, method="eap", **it.answers)
    graph = circuit.graph
    expected = it.slow.scores(graph.nodes, graph.entries, masks_of(it, graph))
    assert_close(dense(circuit), expected.where(graph.exists, 0.0))
    assert len(graph.edges) > 400


@pytest.mark.parametrize("name", QUICK)
def test_where_there_is_no_edge_nothing_reaches_the_answer_or_nothing_was_written_yet(name):
    it = exact(name)
    graph = find_circuit(it.lens, *it.prompts, method="eap", **it.answers).graph
    every = it.slow.scores(graph.nodes, graph.entries, masks_of(it, graph))
    for index, entry in enumerate(graph.entries):
        before = torch.zeros_like(graph.exists[:, index])
        before[: graph.before(entry.layer, entry.kind)] = True
        assert float(every[:, index].where(before & ~graph.exists[:, index], 0.0).abs().max()) < 1e-9


@pytest.mark.parametrize("name", ["qwen3_vl", *(pytest.param(x, marks=pytest.mark.long) for x in ("llava", "gemma3"))])
def test_eap_ig_is_the_mean_over_the_midpoints_of_the_line(name):
    it = exact(name)
    circuit = find_circuit(it.lens, *it.prompts, method="eap-ig", steps=3, **it.answers)
    graph = circuit.graph
    expected = it.slow.scores(graph.nodes, graph.entries, masks_of(it, graph), (1 / 6, 1 / 2, 5 / 6))
    assert_close(dense(circuit), expected.where(graph.exists, 0.0))


@pytest.mark.parametrize("name", ["qwen3_vl", pytest.param("paligemma2", marks=pytest.mark.long)])
def test_the_edges_out_of_what_is_given_add_up_to_the_gap(name):
    """Completeness: the embeddings, and in Qwen3-VL what deepstack adds, are all that differs between the runs."""
    it = exact(name)
    off = []
    for steps in (5, 40):
        circuit = find_circuit(it.lens, *it.prompts, steps=steps, **it.answers)
        given = [i for i, node in enumerate(circuit.graph.nodes) if node.kind in ("embed", "deepstack")]
        gap = float(circuit.clean_ld - circuit.corrupt_ld)
        off.append(abs(float(dense(circuit)[given].sum()) - gap) / gap)
    assert off[0] < 0.1
    assert off[1] < 5e-4


@pytest.mark.parametrize("name", ["llava", pytest.param("gemma3", marks=pytest.mark.long)])
def test_exact_is_one_forward_an_edge(name):
    it = exact(name, 2)
    circuit = find_circuit(it.lens, *it.prompts, method="exact", by_span=False, **it.answers)
    graph = circuit.graph
    everything = torch.ones(it.prompts[0].n_tokens)
    last = it.prompts[0].mask("last")[0].double()
    for score, (node, entry, _) in zip(circuit.scores.tolist(), graph.edges.tolist(), strict=True):
        into = tuple(graph.entries[entry])[:3]
        mask = last if into[0] == "logits" else everything
        assert score == pytest.approx(it.slow.without(tuple(graph.nodes[node]), into, mask), abs=2e-6)


@pytest.mark.long
def test_exact_by_span_is_one_forward_an_edge_and_span():
    it = exact("qwen3_vl", 2)
    circuit = find_circuit(it.lens, *it.prompts, method="exact", **it.answers)
    graph, masks = circuit.graph, masks_of(it, circuit.graph).double()
    assert circuit.graph.deepstack == (0,)  # what is added behind the last layer reaches no last token
    for edge in range(0, len(graph.edges), 13):
        node, entry, span = graph.edges[edge].tolist()
        by_hand = it.slow.without(tuple(graph.nodes[node]), tuple(graph.entries[entry])[:3], masks[span])
        assert float(circuit.scores[edge]) == pytest.approx(by_hand, abs=2e-6)


def test_estimates_rank_edges_as_exact_effects_do():
    it = exact("llava", 2)
    true, eap, ig = (
        find_circuit(it.lens, *it.prompts, method=m, by_span=False, **it.answers) for m in ("exact", "eap", "eap-ig")
    )
    assert eap.rank_correlation(true) > 0.8
    assert ig.rank_correlation(true) > 0.6
    assert true.rank_correlation(true) == pytest.approx(1)
