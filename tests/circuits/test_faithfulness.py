"""Circuits kept alone: against forwards with hooks by hand, at both ends, on prompts they were found on and others."""

from dataclasses import replace

import pytest
import torch

from lmm_lens.circuits import Faithfulness, find_circuit
from lmm_lens.circuits.measure import random_like
from lmm_lens.circuits.pair import pair_of
from lmm_lens.circuits.patched import PatchedForwards
from lmm_lens.errors import ScoreError
from tests.circuits.pairs import exact, masks_of
from tests.support.color_pairs import color_batch


def asked(lens, examples):
    """Prompts and answers of some pairs of examples."""
    sides = [[pair[i] for pair in examples] for i in (0, 1)]
    prompts = [lens.prompt([e.question for e in side], images=[e.image for e in side]) for side in sides]
    return prompts, {"answer": [e.answer for e in sides[0]], "against": [e.answer for e in sides[1]]}


@pytest.fixture(scope="module")
def halves(lens):
    """Three pairs of colours to find a circuit on, and three others."""
    examples = color_batch(lens).examples
    return asked(lens, examples[:3]), asked(lens, examples[3:6])


@pytest.fixture(scope="module")
def circuit(lens, halves):
    prompts, answers = halves[0]
    return find_circuit(lens, *prompts, steps=3, **answers)


@pytest.fixture(scope="module")
def curve(lens, circuit, halves):
    prompts, answers = halves[1]
    return circuit.faithfulness(lens, *prompts, sizes=[0, 20, 100, circuit.n_edges], n_random=2, **answers)


@pytest.mark.parametrize("share", [0.9, 0.3])
@pytest.mark.parametrize("name", ["gemma3", "qwen3_vl", pytest.param("glm4v", marks=pytest.mark.long)])
def test_random_edges_kept_alone_equal_a_forward_with_hooks(name, share):
    it = exact(name)
    pair = pair_of(it.lens, *it.prompts, [it.ids], by_span=True, keep_corrupt=True)
    graph, masks = pair.graph, masks_of(it, pair.graph)
    keep = torch.rand(graph.exists.shape, generator=torch.Generator().manual_seed(3)) < share
    nodes = {tuple(node): i for i, node in enumerate(graph.nodes)}
    entries = {tuple(entry)[:3]: i for i, entry in enumerate(graph.entries)}

    def at(node, entry):
        kept = (keep & graph.exists)[nodes[node], entries[entry]]
        return (masks & kept[:, None]).any(0)

    found = float(PatchedForwards(pair).logit_differences(keep))
    assert found == pytest.approx(it.slow.patched(at), abs=2e-6)
    assert found != pytest.approx(float(pair.contrast.clean_ld), abs=1e-2)


@pytest.mark.parametrize(
    "name", ["llava", "gemma3", *(pytest.param(x, marks=pytest.mark.long) for x in ("qwen3_vl", "glm4v"))]
)
def test_with_every_edge_it_is_the_clean_run_and_with_none_the_corrupt_one(name):
    it = exact(name)
    pair = pair_of(it.lens, *it.prompts, [it.ids], by_span=True, keep_corrupt=True)
    forwards, every = PatchedForwards(pair), torch.ones_like(pair.graph.exists)
    clean, corrupt = (
        float(it.lens.run(prompt, logits="last").logits[0, 0, list(it.ids)].diff().neg()) for prompt in it.prompts
    )
    assert float(forwards.logit_differences(every)) == pytest.approx(clean, abs=2e-6)
    assert float(forwards.logit_differences(~every)) == pytest.approx(corrupt, abs=2e-6)
    assert float(forwards.logit_differences(every, first=2)) == pytest.approx(clean, abs=2e-6)


def test_a_curve_goes_from_the_corrupt_run_to_the_clean_one(lens, curve, halves):
    prompts, _ = halves[1]
    assert curve.values[0] == pytest.approx(0, abs=1e-5)
    assert curve.values[-1] == pytest.approx(1, abs=1e-5)
    logits = [lens.run(prompt, logits="last").logits[:, 0] for prompt in prompts]
    assert curve.n_known == 0
    assert (curve.clean_ld - curve.corrupt_ld).min() > 1
    assert torch.allclose(curve.per_pair[-1], curve.clean_ld, atol=1e-3)
    assert torch.allclose(curve.per_pair[0], curve.corrupt_ld, atol=1e-3)
    assert logits[0].argmax(1).ne(logits[1].argmax(1)).all()


def test_a_hundred_of_sixteen_thousand_edges_carry_the_colour_and_random_ones_do_not(circuit, curve):
    assert circuit.n_edges > 15_000
    assert curve.values[2] > 0.9
    assert curve.random_values[:, 2].abs().max() < 0.2
    assert curve.cpr > 0.9
    assert curve.cmd < 0.1
    assert curve.random_cpr.max() < curve.cpr


def test_areas_are_those_of_straight_lines_between_the_points():
    curve = Faithfulness(
        sizes=torch.tensor([10, 50, 100]),
        per_pair=torch.tensor([[2.0], [6.0], [4.0]]),  # f = .5, 1.5, 1
        random=torch.tensor([[[0.0], [0.0], [4.0]]]),
        clean_ld=torch.tensor([4.0]),
        corrupt_ld=torch.tensor([0.0]),
        n_edges=100,
        method="eap",
        n_known=0,
    )
    assert curve.values.tolist() == [0.5, 1.5, 1.0]
    assert curve.cpr == pytest.approx(0.1 * 0.25 + 0.4 * 1.0 + 0.5 * 1.25)
    assert curve.cmd == pytest.approx(0.1 * 0.75 + 0.4 * 0.5 + 0.5 * 0.25)
    assert curve.random_cpr.tolist() == pytest.approx([0.25])
    assert curve.smallest(0.9) == 50
    assert curve.smallest(0.4) == 10
    with pytest.raises(
        ScoreError, match=r"none of the measured circuits is 2 faithful: the best is 1\.50\n  measure l"
    ):
        curve.smallest(2)


def test_the_smallest_is_the_circuit_cut_to_a_measured_size(circuit, curve):
    small = circuit.smallest(curve, keep=0.9)
    assert small.n_kept in (20, 100)
    assert (small.mask() & ~circuit.mask()).sum() == 0
    assert small.mask().sum() == small.n_kept
    ranked = circuit.scores.abs()
    assert ranked[small.kept].min() >= ranked[circuit.order[small.n_kept :]].max()
    assert small.smallest(curve, keep=0.9).n_kept == small.n_kept  # a part of it has the same order


@pytest.mark.parametrize(("given", "said"), [((), "None"), ((0.9,), "0.9")])
def test_without_a_curve_the_smallest_says_how_to_get_one(circuit, given, said):
    with pytest.raises(ScoreError) as caught:
        circuit.smallest(*given)
    assert str(caught.value).splitlines() == [
        f"smallest needs a measured curve, since scores of single edges do not say what they do together, given {said}",
        "  curve = circuit.faithfulness(lens, clean, corrupt, ...) on pairs that it was not found on",
        "  circuit.smallest(curve, keep=0.9)",
    ]


def test_a_curve_of_another_circuit_is_refused_and_knows_its_own_from_a_file(circuit, curve, tmp_path):
    other = replace(circuit, scores=circuit.scores.flip(0))
    with pytest.raises(
        ScoreError, match=r"this curve is of another circuit, by .* with 16,\d+ edges(.|\n)*measure this one"
    ):
        other.smallest(curve)
    with pytest.raises(ScoreError, match="this curve is of another circuit"):
        circuit.smallest(replace(curve, n_edges=7, circuit=""))
    curve.save(tmp_path / "curve.safetensors")
    again = Faithfulness.load(tmp_path / "curve.safetensors")
    assert again.circuit == curve.circuit == circuit.mark != other.mark
    assert circuit.smallest(again).n_kept == circuit.smallest(curve).n_kept


def test_random_circuits_have_as_many_edges_between_each_two_layers_at_each_span(circuit):
    graph = circuit.graph
    chosen = circuit.mask(300)
    control = random_like(circuit, 300, torch.Generator().manual_seed(1))
    assert (control & ~graph.exists).sum() == 0
    assert not torch.equal(chosen, control)

    def counts(mask):
        found = {}
        for node, entry, span in mask.nonzero().tolist():
            key = graph.nodes[node].layer, graph.entries[entry].layer, span
            found[key] = found.get(key, 0) + 1
        return found

    assert counts(chosen) == counts(control)


def test_prompts_it_was_found_on_are_told_whatever_their_place(lens, circuit):
    both, again = asked(lens, color_batch(lens).examples[:2][::-1])
    with pytest.warns(UserWarning, match="2 of these 2 pairs are among those the circuit was found on"):
        known = circuit.faithfulness(lens, *both, sizes=[50], n_random=0, **again)
    assert known.n_known == 2
    assert "2 of them those it was found on" in repr(known)
    assert len(known.random) == 0


def test_a_curve_is_saved_and_read_back(curve, tmp_path):
    curve.save(tmp_path / "curve.safetensors")
    again = Faithfulness.load(tmp_path / "curve.safetensors")
    assert repr(again) == repr(curve)
    assert again.to_pandas().equals(curve.to_pandas())
    assert list(curve.to_pandas()) == ["edges", "share", "faithfulness", "low", "high", "random", "random_max"]


@pytest.mark.parametrize("sizes", [[-1], [10**6], []])
def test_sizes_that_there_are_not_are_refused(lens, circuit, halves, sizes):
    prompts, answers = halves[1]
    with pytest.raises(ScoreError, match="sizes are numbers of edges, 0 to"):
        circuit.faithfulness(lens, *prompts, sizes=sizes, **answers)


def test_a_mean_gap_of_nothing_is_refused(lens, circuit):
    one, other = color_batch(lens).examples[3]
    (clean, corrupt), _ = asked(lens, [(one, other), (other, one)])
    answers = {"answer": one.answer, "against": other.answer}
    with pytest.raises(ScoreError, match=r"clean and corrupt have the same logit difference.*0 / 0\n  give pairs"):
        circuit.faithfulness(lens, clean, corrupt, sizes=[10], **answers)


def test_other_spans_are_refused(lens, circuit):
    one, other = color_batch(lens).examples[0]
    prompts = [lens.prompt(one.question, images=[e.image, e.image]) for e in (one, other)]
    with pytest.raises(ScoreError, match=r"these prompts have tokens in image 0, image 1.*, where the circuit has no"):
        circuit.faithfulness(lens, *prompts, sizes=[10], answer=one.answer, against=other.answer)
