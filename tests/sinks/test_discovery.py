"""Sinks that were planted are found, all of them and nothing else; where there are none it is said."""

import copy

import pytest
import torch

from lmm_lens import Lens, find_sinks
from lmm_lens.errors import ScoreError
from lmm_lens.sinks import SinkRule
from tests.support.cases import Case, case
from tests.support.models import BOS, FAMILIES, IMAGE, another
from tests.support.oracle import spans
from tests.support.planted import DIMS, WORDS, build, entering, plant, planted


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return planted(request.param)


def planted_tokens(given: Case, inputs) -> list[set[int]]:
    """Which tokens were given the massive activation, by batch row: what enters the decoder says so."""
    x = entering(given.model, inputs)
    return [{i for i in range(x.shape[1]) if float(x[row, i, DIMS[0]]) == 50} for row in range(len(x))]


# ---------------------------------------------------------------------- precision and recall of one


def test_the_planted_dimensions_are_found_and_no_other(family):
    report = find_sinks(family.lens, family.prompt)
    assert report
    assert report.dims == DIMS  # largest first


def test_the_planted_tokens_of_every_layer_are_found_and_no_other(family):
    report = find_sinks(family.lens, family.prompt)
    (expected,) = planted_tokens(family, family.inputs)
    image = spans(family.inputs)["image"][0]
    assert {0 if family.name not in ("paligemma", "paligemma2") else 16} <= expected
    for layer in range(family.n_layers):
        assert set(report.positions(layer)) == expected
        assert set(report.positions(layer, visual=True)) == expected & image
        assert set(report.positions(layer, visual=False)) == expected - image


def test_tokens_of_several_prompts_and_padded_rows_are_found():
    given = planted("llava")
    singles, batch = given.batch()
    prompts = [given.lens.prompt(inputs=batch), given.lens.prompt(inputs=singles[1])]
    report = find_sinks(given.lens, prompts)
    assert report.dims == DIMS
    width = batch["input_ids"].shape[1]
    for row, inputs in enumerate(singles):
        shift = width - inputs["input_ids"].shape[1]
        expected = {i + shift for i in planted_tokens(given, inputs)[0]}
        for layer in range(5):
            assert set(report.positions(layer, prompt=0, row=row)) == expected
    assert {i for i in report.positions(2, prompt=1)} == planted_tokens(given, singles[1])[0]
    table = report.per_layer()
    n_text = [3 * len(WORDS) for _ in table.index]  # an upper bound, to see that the counts are means a row
    assert (table["text"] < n_text).all()
    assert table["layer"].tolist() == [0, 1, 2, 3, 4]
    counts = [len(planted_tokens(given, inputs)[0]) for inputs in (*singles, singles[1])]
    assert (table["text"] + table["visual"]).tolist() == pytest.approx([sum(counts) / 4] * 5)


def test_one_dimension_is_found_as_one():
    model, inputs = build("qwen2_5_vl")
    lens = Lens(plant(model, inputs, dims=(33,)))
    assert find_sinks(lens, lens.prompt(inputs=inputs)).dims == (33,)


def test_the_threshold_lies_in_the_gap_and_its_margin_bounds_it(family):
    """In the middle, by ratio, between the strongest ordinary token and the weakest sink."""
    report = find_sinks(family.lens, family.prompt)
    run = family.lens.run(family.prompt, read=["resid_pre"])
    (expected,) = planted_tokens(family, family.inputs)
    sinks, others = [], []
    for layer in range(family.n_layers):
        x = run.reads["resid_pre", layer][0].double()
        phi = x[:, list(DIMS)].abs().amax(1) / (x.square().mean(1) + 1e-6).sqrt()
        sinks += [float(phi[i]) for i in expected]
        others += [float(phi[i]) for i in range(len(x)) if i not in expected]
    low, high = report.margin
    assert high == pytest.approx(min(sinks), rel=1e-4)
    assert low == pytest.approx(max(max(others), 1.0), rel=1e-4)
    tau, *edges = (phi / (1 - phi**2 / 64) ** 0.5 for phi in (report.threshold, low, high))  # without phi's limit of 8
    assert tau == pytest.approx((edges[0] * edges[1]) ** 0.5, rel=1e-6)
    assert low < report.threshold < high
    assert report.layers == tuple(range(family.n_layers))
    assert report.missed == ()


def test_what_is_large_in_the_outer_layers_alone_is_not_taken_for_a_sink_dimension():
    """Embeddings and what the last layers write have outliers of their own; the middle layers count."""
    model, inputs = build("llava")
    plant(model, inputs)
    layers = model.get_decoder().layers

    def grow(x, value):
        x = x.clone()
        x[:, 0, 20] = value
        return x

    layers[0].register_forward_pre_hook(lambda m, args: (grow(args[0], 300.0), *args[1:]))
    layers[0].register_forward_hook(lambda m, args, out: grow(out, 0.0))
    layers[3].register_forward_hook(lambda m, args, out: grow(out, 300.0))
    lens = Lens(model)
    report = find_sinks(lens, lens.prompt(inputs=inputs))
    assert report.bos_ratio[[0, 4], 20].min() > 6
    assert report.dims == DIMS


def test_half_precision_finds_the_same():
    given = planted("llava")
    half = Lens(copy.deepcopy(given.model).to(torch.bfloat16))
    inputs = {**given.inputs, "pixel_values": given.inputs["pixel_values"].bfloat16()}
    report = find_sinks(half, half.prompt(inputs=inputs))
    assert report.dims == DIMS
    assert set(report.positions(2)) == planted_tokens(given, given.inputs)[0]


# ---------------------------------------------------------------------- the evidence


def test_the_ratios_are_those_of_a_loop():
    given = planted("qwen2_5_vl")
    prompts = [given.inputs, another(given.inputs)]
    report = find_sinks(given.lens, [given.lens.prompt(inputs=inputs) for inputs in prompts])
    first, total = torch.zeros(5, 64, dtype=torch.float64), torch.zeros(5, 64, dtype=torch.float64)
    for inputs in prompts:
        given.reference.run(inputs)
        for layer in range(5):
            x = given.reference.read("resid_pre", layer)[0].double()
            first[layer] += x[0].abs() / (x[0].square().mean() + 1e-6).sqrt() / 2
            total[layer] += x.abs().sum(0)
    torch.testing.assert_close(report.bos_ratio, first.float(), rtol=1e-4, atol=1e-5)
    ratio = total / total.median(1, keepdim=True).values
    torch.testing.assert_close(report.mean_ratio, ratio.float(), rtol=1e-4, atol=1e-4)


def test_the_evidence_is_a_table_of_layers_and_candidates():
    given = planted("llava")
    report = find_sinks(given.lens, given.prompt)
    table = report.to_pandas()
    assert list(table.columns) == ["layer", "dim", "bos_over_rms", "mean_over_median"]
    assert set(table["dim"]) == {*report.dims, *report.dims_by_mean}
    assert len(table) == 5 * table["dim"].nunique()
    row = table[(table["layer"] == 3) & (table["dim"] == 40)].iloc[0]
    assert row["bos_over_rms"] == pytest.approx(float(report.bos_ratio[3, 40]))


def test_the_second_rule_agrees_or_the_report_says_that_it_does_not():
    given = planted("llava")
    report = find_sinks(given.lens, given.prompt)
    assert set(report.dims_by_mean) == set(DIMS)
    assert "dimensions [9, 40] (the mean rule agrees), threshold" in repr(report)
    assert "2.0 text and 2.0 visual sinks a prompt in layers 0 to 4" in repr(report)
    glm = planted("glm4v")
    report = find_sinks(glm.lens, glm.prompt)
    assert report.dims_by_mean == ()
    assert "(the mean rule finds [])" in repr(report)


def test_the_rule_that_is_found_can_be_used():
    given = planted("llava")
    report = find_sinks(given.lens, given.prompt)
    assert report.rule == SinkRule(DIMS, report.threshold, "find_sinks")


def test_the_figure_is_drawn():
    import matplotlib as mpl

    mpl.use("Agg")
    given = planted("llava")
    assert find_sinks(given.lens, given.prompt).plot().has_data()


# ---------------------------------------------------------------------- none


def test_a_model_without_any_is_reported_as_such():
    for name in FAMILIES:
        given = case(name)
        report = find_sinks(given.lens, given.prompt)
        assert not report, name
        assert report.dims == ()
        largest = float(report.bos_ratio.max())
        assert repr(report) == (
            "SinkReport: this model shows no massive activation: the largest |x[d]| / rms at the first token is "
            f"{largest:.1f} of at most 8.0. VAR has nothing to redistribute."
        )
        assert all(report.positions(layer) == () for layer in range(given.n_layers))
        assert report.per_layer()[["text", "visual"]].sum().sum() == 0


def test_a_first_token_that_is_large_in_every_dimension_is_none():
    """Massive is what stands out from the token's own other dimensions."""
    model, inputs = build("llava")
    with torch.no_grad():
        model.get_input_embeddings().weight[BOS] *= 1000
    lens = Lens(model)
    assert not find_sinks(lens, lens.prompt(inputs=inputs))


def test_a_dimension_that_is_large_in_every_token_alike_gives_no_threshold_between_them():
    """All tokens are equal in it: there is nothing to tell sinks from ordinary tokens by."""
    model, inputs = build("llava")

    def everywhere(module, args, kwargs):
        x = (args[0] if args else kwargs["hidden_states"]).clone()
        x[..., 9] = 50
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    model.get_decoder().layers[0].register_forward_pre_hook(everywhere, with_kwargs=True)
    lens = Lens(model)
    report = find_sinks(lens, lens.prompt(inputs=inputs))
    assert not report or len(report.positions(2)) < 5, f"every second token a sink, margin {report.margin}"


def test_no_prompts_are_refused():
    with pytest.raises(ScoreError, match="no prompts were given"):
        find_sinks(case("llava").lens, [])


def test_a_prompt_without_a_picture_will_do():
    given = planted("llava")
    words = {"input_ids": torch.tensor([[BOS, 5, 6, 62, 41]])}
    report = find_sinks(given.lens, given.lens.prompt(inputs=words))
    assert report.dims == DIMS
    assert report.positions(3) == (0, 3)
    assert report.positions(3, visual=True) == ()


def test_looking_changes_nothing():
    given = planted("llava")
    before = given.lens.run(given.prompt).logits
    find_sinks(given.lens, given.prompt)
    assert torch.equal(given.lens.run(given.prompt).logits, before)
    assert int((given.inputs["input_ids"] == IMAGE).sum()) == 16
