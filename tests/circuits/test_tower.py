"""Circuits that begin in the vision tower: against autograd and brute force on the Hugging Face model, in fp64."""

import copy
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from lmm_lens import AblateHeads, Circuit, Lens, find_circuit
from lmm_lens.bundled import shapes
from lmm_lens.circuits.find import pairs_of
from lmm_lens.circuits.measure import random_like
from lmm_lens.circuits.patched import JointForwards
from lmm_lens.circuits.unpacked import UnpackedLayer, check_thirds, unpacked
from lmm_lens.errors import ScoreError
from lmm_lens.replay import UnfitError
from tests.circuits.slow_tower import SlowTower
from tests.support.by_hand import repainted
from tests.support.evidence import picture
from tests.support.families import lens_of, prompt_of

CLOSE = 2e-6  # of the largest score; norms of the decoders round to fp32 whatever the model's precision
LAYERS = {
    "llava siglip 60": "model.vision_tower.encoder.layers",
    "vipllava": "model.vision_tower.encoder.layers",
    "paligemma": "model.vision_tower.encoder.layers",
    "llava_next": "model.vision_tower.encoder.layers",
    "gemma3": "model.vision_tower.encoder.layers",
    "idefics2": "model.vision_model.encoder.layers",
    "idefics3": "model.vision_model.encoder.layers",
    "smolvlm": "model.vision_model.encoder.layers",
    "aya_vision": "model.vision_tower.encoder.layers",
    "internvl": "model.vision_tower.encoder.layer",
    "qwen2_vl": "model.visual.blocks",
    "qwen2_5_vl": "model.visual.blocks",
    "video_llama_3": "model.vision_model.encoder.layers",
    "paddleocr_vl": "model.visual.vision_model.encoder.layers",
    "qwen3_vl": "model.visual.blocks",
    "granite4_vision": "model.vision_tower.encoder.layers",
}
READS = {"vipllava": (0, 1), "qwen3_vl": (0, 1, 2)}
"""Layers that the projector reads from, where there are several."""
QUICK = ("paligemma", "llava_next", "internvl", "qwen2_5_vl", "vipllava", "qwen3_vl")
OTHERS = (
    "qwen2_vl",
    "video_llama_3",
    "paddleocr_vl",
    "llava siglip 60",
    "gemma3",
    "idefics2",
    "idefics3",
    "smolvlm",
    "aya_vision",
    "granite4_vision",
)
FAMILIES = [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)]


PAIR = [picture(90, 60), picture(60, 90)]


@cache
def exact(name):
    """A family in fp64 whose tower counts, a pair of prompts, and its edges by hand."""
    name, is_pair = name.removesuffix(" pair"), name.endswith(" pair")
    model = copy.deepcopy(lens_of(name).model).double()
    inside = set(map(id, model.get_decoder().parameters()))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and id(parameter) not in inside and parameter.shape[0] < 200:
                parameter.mul_(4)
        for name_of, parameter in model.named_parameters():
            if "lambda_" in name_of:  # one number in a fresh model, and not in a trained one
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
    given = lens_of(name).prompt("Compare.", images=PAIR).inputs if is_pair else prompt_of(name).inputs
    clean = {key: each.double() if each.is_floating_point() else each for key, each in given.items()}
    corrupt = repainted(clean)
    with torch.no_grad():
        apart = model(**clean).logits[0, -1] - model(**corrupt).logits[0, -1]
    ids = int(apart.argmax()), int(apart.argmin())
    lens = Lens(model)
    layers = list(model.get_submodule(LAYERS[name]))[: lens.vision.n_used] if name in LAYERS else []
    slow = SlowTower(model, layers, clean, corrupt, ids, READS.get(name, ())) if layers else None
    prompts = [lens.prompt(inputs=inputs) for inputs in (clean, corrupt)]
    return SimpleNamespace(lens=lens, prompts=prompts, slow=slow, answers={"answer": ids[0], "against": ids[1]})


def masks_of(it, graph):
    """The tokens of each span of the tower, Bool[span, row, token]."""
    tower = it.lens.run(it.prompts[0], read=["vision.z"]).tower
    return torch.stack([tower.mask(span) for span in graph.spans])


def of_tower(circuit):
    """The tower's scores as [node, entry, span], 0 where there is no edge."""
    graph = circuit.graph.tower
    found = torch.zeros(graph.exists.shape, dtype=torch.float64)
    node, entry, span = graph.edges.T
    found[node, entry, span] = circuit.scores[len(circuit.graph.decoder.edges) :].double()
    return found


def assert_close(found, expected):
    assert (found - expected).abs().max() <= CLOSE * expected.abs().max() + 1e-12
    assert float(expected.abs().max()) > 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_eap_equals_autograd_with_an_input_for_every_entry(name):
    it = exact(name)
    circuit = find_circuit(it.lens, *it.prompts, method="eap", tower=True, **it.answers)
    graph = circuit.graph.tower
    expected = it.slow.scores(graph.nodes, graph.entries, masks_of(it, graph))
    assert_close(of_tower(circuit), expected.where(graph.exists, 0.0))
    plain = find_circuit(it.lens, *it.prompts, method="eap", **it.answers)
    n = len(plain.graph.edges)
    assert plain.graph == circuit.graph.decoder
    torch.testing.assert_close(circuit.scores[:n], plain.scores, atol=float(1e-5 * plain.scores.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("name", ["paligemma", "qwen3_vl", pytest.param("llava_next", marks=pytest.mark.long)])
def test_eap_ig_is_the_mean_over_the_midpoints_of_the_line_before_the_tower(name):
    it = exact(name)
    circuit = find_circuit(it.lens, *it.prompts, steps=3, tower=True, **it.answers)
    graph = circuit.graph.tower
    expected = it.slow.scores(graph.nodes, graph.entries, masks_of(it, graph), (1 / 6, 1 / 2, 5 / 6))
    assert_close(of_tower(circuit), expected.where(graph.exists, 0.0))


def test_the_edges_out_of_the_patches_add_up_to_the_gap(lens):
    """Completeness: the pictures are all that differs."""
    prompts, answers = asked(lens, shapes.color_pairs(1, seed=0))
    off = []
    for steps in (5, 20):
        circuit = find_circuit(lens, *prompts, steps=steps, tower=True, **answers)
        out = circuit.graph.edges[:, 0] == len(circuit.graph.decoder.nodes)
        gap = float((circuit.clean_ld - circuit.corrupt_ld).mean())
        off.append(abs(float(circuit.scores[out].double().sum()) - gap) / gap)
    assert off[0] < 0.05
    assert off[1] < 4e-3


def test_exact_is_one_forward_an_edge():
    it = exact("paligemma")
    (pair,) = pairs_of(it.lens, *it.prompts, *it.answers.values(), True, True, tower=True)
    forwards, graph, masks = JointForwards(pair), pair.whole, masks_of(it, pair.tower.graph)
    everything = float(forwards.logit_differences(graph.exists))
    for edge, (node, entry, span) in list(enumerate(graph.tower.edges.tolist()))[::3]:
        keep = graph.exists.clone()
        keep[tuple(graph.edges[len(graph.decoder.edges) + edge].tolist())] = False
        into = tuple(graph.tower.entries[entry])[:3]
        by_hand = it.slow.without(tuple(graph.tower.nodes[node]), into, masks[span])
        assert everything - float(forwards.logit_differences(keep)) == pytest.approx(by_hand, abs=2e-6)


@pytest.mark.long
def test_method_exact_scores_edges_of_both():
    it = exact("paligemma")
    circuit = find_circuit(it.lens, *it.prompts, method="exact", by_span=False, tower=True, **it.answers)
    graph, everything = circuit.graph.tower, torch.ones(1, 16)
    assert circuit.graph.spans == ("all", "vision all")
    found = of_tower(circuit)
    for node, entry, _ in graph.edges.tolist()[::5]:
        by_hand = it.slow.without(tuple(graph.nodes[node]), tuple(graph.entries[entry])[:3], everything)
        assert float(found[node, entry, 0]) == pytest.approx(by_hand, abs=2e-6)
    eap = find_circuit(it.lens, *it.prompts, method="eap", by_span=False, tower=True, **it.answers)
    assert eap.rank_correlation(circuit) > 0.6


@pytest.mark.parametrize("name", QUICK)
def test_edges_that_are_not_kept_carry_their_corrupt_value(name):
    it = exact(name)
    (pair,) = pairs_of(it.lens, *it.prompts, *it.answers.values(), True, True, tower=True)
    forwards, graph, masks = JointForwards(pair), pair.whole, masks_of(it, pair.tower.graph)
    high, low = float(pair.contrast.clean_ld), float(pair.contrast.corrupt_ld)
    tower = graph.exists.clone()
    tower[: len(graph.decoder.nodes)] = False
    assert float(forwards.logit_differences(graph.exists)) == pytest.approx(high, abs=1e-6)
    assert float(forwards.logit_differences(torch.zeros_like(tower))) == pytest.approx(low, abs=1e-6)
    assert float(forwards.logit_differences(graph.exists & ~tower)) == pytest.approx(low, abs=1e-6)
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        chosen = torch.rand(tower.shape, generator=draw) < 0.7
        keep = graph.exists & ~tower | tower & chosen
        _, mine = graph.split(keep)
        nodes, entries = (
            {tuple(each)[:3]: i for i, each in enumerate(x)} for x in (graph.tower.nodes, graph.tower.entries)
        )

        def kept(node, entry, mine=mine, nodes=nodes, entries=entries):
            return torch.einsum("s,srt->rt", mine[nodes[node], entries[entry]].double(), masks.double())

        found = float(forwards.logit_differences(keep))
        assert found == pytest.approx(it.slow.patched(kept), abs=2e-6)
        assert abs(found - high) > 1e-4 * abs(high - low)


# ---------------------------------------------------------------------- on the bundled model


def asked(lens, pairs):
    prompts = [lens.prompt([p[i].question for p in pairs], images=[p[i].image for p in pairs]) for i in (0, 1)]
    return prompts, {"answer": [p[0].answer for p in pairs], "against": [p[1].answer for p in pairs]}


@pytest.fixture(scope="module")
def found(lens):
    prompts, answers = asked(lens, shapes.color_pairs(2, seed=0))
    return find_circuit(lens, *prompts, tower=True, **answers)


def test_a_batch_is_the_mean_of_its_prompts(lens, found):
    alone = []
    for pair in shapes.color_pairs(2, seed=0):
        prompts, answers = asked(lens, [pair])
        alone.append(find_circuit(lens, *prompts, tower=True, **answers).scores)
    torch.testing.assert_close(found.scores, torch.stack(alone).mean(0), atol=2e-4, rtol=1e-3)


def test_few_edges_of_both_are_faithful_and_random_ones_are_not(lens, found, tmp_path):
    prompts, answers = asked(lens, shapes.color_pairs(12, seed=0)[8:])
    curve = found.faithfulness(lens, *prompts, sizes=[0, 60, 500, found.n_edges], n_random=1, **answers)
    assert curve.values.tolist() == pytest.approx([0, *curve.values[1:3].tolist(), 1], abs=1e-3)
    assert float(curve.values[1]) > 0.5
    assert float(curve.values[2]) > 0.9
    assert float(curve.random_values[0, 1]) < 0.2
    small = found.smallest(curve, 0.9)
    small.save(tmp_path / "circuit.safetensors")
    back = Circuit.load(tmp_path / "circuit.safetensors", lens)
    assert repr(back) == repr(small)
    assert back.graph == small.graph
    assert (small.tower_heads.part, small.heads.part) == ("vision", "decoder")
    assert lens.run(prompts[0], [AblateHeads(small.tower_heads)]).reports[0].n_edits > 0


def test_names_tell_the_tower_from_the_decoder(found):
    table = found.to_pandas()
    tower = table[table["span"].str.startswith("vision ")]
    assert len(tower) == len(found.graph.tower.edges)
    assert set(tower["span"]) == {"vision image", "vision class"}
    assert {"patches", "V0 MLP", "V2H3"} <= set(tower["node"])
    assert {"projector", "V1H0.q", "V2 MLP"} <= set(tower["entry"])
    assert not set(tower["node"]) & set(table[~table["span"].str.startswith("vision ")]["node"])


def test_a_random_circuit_has_as_many_edges_in_the_tower(found):
    mask = random_like(found, 300, torch.Generator().manual_seed(0))
    for mine, other in zip(found.graph.split(mask), found.graph.split(found.mask(300)), strict=True):
        assert int(mine.sum()) == int(other.sum()) > 0


def test_the_figure_has_the_tower_below_the_decoder(found):
    ax = found.top(80).plot(n=80)
    at = {text.get_text(): text.get_position() for text in ax.texts}
    assert {"patches", "projector", "embed", "logits", "V2.2", "1.4"} <= set(at)
    heights = [at[name][1] for name in ("patches", "V2.2", "projector", "embed", "1.4", "logits")]
    assert heights == sorted(heights)
    assert len(set(heights)) == 6
    lanes = [label.get_text() for label in ax.get_xticklabels()]
    assert lanes[int(at["projector"][0])] == "vision image"
    assert lanes[int(at["embed"][0])] == "image"
    assert [label.get_text() for label in ax.get_yticklabels()][:3] == ["V layer 0", "V layer 1", "V layer 2"]


def test_a_circuit_of_the_decoder_has_no_heads_of_the_tower(lens):
    prompts, answers = asked(lens, shapes.color_pairs(1, seed=0))
    circuit = find_circuit(lens, *prompts, method="eap", **answers)
    with pytest.raises(ScoreError, match=r"begins in the decoder: find_circuit\(..., tower=True\)"):
        circuit.tower_heads  # noqa: B018


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (
            "deepseek_vl_hybrid",
            "not all of a picture comes through layer 1 of its vision tower: features of other layers",
        ),
        ("fast_vlm", "no vision tower with attention heads was found"),
    ],
)
def test_towers_with_other_paths_are_refused(name, why):
    lens = lens_of(name)
    given = {**prompt_of(name).inputs}
    pair = [lens.prompt(inputs=inputs) for inputs in (given, repainted(given))]
    with pytest.raises(ScoreError, match=rf"no circuit can be found in this model: .*({why})"):
        find_circuit(lens, *pair, tower=True, answer=5, against=7)


def test_a_projector_that_reads_several_layers_has_an_entry_at_each(tmp_path):
    it = exact("vipllava")
    circuit = find_circuit(it.lens, *it.prompts, method="eap", tower=True, **it.answers)
    table = circuit.to_pandas()
    from_heads = table[table["node"].str.startswith("V1H")]
    assert set(table[table["entry"] == "projector behind V0"]["node"]) == {"patches", "V0H0", "V0H1", "V0 MLP"}
    assert set(from_heads["entry"]) == {"V1 MLP", "projector"}
    circuit.save(tmp_path / "circuit.safetensors")
    back = Circuit.load(tmp_path / "circuit.safetensors", it.lens)
    assert back.graph == circuit.graph
    assert back.graph.tower.reads == (0,)
    texts = circuit.plot(n=circuit.n_edges).texts
    heights = {
        name: sorted({round(text.get_position()[1], 3) for text in texts if text.get_text() == name})
        for name in ("V0.0", "projector", "V1.0")
    }
    early, late = heights["projector"]
    assert heights["V0.0"][0] < early < heights["V1.0"][0] < late


def test_two_packed_pictures_are_one_row_and_edges_by_hand():
    """Each attends to itself alone; nothing is mixed up between them."""
    it = exact("qwen2_vl pair")
    circuit = find_circuit(it.lens, *it.prompts, method="eap", tower=True, **it.answers)
    graph = circuit.graph.tower
    expected = it.slow.scores(graph.nodes, graph.entries, masks_of(it, graph))
    assert_close(of_tower(circuit), expected.where(graph.exists, 0.0))


def test_a_projection_in_one_whose_heads_lie_elsewhere_is_refused():
    lens = lens_of("qwen2_vl")
    layer = UnpackedLayer.of(lens.adapter.tower.layers[0], packed=True)
    x = torch.randn(1, 8, layer.n_heads * layer.d_head)
    given = {"cu_seqlens": torch.tensor([0, 8]), "position_embeddings": (torch.ones(8, layer.d_head),) * 2}

    def run(index, each, x):
        with unpacked((each,)):
            return each.module(x, **given)

    check_thirds(run, layer, x)
    backwards = layer.output_projection.register_forward_pre_hook(lambda module, args: (args[0].flip(-1),))
    try:
        with pytest.raises(UnfitError, match="Attention projects q, k and v in one, in an order that is not known"):
            check_thirds(run, layer, x)
    finally:
        backwards.remove()
    assert all("forward" not in module.__dict__ for module in layer.module.modules())


def test_a_batch_whose_tiles_are_not_told_apart_is_refused():
    lens, one = lens_of("llava_next"), prompt_of("llava_next")
    picture = one.images[0][0]
    batches = [
        lens.prompt(["What?", "What?"], images=[each, each])
        for each in (picture, picture.rotate(90).resize(picture.size))
    ]
    with pytest.raises(ScoreError, match="rows for 2 prompts, so that it is not known which is whose"):
        find_circuit(lens, *batches, tower=True, answer=5, against=7)


def test_with_deepstack_what_is_added_later_comes_through_the_projector():
    it = exact("qwen3_vl")
    circuit = find_circuit(it.lens, *it.prompts, method="eap", tower=True, **it.answers)
    graph = circuit.graph
    assert graph.decoder.deepstack == (0, 1)
    assert graph.tower.reads == (0, 1)
    names = [str(entry) for entry in graph.entries]
    assert [name for name in names if name.startswith("projector")] == [
        "projector behind V0",
        "projector behind V1",
        "projector",
    ]
    (pair,) = pairs_of(it.lens, *it.prompts, *it.answers.values(), True, True, tower=True)
    with torch.no_grad():
        streams = [final.clone() for final in JointForwards(pair).tower.leaving(graph.tower.exists)]
        embed, added = pair.tower.entering(streams, pair.clean.embed)
    assert added.keys() == {0, 1}
    for made, theirs in [(embed, pair.clean.embed), *((added[layer], pair.clean.added[layer]) for layer in added)]:
        assert (made - theirs).abs().max() <= 1e-9 * theirs.abs().max()
    streams[0] = streams[0].flip(-1)  # behind the first layer: of the decoder it reaches what is added alone
    with torch.no_grad():
        other, later = pair.tower.entering(streams, pair.clean.embed)
    assert torch.equal(other, embed)
    assert not torch.allclose(later[0], added[0])
    torch.testing.assert_close(later[1], added[1], atol=1e-12, rtol=1e-12)  # a difference of streams
