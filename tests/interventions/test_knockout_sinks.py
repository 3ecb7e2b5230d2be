"""The control experiment of the paper: hide the visual sinks, or as many random patches."""

import pytest
import torch

from lmm_lens import VAR, KnockoutSinks, Lens, Read
from lmm_lens.errors import InterventionError, ScoreError
from tests.support.cases import close, edits_of, honest
from tests.support.models import BOS, FAMILIES, IMAGE
from tests.support.oracle import SlowVAR, each_row, spans
from tests.support.planted import DIMS, THRESHOLD, build, plant, planted

SINKS = {"sink_dims": DIMS, "sink_threshold": THRESHOLD}
WITH_VISUAL_SINKS = [name for name in FAMILIES if name not in ("idefics2", "mllama")]


@pytest.fixture(params=WITH_VISUAL_SINKS)
def case(request):
    return planted(request.param)


def slow_knockout(case, inputs, layers, n_new=0):
    """The visual sinks of each layer at zero in the rows after the image, the rest renormalised."""
    find = SlowVAR(case.reference, inputs, DIMS, THRESHOLD)
    roles = spans(inputs, n_new)

    def edit(layer, pattern, first):
        if layer not in layers:
            return pattern
        sinks = [found & image for found, image in zip(find.find_sinks(layer), roles["image"], strict=True)]

        def change(row, b, oldest, own):
            keys = [j - oldest for j in sinks[b] if j >= oldest]
            if row.sum() > row[keys].sum():
                row[keys] = 0
                row /= row.sum()

        return each_row([layer], roles["after_image"], None, change)(layer, pattern, first)

    return edit


def patterns(case, prompt, edits):
    read = Read("pattern", case.self_attending, rows="after_image")
    run = case.lens.run(prompt, edits, read=[read])
    return run, {layer: run.reads["pattern", layer] for layer in case.self_attending}


def visual_sinks(case, inputs, layer):
    """By loops over what the reference recorded of an unedited run."""
    case.reference.run(inputs)
    found = SlowVAR(case.reference, inputs, DIMS, THRESHOLD).find_sinks(layer)
    return [sinks & image for sinks, image in zip(found, spans(inputs)["image"], strict=True)]


def test_hiding_the_sinks_equals_zeros_and_a_new_sum(case):
    run = case.lens.run(case.prompt, [KnockoutSinks(**SINKS)])
    with case.reference.editing(pattern=slow_knockout(case, case.inputs, case.self_attending)):
        close(run.logits, case.reference.run(case.inputs))
    assert (run.logits - case.logits).abs().max() > 1e-3
    assert all(count > 0 for count in run.reports[0].edits.values())
    assert all(moved > 0 for moved in run.reports[0].moved.values())


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "paligemma2", "qwen3_5"])
def test_while_generating_they_stay_hidden(name):
    case = planted(name)
    given = case.lens.generate(case.prompt, [KnockoutSinks(**SINKS)], max_new_tokens=4, logits=True)
    with case.reference.editing(pattern=slow_knockout(case, case.inputs, case.self_attending, 4)):
        tokens, logits = case.reference.generate(case.inputs, 4)
    assert torch.equal(given.tokens, tokens)
    close(given.logits, logits)


def test_only_visual_sinks_of_the_layers_that_are_named_are_hidden():
    case = planted("llava")
    sinks = sorted(visual_sinks(case, case.inputs, 1)[0])
    assert len(sinks) == 2
    run, after = patterns(case, case.prompt, [KnockoutSinks(**SINKS, layers=[1])])
    _, before = patterns(case, case.prompt, [])
    assert (after[1][..., sinks] == 0).all()
    assert (after[1][..., 0] > before[1][..., 0]).any()  # a text sink gets its share of what is freed
    assert torch.equal(after[0], before[0])
    assert (after[2][..., sinks] > 0).any()
    assert set(run.reports[0].edits) == {1}


def hidden(before, after):
    """Which keys of a row have no attention any more, in every head: per batch row a set."""
    gone = (after == 0) & (before > 0)
    return [{int(j) for j in row.flatten(0, 1).all(0).nonzero()} for row in gone]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [name for name in WITH_VISUAL_SINKS if name != "gemma3"])
def test_the_control_hides_as_many_other_patches(name, seed):
    case = planted(name)
    _, before = patterns(case, case.prompt, [])
    first = case.self_attending[0]
    _, after = patterns(case, case.prompt, [KnockoutSinks(**SINKS, control=seed, layers=[first])])
    image, sinks = spans(case.inputs)["image"][0], visual_sinks(case, case.inputs, first)[0]
    (gone,) = hidden(before[first], after[first])
    assert len(gone) == len(sinks) > 0
    assert gone <= image - sinks
    close(after[first].sum(-1), torch.ones(after[first].shape[:3]))
    kept = [j for j in range(before[first].shape[-1]) if j not in gone]
    expected = before[first][..., kept] / before[first][..., kept].sum(-1, keepdim=True)
    close(after[first][..., kept], expected)


def test_the_same_seed_hides_the_same_patches_and_another_seed_others():
    case = planted("llava_next")

    def logits(seed):
        return case.lens.run(case.prompt, [KnockoutSinks(**SINKS, control=seed)]).logits

    assert torch.equal(logits(3), logits(3))
    assert len({str(logits(seed).sum().item()) for seed in range(4)}) == 4
    before = torch.get_rng_state()
    logits(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_row_of_a_batch_hides_as_many_as_it_has_sinks():
    case = planted("llava")
    _, batch = case.batch()
    prompt = case.lens.prompt(inputs=batch)
    sinks = visual_sinks(case, batch, 0)
    assert len({len(row) for row in sinks}) > 1
    _, before = patterns(case, prompt, [])
    for control in (None, 7):
        _, after = patterns(case, prompt, [KnockoutSinks(**SINKS, control=control, layers=[0])])
        gone = hidden(before[0], after[0])
        assert [len(row) for row in gone] == [len(row) for row in sinks]
        if control is None:
            assert gone == sinks


def test_while_generating_the_control_hides_the_same_patches_in_every_row():
    """Otherwise each decoding step hides other patches than the prompt, and the control is not what sinks are."""
    case = planted("llava")
    _, batch = case.batch()
    prompt = case.lens.prompt(inputs=batch)
    edit = KnockoutSinks(**SINKS, control=3, layers=[0])
    read = Read("pattern", [0], rows="after_image")
    before = case.lens.generate(prompt, read=[read], max_new_tokens=4).reads["pattern", 0]
    run = case.lens.generate(prompt, [edit], read=[read], max_new_tokens=4)
    after, positions = run.reads["pattern", 0], run.positions["pattern"]
    for row, image in enumerate(spans(batch)["image"]):
        kept = [i for i in range(positions.shape[1]) if positions[row, i] >= 0]
        gone = [{j for j in image if before[row, 0, i, j] > 0 and bool((after[row, :, i, j] == 0).all())} for i in kept]
        assert gone[0]
        assert all(step == gone[0] for step in gone), f"row {row}: {gone}"


@pytest.mark.parametrize("name", ["llava", "internvl", "paligemma2"])
def test_a_row_of_a_padded_batch_has_the_control_it_has_alone(name):
    """A result must not depend on what else is in the batch."""
    case = planted(name)
    prompts, batch = case.pair()
    settings = {**case.settings, "min_visual_mass": 0.0, "min_nonsink_ratio": 0.0}
    for edit in (KnockoutSinks(**SINKS, control=3), VAR(**settings, control=3)):
        joint, counts = case.lens.run(case.lens.prompt(inputs=batch), [edit]), 0
        for row, inputs in enumerate(prompts):
            alone = honest(lambda inputs=inputs, edit=edit: case.lens.run(case.lens.prompt(inputs=inputs), [edit]))
            close(joint.logits[row, -alone.logits.shape[1] :], alone.logits[0])
            counts += edits_of(alone)[0]
        assert edits_of(joint) == [counts]
        assert counts > 0


# ---------------------------------------------------------------------- nothing to hide


def test_without_visual_sinks_nothing_changes_and_a_warning_says_so():
    model, inputs = build("llava")
    lens = Lens(plant(model, inputs, words=(BOS,), n_visual=0))
    prompt = lens.prompt(inputs=inputs)
    plain = lens.run(prompt).logits
    for control in (None, 4):
        with pytest.warns(UserWarning, match=r"KnockoutSinks\(.*\) changed nothing: no layer has a visual sink"):
            run = lens.run(prompt, [KnockoutSinks(**SINKS, control=control)])
        close(run.logits, plain, 1e-6)
        assert edits_of(run) == [0]
    assert edits_of(lens.run(prompt, [VAR(**SINKS, min_nonsink_ratio=0.0, min_visual_mass=0.0)])) != [0]


def test_where_every_patch_is_a_sink_the_control_says_that_it_hides_fewer():
    """As many others do not exist: hiding fewer without a word would spoil the comparison."""
    case = planted("mistral3")
    n_visual = int((case.inputs["input_ids"] == IMAGE).sum())
    model, inputs = build("mistral3")
    lens = Lens(plant(model, inputs, n_visual=n_visual - 1))
    prompt = lens.prompt(inputs=inputs)
    with pytest.raises(InterventionError, match="layer 0 has 5 visual sinks in batch row 0 but only 1 other"):
        lens.run(prompt, [KnockoutSinks(**SINKS, control=0)])


def test_parameters_that_do_not_fit_the_model_are_refused():
    case = planted("llava")
    with pytest.raises(ScoreError, match=r"sink dimensions \[99\] lie outside the model: d_model is 64"):
        case.lens.run(case.prompt, [KnockoutSinks((99,), 4.0)])
    with pytest.raises(ScoreError, match="sink_threshold 20 can never be reached"):
        case.lens.run(case.prompt, [KnockoutSinks(DIMS)])
    with pytest.raises(InterventionError, match="was given no layers"):
        case.lens.run(case.prompt, [KnockoutSinks(**SINKS, layers=[])])
