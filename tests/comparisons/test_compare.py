"""Conditions compared on the same items: against plain loops over `generate` and `run`."""

import time
import warnings

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from lmm_lens import (
    VAR,
    AblateHeads,
    BoostAttention,
    Comparison,
    Condition,
    HeadSet,
    Knockout,
    KnockoutSinks,
    Lens,
    Sample,
    compare,
)
from lmm_lens import data as datasets
from lmm_lens.comparisons import blank_images, exact_match
from lmm_lens.comparisons.conditions import as_conditions
from lmm_lens.comparisons.pictures import partners
from lmm_lens.errors import InterventionError, PromptError, ScoreError
from lmm_lens.interventions import PatchHeads
from lmm_lens.statistics import mcnemar_test
from lmm_lens.warnings import NothingChangedWarning
from tests.support.families import lens_of

HEADS = HeadSet([(1, 4), (2, 1), (3, 4)], 6, 8)
ABLATED = AblateHeads(HEADS, rows="after_image")


@pytest.fixture(scope="module")
def samples():
    return list(datasets.shapes(8, seed=3, kinds=["color", "shape"]))


@pytest.fixture(scope="module")
def compared(lens, samples):
    conditions = {"plain": [], "ablated": ABLATED, "blank": Condition(pictures="blank")}
    return compare(lens, samples, conditions, controls=2)


# ---------------------------------------------------------------------- what is found


def test_what_was_said_is_what_generate_says(lens, samples, compared):
    assert compared.names == ("plain", "ablated", "ablated, control 0", "ablated, control 1", "blank")
    for sample, *said in zip(samples, *map(compared.said, compared.names), strict=True):
        prompt = sample.prompt(lens)
        blank = blank_images(lens, prompt)
        drawn = [AblateHeads(HEADS.random_like(seed, "most"), rows="after_image") for seed in (0, 1)]
        asked = [(prompt, []), (prompt, [ABLATED]), *((prompt, [each]) for each in drawn), (blank, [])]
        n = 1 + len(lens.adapter.tokenizer(sample.answer, add_special_tokens=False)["input_ids"])
        assert said == [lens.generate(p, edits, max_new_tokens=n).text[0] for p, edits in asked]


def test_its_values_are_those_of_exact_match(lens, samples, compared):
    prompts, answers = [each.prompt(lens) for each in samples], [each.answer for each in samples]
    for name, edits in (("plain", []), ("ablated", [ABLATED])):
        assert compared.of(name).tolist() == exact_match(lens, prompts, answers, edits).double().tolist()
    drawn = torch.stack([compared.of(f"ablated, control {draw}") for draw in (0, 1)])
    assert torch.equal(compared.of("ablated, controls"), drawn.mean(0))


def test_a_metric_of_the_first_token_is_read_off_one_forward(lens, samples):
    found = compare(lens, samples, {"plain": [], "ablated": ABLATED}, "log_prob")
    for number, sample in enumerate(samples):
        prompt = sample.prompt(lens)
        (right,) = lens.adapter.tokenizer(sample.answer, add_special_tokens=False)["input_ids"][:1]
        for name, edits in (("plain", []), ("ablated", [ABLATED])):
            expected = lens.run(prompt, edits).logits[0, -1].double().log_softmax(-1)[right]
            assert float(found.of(name)[number]) == pytest.approx(float(expected), abs=1e-5)


def test_an_own_metric_is_asked_of_every_text(lens, samples, compared):
    def n_letters(said, sample):
        """Letters more than the answer has."""
        return len(said) - len(sample.answer)

    found = compare(lens, samples, {"plain": []}, n_letters, max_new_tokens=2)
    assert found.metric == "n_letters"
    assert found.about["meaning"] == "Letters more than the answer has."
    said = [len(text) - len(sample.answer) for text, sample in zip(found.said("plain"), samples, strict=True)]
    assert found.of("plain").tolist() == said


def test_prompts_bring_their_answers_along(lens, samples):
    prompts = [each.prompt(lens) for each in samples[:2]]
    found = compare(lens, prompts, {"plain": []}, "contains", answers=[(each.answer, None) for each in samples[:2]])
    assert found.of("plain").tolist() == [1, 1]
    with pytest.raises(ScoreError, match=r"prompt 0 has no right answer\n  give answers="):
        compare(lens, prompts, {"plain": []})


def test_a_batch_is_refused_under_every_metric(lens, samples):
    batch = lens.prompt([each.question for each in samples[:2]], images=[list(each.images) for each in samples[:2]])
    answers = [(each.answer, each.wrong) for each in samples[:2]]
    for metric in ("log_prob", "contains"):
        with pytest.raises(ScoreError, match="prompt 0 row 0 is one of a batch: compare takes prompts of one row"):
            compare(lens, batch, {"plain": []}, metric, answers=answers)


def test_pictures_that_are_not_there_are_neither_blanked_nor_swapped(lens, samples):
    text = Sample("text", "what color is it?", "red")
    with pytest.raises(PromptError, match="has no pictures, so that blank ones would change nothing"):
        compare(lens, [text], {"plain": [], "blank": Condition(pictures="blank")})
    prompts, answers = [each.prompt(lens) for each in samples[:2]], [(each.answer, None) for each in samples[:2]]
    with pytest.raises(ScoreError, match="prompt 0 is a prompt, and pictures are swapped among samples"):
        compare(lens, prompts, {"plain": [], "swapped": Condition(pictures="swapped")}, answers=answers)


def test_controls_of_nothing_and_answers_beside_samples_are_refused(lens, samples):
    shown = {"plain": [], "blank": Condition(pictures="blank")}
    with pytest.raises(ScoreError, match="controls=3 were asked for, and no condition edits anything"):
        compare(lens, samples, shown, controls=3)
    for metric in ("exact_match", "log_prob"):
        with pytest.raises(ScoreError, match=r"answers are of prompts, and .* is a sample, which is graded by its own"):
            compare(lens, samples, shown, metric, answers=[("red", "blue")] * len(samples))


def test_videos_are_not_lost_where_pictures_are_replaced():
    family = lens_of("qwen2_5_vl")
    frames = [Image.new("RGB", (56, 56), color) for color in ("red", "blue")]
    prompt = family.prompt("Compare.", images=frames[0], videos=[frames])
    with pytest.raises(PromptError, match="has videos, which are not replaced with its pictures"):
        blank_images(family, prompt)


def test_interventions_may_be_made_for_each_prompt(lens, samples):
    def patched(prompt):
        return [PatchHeads(HEADS, lens.run(blank_images(lens, prompt), read=["z"]))]

    found = compare(lens, samples[:3], {"plain": [], "patched": patched}, "log_prob")
    one = samples[2].prompt(lens)
    (right,) = lens.adapter.tokenizer(samples[2].answer, add_special_tokens=False)["input_ids"][:1]
    expected = lens.run(one, patched(one)).logits[0, -1].double().log_softmax(-1)[right]
    assert float(found.of("patched")[2]) == pytest.approx(float(expected), abs=1e-5)
    assert bool((found.of("patched") != found.of("plain")).any())


# ---------------------------------------------------------------------- tests and controls


def test_right_and_wrong_are_tested_by_mcnemar_numbers_by_flips_and_all_by_holm(lens, samples, compared):
    table = compared.tests()
    pairs = [("ablated", "plain"), ("blank", "plain"), ("ablated", "ablated, controls")]
    assert list(zip(table["condition"], table["against"], strict=True)) == pairs
    assert table["test"].tolist()[:2] == ["McNemar, exact"] * 2
    assert table["p"][1] == mcnemar_test(compared.of("blank"), compared.of("plain")).p
    assert (table["p_holm"] >= table["p"]).all()
    numbers = compare(lens, samples, {"plain": [], "ablated": ABLATED}, "log_prob").tests()
    assert numbers["test"].tolist() == ["sign flip"]
    assert not len(compare(lens, samples[:2], {"plain": []}).tests())


def test_a_control_edits_as_much_as_what_it_controls(compared):
    edits = compared.edits.double()
    own, drawn = edits[:, compared.column("ablated")], edits[:, [2, 3]]
    same_length = [len({compared.said(name)[i] for name in compared.names[1:4]}) == 1 for i in range(len(own))]
    assert any(same_length)
    for i, same in enumerate(same_length):
        if same:  # an answer of another length has other rows
            assert drawn[i].tolist() == [own[i]] * 2


@pytest.mark.parametrize(
    "intervention",
    [VAR(sink_dims=(3,)), KnockoutSinks((3,)), ABLATED],
    ids=lambda intervention: type(intervention).__name__,
)
def test_controls_are_drawn_from_a_seed(intervention):
    assert intervention.control_of(4) == intervention.control_of(4)
    assert intervention.control_of(4) != intervention.control_of(5)
    assert intervention.control_of(0) != intervention


def test_what_has_no_control_says_which_have():
    with pytest.raises(InterventionError, match=r"BoostAttention has no control .*\n  of: AblateHeads, .*VAR"):
        BoostAttention().control_of(0)
    with pytest.raises(InterventionError, match=r"how many heads a layer has\n  give a HeadSet"):
        AblateHeads([(1, 2)]).control_of(0)
    with pytest.raises(InterventionError, match="the same 8 heads, which are whole layers"):
        AblateHeads(HeadSet.all(6, 8, [2])).control_of(0)


def test_a_control_that_could_do_less_is_noted(lens, samples):
    var = VAR.for_task("general", lens)
    found = compare(lens, samples, {"plain": [], "VAR": var}, controls=1)
    short, moved = found.short[:, 2].sum(), found.moved[:, 2].sum()
    assert float(short) > 0.01
    share = float(short / (short + moved))
    assert f"the controls of VAR moved {share:.0%} less attention than it: random tokens hold less" in found.notes
    assert f"VAR edited nothing on {int((found.edits[:, 1] == 0).sum())} of 8 items" in found.notes
    assert torch.equal(found.edits[:, 1] > 0, found.edits[:, 2] > 0)


def test_a_ceiling_and_a_floor_are_said_to_be_one(lens, samples):
    right = compare(lens, samples[:2], {"plain": [], "again": []}, lambda said, sample: True)
    assert right.notes == ("a ceiling: all are right under every condition, so nothing tells them apart",)
    wrong = compare(lens, samples[:2], {"plain": [], "again": []}, lambda said, sample: 0)
    assert wrong.notes == ("a floor: all are wrong under every condition, so nothing tells them apart",)
    assert "a floor" in repr(wrong)


def test_a_condition_that_never_edits_is_warned_of_once(lens, samples):
    never = VAR.for_task("general", lens, min_visual_mass=1.0)
    with pytest.warns(NothingChangedWarning, match="'never' changed nothing on any of 2 items") as told:
        compare(lens, samples[:2], {"plain": [], "never": never})
    assert len(told) == 1
    with warnings.catch_warnings():  # and inside a comparison alone
        warnings.simplefilter("error")
        with pytest.raises(NothingChangedWarning):
            lens.run(samples[0].prompt(lens), [never])


# ---------------------------------------------------------------------- pictures of others


def test_swapped_pictures_are_the_last_others_before(lens, samples):
    pairs = list(partners(samples))
    assert [sample for sample, _ in pairs] == samples
    assert [partner.id for _, partner in pairs] == [samples[1].id, *(each.id for each in samples[:-1])]
    found = compare(lens, samples, {"plain": [], "swapped": Condition(pictures="swapped")}, max_new_tokens=2)
    other = lens.prompt(samples[4].question, images=list(samples[3].images))
    assert found.said("swapped")[4] == lens.generate(other, max_new_tokens=2).text[0]


def test_questions_about_one_picture_swap_with_another_picture(samples):
    a, b = samples[0], samples[1]
    same = [Sample(f"{i}", a.question, a.answer, a.images) for i in range(3)]
    found = [partner for _, partner in partners([*same, b, same[0]])]
    assert found == [b, b, b, same[2], b]
    with pytest.raises(ScoreError, match=r"sample '0' has 1 picture, and no other sample has as many that are others"):
        list(partners(same))
    with pytest.raises(ScoreError, match="sample 'text' has no pictures to swap"):
        list(partners([Sample("text", "what?", "this")]))


# ---------------------------------------------------------------------- folders and files


def test_a_folder_makes_it_resumable_and_is_of_one_comparison(lens, samples, tmp_path):
    conditions = {"plain": [], "ablated": ABLATED}
    first = compare(lens, samples[:4], conditions, folder=tmp_path / "run")
    again = compare(lens, samples[:4], conditions, folder=tmp_path / "run")
    assert torch.equal(first.values, again.values)
    assert torch.equal(first.seconds, again.seconds), "nothing was computed anew"
    assert torch.equal(Comparison.open(tmp_path / "run").values, first.values)
    with pytest.raises(ScoreError, match="conditions"):
        compare(lens, samples[:4], {"plain": [], "ablated": AblateHeads(HEADS)}, folder=tmp_path / "run")
    with pytest.raises(ScoreError, match="metric"):
        compare(lens, samples[:4], conditions, "contains", folder=tmp_path / "run")


@pytest.mark.parametrize("metric", ["log_prob", "exact_match"])
def test_every_answer_takes_the_time_of_its_forward_the_plain_one_too(lens, samples, metric):
    """The plain forward also says which form of an answer is meant, and is not run again for its condition."""
    slow = lens.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    try:
        found = compare(lens, samples[:2], {"plain": [], "ablated": ABLATED}, metric)
    finally:
        slow.remove()
    assert bool((found.seconds >= 0.02).all())


def test_a_saved_comparison_comes_back_whole(lens, compared, tmp_path):
    compared.save(tmp_path / "it.safetensors")
    back = Comparison.load(tmp_path / "it.safetensors", lens)
    assert repr(back) == repr(compared)
    assert back.said("blank") == compared.said("blank")
    assert back.tests().equals(compared.tests())
    (tmp_path / "it.safetensors").write_bytes((tmp_path / "it.safetensors").read_bytes()[:-9])
    with pytest.raises(ScoreError, match="safetensors"):
        Comparison.load(tmp_path / "it.safetensors")


def test_some_of_the_items_are_a_comparison_too(compared):
    some = compared.where(lambda name: name in compared.ids[:3])
    assert len(some.ids) == 3
    assert torch.equal(some.values, compared.values[:3])
    with pytest.raises(ScoreError, match="none of the 8 items is wanted"):
        compared.where(lambda name: False)


def test_rows_that_cannot_be_asked_are_left_out_and_named(lens, samples, tmp_path):
    samples[0].images[0].save(tmp_path / "a.png")
    csv = tmp_path / "rows.csv"
    csv.write_text("image,question,answer\na.png,what color is it?,red\ngone.png,what color is it?,red\n")
    rows = datasets.table(csv, images=tmp_path, on_bad="skip")
    found = compare(lens, rows, {"plain": []})
    assert len(found.ids) == 1
    assert found.problems.count == 1
    assert "left out" in repr(found)


def test_every_condition_has_its_line_in_the_figure(compared):
    ax = compared.plot()
    named = [label.get_text() for label in ax.get_yticklabels()]
    assert named == ["plain", "ablated", "ablated, controls", "blank"]
    means = compared.to_pandas()["value"].to_numpy()
    dots = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots, means)


def test_the_first_condition_is_on_top_on_axes_that_are_shared_too(compared):
    figure = Figure()
    for ax in figure.subplots(1, 2, sharey=True):
        compared.plot(ax)
    assert all(ax.yaxis_inverted() for ax in figure.axes)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("conditions", "options", "message"),
    [
        ({}, {}, r'conditions are named, as in \{"plain": \[\], "VAR": \[VAR\(...\)\]\}, given \{\}'),
        ([ABLATED], {}, "conditions are named"),
        ({"": []}, {}, "the name of a condition is a text, given ''"),
        ({"plain": [3]}, {}, "a condition is interventions such as"),
        ({"plain": []}, {"metric": "exact_mach"}, "unknown metric 'exact_mach', did you mean 'exact_match'"),
        ({"plain": []}, {"baseline": "plane"}, "unknown condition to be the baseline 'plane', did you mean 'plain'"),
        ({"plain": []}, {"controls": -1}, "a whole number of at least 0, given -1"),
        ({"plain": []}, {"metric": "log_prob", "max_new_tokens": 3}, "generates nothing, given max_new_tokens=3"),
        ({"plain": []}, {"max_new_tokens": 0}, "max_new_tokens is at least 1, given 0"),
        ({"plain": lambda prompt: []}, {"controls": 1}, "that a function makes have no control of their own"),
        ({"x": ABLATED, "x, control 0": []}, {"controls": 1}, "as a control would be: call it otherwise"),
        ({"plain": []}, {"metric": lambda said, sample: None}, r"gave None, expected a finite number, or True or"),
        ({"plain": []}, {"metric": lambda said, sample: float("nan")}, "gave nan, expected a finite number"),
        ({"plain": []}, {"metric": "yes_no"}, r"is '\w+', neither yes nor no"),
    ],
)
def test_what_cannot_be_meant_is_refused(lens, samples, conditions, options, message):
    with pytest.raises(ScoreError, match=message):
        compare(lens, samples[:1], conditions, **options)


def test_pictures_that_do_not_exist_and_no_items_are_refused(lens):
    with pytest.raises(ScoreError, match="unknown choice of pictures 'blanc', did you mean 'blank'"):
        Condition(pictures="blanc")
    with pytest.raises(ScoreError, match="no items were given"):
        compare(lens, [], {"plain": []})
    assert as_conditions({"one": ABLATED})["one"].interventions == (ABLATED,)


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_every_backend_says_the_same(samples, backend):
    conditions = {"plain": [], "ablated": ABLATED, "route": Knockout("image", "last", range(2, 5))}
    native = compare(Lens.demo(), samples[:2], conditions, "log_prob", controls=0)
    other = compare(Lens.demo(backend=backend), samples[:2], conditions, "log_prob", controls=0)
    torch.testing.assert_close(other.values, native.values, atol=1e-4, rtol=0)
    assert torch.equal(other.edits, native.edits)
