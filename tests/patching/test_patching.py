"""What patching finds on the bundled model, what the spans are, and answers known without running it."""

import pytest
import torch

from lmm_lens import AblateHeads, Intervention, Lens
from lmm_lens.bundled import shapes
from lmm_lens.patching import activation_patching, attribution_patching
from tests.support.by_hand import repainted
from tests.support.cases import case, close, hooks_of_ours
from tests.support.color_pairs import batch, color_batch


@pytest.fixture(scope="module")
def asked(lens):
    return color_batch(lens)


@pytest.fixture(scope="module")
def spans(lens, asked):
    """The residual stream by span, with the changed object's patches and all other patches."""
    groups = {"object": asked.objects, "other patches": asked.others}
    return activation_patching(lens, asked.clean, asked.corrupt, groups=groups)


# ---------------------------------------------------------------------- the known phenomenon


def test_the_answer_moves_from_the_objects_patches_to_the_last_token(spans):
    effect = {name: spans.values[:, i] for i, name in enumerate(spans.units)}
    assert (effect["object"][:2] > 0.98).all()  # at first it lies in the object's four patches alone
    assert (effect["last"][:2].abs() < 0.02).all()
    assert (effect["last"][4:] > 0.85).all()  # and late at the place where it is spoken
    assert (effect["object"][4:] < 0.2).all()
    assert (effect["last"].diff() > -0.02).all()  # it moves one way
    assert (effect["other patches"].abs() < 0.02).all()
    for name in ("bos", "before_image", "question"):
        assert (effect[name].abs() < 0.02).all()
    torch.testing.assert_close(effect["image"], effect["object"], atol=0.02, rtol=0)


def test_the_logit_differences_are_those_of_the_right_answers(lens, asked, spans):
    assert spans.answers == tuple((clean.answer, corrupt.answer) for clean, corrupt in asked.examples)
    assert (spans.clean_ld > 3).all()
    assert (spans.corrupt_ld < -3).all()


def test_few_heads_carry_it_to_the_last_token_and_move_it_all_together(lens, asked):
    heads = activation_patching(lens, asked.clean, asked.corrupt, "z", "head", rows="last")
    assert float(heads.values.sum()) == pytest.approx(1, abs=0.35)
    best = heads.top(3)
    assert sum(float(heads.values[head]) for head in best) > 0.6
    assert float(heads.values.abs().median()) < 0.01
    assert heads.rows == "last"


# ---------------------------------------------------------------------- known answers


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "mllama"])
def test_patching_everything_that_leaves_the_last_layer_restores_the_clean_run(name):
    chosen = case(name)
    prompts = [chosen.lens.prompt(inputs=x) for x in (chosen.inputs, repainted(chosen.inputs))]
    everything = {"everything": prompts[0].mask("all")}
    given = activation_patching(
        chosen.lens, *prompts, "resid_post", groups=everything, layers=[chosen.n_layers - 1], answers=[(11, 12)]
    )
    effect = dict(zip(given.units, given.values[0].tolist(), strict=True))
    assert effect["everything"] == pytest.approx(1, abs=1e-5)
    assert effect["last"] == pytest.approx(1, abs=1e-5)  # nothing else reaches the logits from here
    assert effect["image"] == pytest.approx(0, abs=1e-5)


def test_all_tokens_of_a_row_are_in_one_span_each(spans, asked, lens):
    from lmm_lens.patching.units import Units

    units = Units.of("span", asked.corrupt, lens.n_heads)
    assert units.names == ("bos", "before_image", "image", "question", "last")
    assert spans.units == (*units.names, "object", "other patches")
    assert torch.equal(units.masks.sum(0), asked.corrupt.mask("all").int())


def test_effects_that_are_swapped_add_up_to_the_whole(lens, asked):
    """Clean image into the corrupt run, or corrupt text into the clean run: the same mixture of the two runs."""
    one = activation_patching(
        lens,
        asked.clean,
        asked.corrupt,
        layers=[3],
        groups={"rest": ~asked.clean.mask("image") & asked.clean.mask("all")},
    )
    two = activation_patching(
        lens,
        asked.corrupt,
        asked.clean,
        layers=[3],
        groups={"rest": ~asked.clean.mask("image") & asked.clean.mask("all")},
    )
    image, rest = one.units.index("image"), one.units.index("rest")
    torch.testing.assert_close(one.per_pair[:, 0, image], 1 - two.per_pair[:, 0, rest], atol=1e-4, rtol=0)


def test_a_pair_swapped_has_the_effects_of_the_answers_swapped(lens, asked):
    swapped = [(b.answer, a.answer) for a, b in asked.examples]
    given = activation_patching(lens, asked.clean, asked.corrupt, layers=[2], answers=swapped)
    plain = activation_patching(lens, asked.clean, asked.corrupt, layers=[2])
    torch.testing.assert_close(given.per_pair, plain.per_pair)
    torch.testing.assert_close(given.clean_ld, -plain.clean_ld)


def test_several_pictures_are_spans_of_their_own(lens):
    a, b = shapes.color_pairs(1, seed=3)[0]
    prompts = [lens.prompt(a.question, images=[b.image, x.image]) for x in (a, b)]
    given = activation_patching(lens, *prompts, layers=[0], answers=[(a.answer, b.answer)])
    assert given.units == ("bos", "before_image", "image 0", "image 1", "question", "last")
    effect = dict(zip(given.units, given.values[0].tolist(), strict=True))
    assert effect["image 1"] == pytest.approx(1, abs=1e-3)
    assert effect["image 0"] == pytest.approx(0, abs=1e-3)


def test_a_row_without_a_span_has_no_effect_there(lens):
    a, b = shapes.color_pairs(1, seed=3)[0]
    texts = [a.question, a.question]
    prompts = [lens.prompt(texts, images=[x.image, [x.image, x.image]]) for x in (a, b)]
    given = activation_patching(lens, *prompts, layers=[0], answers=[(a.answer, b.answer)] * 2)
    second = given.per_pair[:, 0, given.units.index("image 1")]
    assert second.isnan().tolist() == [True, False]
    assert given.n_undefined == 0
    assert float(given.values[0, given.units.index("image 1")]) == float(second[1])
    attributed = attribution_patching(
        lens, *prompts, "resid_pre", "span", layers=[0], answers=[(a.answer, b.answer)] * 2
    )
    assert torch.equal(attributed.per_pair.isnan(), given.per_pair.isnan())


def test_pairs_without_pictures_can_be_patched_too(lens):
    prompts = [lens.prompt(f"what comes after {number}?") for number in ("two", "five")]
    given = activation_patching(lens, *prompts)
    assert given.units == ("bos", "before_image", "last")
    assert given.answers == (("three", "six"),)
    assert float(given.values[0, 1]) == pytest.approx(1, abs=1e-4)


def test_layers_without_heads_are_left_out_at_z_and_kept_in_the_residual_stream():
    chosen = case("qwen3_5")
    prompts = [chosen.lens.prompt(inputs=x) for x in (chosen.inputs, repainted(chosen.inputs))]
    assert activation_patching(chosen.lens, *prompts, "z", "head", answers=[(11, 12)]).layers == (1, 3)
    assert activation_patching(chosen.lens, *prompts, answers=[(11, 12)]).layers == (0, 1, 2, 3)


def test_position_ids_of_several_axes_are_patched_one_unit_at_a_time():
    chosen = case("qwen2_vl")
    positions = torch.arange(chosen.inputs["input_ids"].shape[1]).expand(3, 1, -1)
    plain = [{**x, "position_ids": positions} for x in (chosen.inputs, repainted(chosen.inputs))]
    prompts = [chosen.lens.prompt(inputs=x) for x in plain]
    given, slow = (activation_patching(chosen.lens, *prompts, answers=[(11, 12)], tokens_per_pass=n) for n in (9999, 1))
    close(given.per_pair, slow.per_pair)


# ---------------------------------------------------------------------- effects that are not defined


def test_pairs_that_do_not_differ_are_nan_with_a_warning_and_the_rest_is_right(lens, asked, spans):
    half = batch(lens, [asked.examples[i][int(i not in (2, 6))] for i in range(8)])
    for run in (activation_patching, attribution_patching):
        with pytest.warns(UserWarning, match=r"^pairs \[2, 6\] have the same logit difference") as caught:
            given = run(lens, asked.clean, half, "resid_pre", "span", answers=asked.answers)
        assert caught[0].filename == __file__
        assert given.per_pair.isnan().all(-1).all(-1).nonzero().flatten().tolist() == [2, 6]
        assert given.n_undefined == 2
        assert "mean of 8 pairs (2 of them undefined)" in repr(given)
        if run is activation_patching:
            keep = [0, 1, 3, 4, 5, 7]
            torch.testing.assert_close(given.per_pair[keep], spans.per_pair[keep][:, :, :5], atol=1e-4, rtol=0)
            torch.testing.assert_close(given.values, spans.per_pair[keep][:, :, :5].mean(0), atol=1e-4, rtol=0)


def test_a_difference_of_rounding_errors_is_none(lens):
    from lmm_lens.answers.contrast import contrast

    clean = torch.tensor([[10.0, 0.0], [10.0, 0.0]])
    corrupt = torch.tensor([[10.000002, 0.0], [10.0002, 0.0]])  # 2 and 200 steps of fp32 away
    with pytest.warns(UserWarning, match=r"^pairs \[0\]"):
        found = contrast(lens, clean, corrupt, [(0, 1)] * 2)
    assert found.gap.isnan().tolist() == [True, False]
    assert float(found.normalized(torch.tensor([1e-4, 1e-4]))[1]) == pytest.approx(-0.5, rel=0.01)


# ---------------------------------------------------------------------- nothing else changes


def test_a_progress_bar_changes_no_number(lens, asked):
    plain, shown = (
        activation_patching(lens, asked.clean, asked.corrupt, layers=[2], progress=progress)
        for progress in (False, True)
    )
    assert torch.equal(plain.per_pair, shown.per_pair)


def test_the_model_is_left_as_it_was(lens, asked):
    before = lens.run(asked.clean).logits
    for site, by in (("pattern", "head"), ("resid_pre", "span")):
        activation_patching(lens, asked.clean, asked.corrupt, site, by, layers=[1])
    assert torch.equal(lens.run(asked.clean).logits, before)
    assert hooks_of_ours(lens.model) == []


def test_the_experiments_own_edits_are_not_offered_to_users():
    assert not any(name.startswith("_") for name in Intervention.kinds)


def test_patching_inside_apply_is_patching_of_the_edited_model(lens, asked):
    heads = [(0, 1), (2, 3)]
    with lens.apply(AblateHeads(heads)):
        given = activation_patching(lens, asked.clean, asked.corrupt, "z", "head", layers=[2])
    from tests.support.reference import without_heads

    expected = activation_patching(
        Lens(without_heads(lens.model, heads), lens.processor), asked.clean, asked.corrupt, "z", "head", layers=[2]
    )
    torch.testing.assert_close(
        given.per_pair[:, :, [0, 1, 2, 4, 5, 6, 7]], expected.per_pair[:, :, [0, 1, 2, 4, 5, 6, 7]], atol=1e-4, rtol=0
    )
