"""Circuits as values: tables, files, figures, heads; batches; what is refused."""

import copy

import pytest
import torch
from torch import nn

from lmm_lens import Lens
from lmm_lens.circuits import Circuit, find_circuit
from lmm_lens.circuits.figures import connected
from lmm_lens.circuits.graph import Entry, Graph, Node
from lmm_lens.errors import ScoreError
from tests.circuits.pairs import exact
from tests.support.cases import case, hooks_of_ours
from tests.support.color_pairs import color_batch


@pytest.fixture(scope="module")
def pairs(lens):
    """Three pairs of colours, the first question longer by a word, so that the batch is padded."""
    examples = color_batch(lens).examples[:3]
    questions = [a.question for a, _ in examples]
    questions[0] = questions[0].replace("what", "what what")
    prompts = [lens.prompt(questions, images=[pair[i].image for pair in examples]) for i in (0, 1)]
    answers = {"answer": [a.answer for a, _ in examples], "against": [b.answer for _, b in examples]}
    return questions, examples, prompts, answers


@pytest.fixture(scope="module")
def circuit(lens, pairs):
    _, _, prompts, answers = pairs
    return find_circuit(lens, *prompts, method="eap", **answers)


def test_a_left_padded_batch_is_the_mean_of_its_prompts_alone(lens, pairs, circuit):
    questions, examples, prompts, _ = pairs
    assert bool(prompts[0].mask("pad").any())
    alone = []
    for question, pair in zip(questions, examples, strict=True):
        single = [lens.prompt(question, images=example.image) for example in pair]
        answers = {"answer": pair[0].answer, "against": pair[1].answer}
        alone.append(find_circuit(lens, *single, method="eap", **answers).scores)
    scale = circuit.scores.abs().max()
    assert (torch.stack(alone).mean(0) - circuit.scores).abs().max() < 1e-4 * scale
    assert (torch.stack(alone).abs().mean(0) - circuit.sizes).abs().max() < 1e-4 * scale


def test_several_batches_are_one(lens, pairs, circuit):
    questions, examples, _, answers = pairs
    sides = [
        [
            lens.prompt(questions[part], images=[pair[i].image for pair in examples[part]])
            for part in (slice(1), slice(1, 3))
        ]
        for i in (0, 1)
    ]
    found = find_circuit(lens, *sides, method="eap", **answers)
    assert (found.scores - circuit.scores).abs().max() < 1e-4 * circuit.scores.abs().max()
    assert found.answers == circuit.answers
    assert torch.allclose(found.marks, circuit.marks, atol=1e-4)


def test_edges_that_cancel_over_pairs_are_ranked_by_size_only_if_asked_for(lens, pairs, circuit):
    _, _, prompts, answers = pairs
    hidden = find_circuit(lens, *prompts, method="eap", average="absolute", **answers)
    assert torch.equal(hidden.scores, circuit.scores)
    assert torch.equal(circuit.order, circuit.scores.abs().argsort(descending=True, stable=True))
    assert torch.equal(hidden.order, circuit.sizes.argsort(descending=True, stable=True))
    assert (circuit.sizes >= circuit.scores.abs() - 1e-6).all()
    assert circuit.sizes.max() > circuit.scores.abs().max() or not torch.equal(hidden.order, circuit.order)


def test_by_span_the_edges_add_up_to_those_of_the_whole(lens, pairs, circuit):
    _, _, prompts, answers = pairs
    whole = find_circuit(lens, *prompts, method="eap", by_span=False, **answers)
    assert whole.graph.spans == ("all",)
    added = torch.zeros(circuit.graph.exists.shape[:2])
    node, entry, _ = circuit.graph.edges.T
    added.index_put_((node, entry), circuit.scores, accumulate=True)
    node, entry, _ = whole.graph.edges.T
    torch.testing.assert_close(added[node, entry], whole.scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off_and_leaves_the_model_as_it_was(lens, pairs, circuit, context):
    _, _, prompts, answers = pairs
    model = copy.deepcopy(lens.model)
    own = Lens(model, lens.processor)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    with context():
        found = find_circuit(own, *prompts, method="eap", **answers)
    assert torch.equal(found.scores, circuit.scores)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
    assert all(p.grad is None for p in model.parameters())
    assert hooks_of_ours(model) == []


def test_a_table_has_the_best_first(circuit):
    table = circuit.top(40).to_pandas()
    assert list(table) == ["node", "entry", "span", "score", "size"]
    assert len(table) == 40
    assert table["score"].abs().is_monotonic_decreasing
    assert sorted(table["node"][:2]) == ["L1H4", "embed"]
    assert "<table" in circuit._repr_html_()


def test_it_says_what_it_is(circuit):
    told = repr(circuit.top(100))
    assert told.startswith("Circuit by eap: 100 of 16,232 edges between 55 nodes and 151 entries at 5 spans, mean of 3")
    assert "embed to L1H4.v at image +" in told
    assert "L1H4 to logits at last +" in told


def test_heads_are_those_its_edges_leave_or_enter():
    it = exact("llava", 2)
    circuit = find_circuit(it.lens, *it.prompts, method="eap", **it.answers)
    for n in (1, 5, 20):
        expected = set()
        for node, entry, _ in circuit.top(n).to_pandas()[["node", "entry", "span"]].itertuples(index=False):
            if "H" in node:
                expected.add(tuple(map(int, node[1:].split("H"))))
            if "KV" in entry:  # two query heads share one
                layer, head = map(int, entry[1:].split(".")[0].split("KV"))
                expected |= {(layer, 2 * head), (layer, 2 * head + 1)}
            elif "H" in entry:
                expected.add(tuple(map(int, entry[1:].split(".")[0].split("H"))))
        assert set(circuit.top(n).heads) == expected


def test_a_circuit_is_saved_and_read_back(lens, circuit, tmp_path):
    small = circuit.top(30)
    small.save(tmp_path / "circuit.safetensors")
    again = Circuit.load(tmp_path / "circuit.safetensors", lens)
    assert repr(again) == repr(small)
    assert torch.equal(again.scores, circuit.scores)
    assert again.graph == circuit.graph
    assert again.to_pandas().equals(small.to_pandas())


def test_a_changed_file_and_another_model_are_refused(lens, circuit, tmp_path):
    path = tmp_path / "circuit.safetensors"
    circuit.save(path)
    with pytest.raises(ScoreError, match="was made with another model"):
        Circuit.load(path, case("llava").lens)
    path.write_bytes(path.read_bytes().replace(b"eap", b"EAP", 1))
    with pytest.raises(ScoreError, match="does not have the checksum it was written with"):
        Circuit.load(path)


# ---------------------------------------------------------------------- graphs and figures


def graph_of(**parts):
    return Graph(
        **{"n_heads": (2, 2), "n_kv": (1, 1), "parallel": (False, False), "deepstack": (), "spans": ("image", "last")}
        | parts
    )


def test_the_edges_of_a_small_graph_by_hand():
    graph = graph_of()
    names = [str(node) for node in graph.nodes]
    assert names == ["embed", "L0H0", "L0H1", "L0 MLP", "L1H0", "L1H1", "L1 MLP"]
    into = {str(entry): [] for entry in graph.entries}
    for edge in range(len(graph.edges)):
        node, entry, span = graph.named(edge)
        into[entry].append(f"{node} {span}")
    both = ["embed image", "embed last"]
    assert into["L0H0.q"] == into["L0H1.q"] == into["L0KV0.k"] == into["L0KV0.v"] == both
    assert into["L0 MLP"] == [f"{node} {span}" for node in names[:3] for span in graph.spans]
    assert into["L1KV0.k"] == into["L1KV0.v"] == [f"{node} {span}" for node in names[:4] for span in graph.spans]
    assert into["L1H1.q"] == [f"{node} last" for node in names[:4]]
    assert into["L1 MLP"] == [f"{node} last" for node in names[:6]]
    assert into["logits"] == [f"{node} last" for node in names]


def test_a_parallel_block_has_no_edge_from_its_attention_to_its_feed_forward_part():
    graph = graph_of(parallel=(True, True))
    pairs = {graph.named(edge)[:2] for edge in range(len(graph.edges))}
    assert ("L0H0", "L0 MLP") not in pairs
    assert ("L0H0", "L1 MLP") in pairs
    assert len(graph_of().edges) - len(graph.edges) == 2 * 2 + 2


def test_added_features_are_a_node_at_visual_tokens():
    graph = graph_of(deepstack=(0,))
    found = [graph.named(edge) for edge in range(len(graph.edges))]
    assert graph.nodes[4] == Node("deepstack", 0)
    assert {entry for node, entry, span in found if node == "deepstack 0"} == {"L1KV0.k", "L1KV0.v"}
    assert Entry("k", 1, 0, True) in graph.entries


def test_only_edges_on_a_way_to_the_answer_are_drawn():
    graph = graph_of()
    named = {graph.named(edge): edge for edge in range(len(graph.edges))}
    way = [("embed", "L0KV0.v", "image"), ("L0H1", "L1 MLP", "last"), ("L1 MLP", "logits", "last")]
    loose = [
        ("embed", "L0 MLP", "image"),  # whose output nobody reads
        ("L1H0", "logits", "last"),  # fed by nothing
        ("L0H0", "L1KV0.k", "image"),  # at image tokens, where it read nothing of them: its v is there
    ]
    assert connected(graph, [named[edge] for edge in way + loose[:2]]) == [named[edge] for edge in way]
    with_key = connected(graph, [named[edge] for edge in (*way, loose[2], loose[1])])
    assert named[loose[2]] in with_key  # L0H0 shares its v with L0H1, and L1H0 its k
    assert named[loose[1]] in with_key
    assert connected(graph, [named[edge] for edge in loose]) == []


def test_the_graph_is_drawn_with_a_lane_a_span_and_a_line_an_edge(circuit, tmp_path):
    from matplotlib.patches import PathPatch

    small = circuit.top(40)
    ax = small.plot()
    drawn = [patch for patch in ax.patches if isinstance(patch, PathPatch)]
    assert len(drawn) == len(connected(small.graph, small.kept.tolist()))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["image", "last"]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == sorted(labels)
    colors = {patch.get_edgecolor()[:3] for patch in drawn}
    assert len(colors) <= 2
    widths = [patch.get_linewidth() for patch in drawn]
    assert max(widths) == pytest.approx(5.0)
    ax.figure.savefig(tmp_path / "circuit.png")
    assert (tmp_path / "circuit.png").stat().st_size > 10_000


def test_a_graph_of_nothing_is_refused(circuit):
    with pytest.raises(
        ScoreError, match=r"none of the 1 best edges is on a way from the prompt to the answer\n  look at"
    ):
        circuit.top(1).plot()


# ---------------------------------------------------------------------- what is refused


def test_prompts_that_do_not_differ_are_refused(lens, pairs):
    _, _, prompts, answers = pairs
    with pytest.raises(ScoreError, match="the clean and the corrupt run have the same logit difference in every pair"):
        find_circuit(lens, prompts[0], prompts[0], **answers)
    with pytest.raises(ScoreError, match=r"the model answers .* clean and corrupt"):
        find_circuit(lens, prompts[0], prompts[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "eap_ig"}, "unknown method 'eap_ig', did you mean 'eap-ig'"),
        ({"average": "sum"}, "unknown average 'sum'\n  valid: signed, absolute"),
        ({"steps": 0}, "has at least 1 point, given steps=0"),
        ({"answer": "red"}, "give both answers or neither"),
        ({"answer": ["red"], "against": "blue"}, "for 3 pairs; given 1 and 3"),
    ],
)
def test_arguments_are_checked(lens, pairs, given, message):
    _, _, prompts, _ = pairs
    with pytest.raises(ScoreError, match=message):
        find_circuit(lens, *prompts, **given)


def test_fewer_corrupt_batches_than_clean_ones_are_refused(lens, pairs):
    _, _, prompts, _ = pairs
    with pytest.raises(ScoreError, match="as many corrupt batches as clean ones, given 2 and 1"):
        find_circuit(lens, [prompts[0]], [prompts[1], prompts[1]])


def test_more_edges_than_there_are_are_refused(circuit):
    with pytest.raises(ScoreError, match="0 edges were asked for, expected 1 to 16232"):
        circuit.top(0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mllama", "layer 1 .MllamaCrossAttentionDecoderLayer. attends to pictures by cross-attention"),
        ("qwen3_5", "layer 0 .Qwen3_5DecoderLayer. has no attention heads"),
    ],
)
def test_models_with_other_paths_are_refused(name, message):
    chosen = case(name)
    other = {key: -value if value.is_floating_point() else value for key, value in chosen.inputs.items()}
    with pytest.raises(ScoreError, match=f"no circuit can be found in this model: {message}"):
        find_circuit(chosen.lens, chosen.prompt, chosen.lens.prompt(inputs=other))


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_other_backends_name_the_native_one(backend):
    chosen = case("llava")
    with pytest.raises(
        ScoreError, match=rf"backend '{backend}' does not hand over\n  open the same model with backend="
    ):
        find_circuit(chosen.on(backend), chosen.prompt, chosen.prompt)


class _Leaky(nn.Module):
    """A feed-forward part that also reads the stream behind the library's back."""

    def __init__(self, mlp, layer):
        super().__init__()
        self.mlp, self.seen = mlp, []
        layer.register_forward_pre_hook(lambda module, args: self.seen.append(args[0]))

    def forward(self, x):
        return self.mlp(x) + 0.3 * self.seen.pop()


def test_a_path_that_is_no_edge_is_noticed():
    chosen = case("llava")
    model = copy.deepcopy(chosen.model)
    layer = model.get_decoder().layers[1]
    layer.mlp = _Leaky(layer.mlp, layer)
    lens = Lens(model)
    other = {key: -value if value.is_floating_point() else value for key, value in chosen.inputs.items()}
    prompts = [lens.prompt(inputs=inputs) for inputs in (chosen.inputs, other)]
    with pytest.raises(ScoreError, match="the gradients of what its embeddings reach do not add up to their own"):
        find_circuit(lens, *prompts, answer=3, against=4)
