"""What holds for VAR whatever the model: no edit without sinks, no state between prompts, layers left alone."""

import pytest
import torch

from lmm_lens import VAR, Lens, Read
from tests.support.cases import edits_of, plain
from tests.support.models import BOS, IMAGE, another, joined
from tests.support.oracle import SlowVAR
from tests.support.planted import DIMS, THRESHOLD, build, plant, planted

LOOSE = {"sink_dims": DIMS, "sink_threshold": THRESHOLD, "min_nonsink_ratio": 0.0, "min_visual_mass": 0.0}
NOTHING = "changed nothing: no head met min_visual_mass and min_nonsink_ratio on a row that sees a sink"


@pytest.fixture(scope="module")
def llava():
    return planted("llava")


# ---------------------------------------------------------------------- nothing to take


@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma2", "qwen3_5"])
def test_without_sinks_nothing_changes_and_a_warning_says_so(name):
    case = planted(name)
    var = VAR(**{**case.settings, "sink_dims": (20,), "sink_threshold": 7.9})
    with pytest.warns(UserWarning, match=NOTHING) as caught:
        run = case.lens.run(case.prompt, [var])
    assert torch.equal(run.logits, case.logits)
    assert str(caught[0].message).startswith("VAR(p=0.6")
    assert caught[0].filename == __file__  # the line of the call, not one of ours or of whoever called it
    assert edits_of(run) == [0]
    assert "0 rows edited" in str(run.reports[0])
    with pytest.warns(UserWarning, match=NOTHING):
        generated = case.lens.generate(case.prompt, [var], max_new_tokens=3, logits=True)
    unedited = case.lens.generate(case.prompt, max_new_tokens=3, logits=True)
    assert torch.equal(generated.logits, unedited.logits)


@pytest.mark.parametrize("changes", [{"min_visual_mass": 1.0}, {"min_nonsink_ratio": 1.0}])
def test_criteria_that_no_row_meets_change_nothing(llava, changes):
    with pytest.warns(UserWarning, match=NOTHING):
        run = llava.lens.run(llava.prompt, [VAR(**{**LOOSE, **changes})])
    assert torch.equal(run.logits, llava.logits)


def test_inside_apply_too_a_warning_says_so(llava):
    var = VAR(**{**llava.settings, "sink_dims": (20,), "sink_threshold": 7.9})
    with pytest.warns(UserWarning, match=NOTHING), llava.lens.apply(var):
        assert torch.equal(plain(llava.model, llava.inputs), llava.logits)


def test_an_edit_that_found_something_gives_no_warning(llava, recwarn):
    run = llava.lens.run(llava.prompt, [VAR(**LOOSE)])
    assert [str(w.message) for w in recwarn] == []
    n_edits = edits_of(run)[0]
    assert f"{n_edits} rows edited in layers 2 to 3, moving 0." in str(run.reports[0])


# ---------------------------------------------------------------------- no state


def test_a_prompt_before_changes_nothing(llava):
    """The released code finds sinks for the first sample of a process and keeps them."""
    one, other = (llava.lens.prompt(inputs=inputs) for inputs in (llava.inputs, another(llava.inputs)))
    fresh = Lens(llava.model)
    alone = fresh.run(fresh.prompt(inputs=another(llava.inputs)), [VAR(**LOOSE)])
    var = VAR(**LOOSE)
    llava.lens.run(one, [var])
    after = llava.lens.run(other, [var])
    assert torch.equal(after.logits, alone.logits)
    assert after.reports == alone.reports
    llava.lens.generate(one, [var], max_new_tokens=4)
    assert torch.equal(llava.lens.run(other, [var]).logits, alone.logits)


def test_a_prompt_before_in_the_same_block_changes_nothing(llava):
    inputs = [llava.inputs, another(llava.inputs)]
    edited = [llava.lens.run(llava.lens.prompt(inputs=inputs[i]), [VAR(**LOOSE)]).logits for i in (0, 1)]
    with llava.lens.apply(VAR(**LOOSE)):
        inside = [plain(llava.model, inputs[i]) for i in (0, 1, 0)]
    for given, expected in zip(inside, [*edited, edited[0]], strict=True):
        torch.testing.assert_close(given, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(edited[0], llava.logits, atol=1e-3)


def test_the_order_of_a_batch_does_not_matter(llava):
    prompts, _ = llava.batch()

    def logits(order):
        batch = joined([prompts[i] for i in order])
        run = llava.lens.run(llava.lens.prompt(inputs=batch), [VAR(**LOOSE)], logits="last")
        return {i: run.logits[row, 0] for row, i in enumerate(order)}

    forward, backward = logits([0, 1, 2]), logits([2, 1, 0])
    for i in range(3):
        torch.testing.assert_close(forward[i], backward[i], atol=2e-6, rtol=0)


def test_each_row_of_a_batch_has_sinks_of_its_own(llava):
    batch = llava.batch()[1]
    slow = SlowVAR(llava.reference, batch, **LOOSE)
    with llava.reference.editing(pattern=slow):
        llava.reference.run(batch)
    width = batch["input_ids"].shape[1]
    from_the_end = [sorted(i - width for i in row) for row in slow.sinks[2]]
    assert len({str(row) for row in from_the_end}) == 3, "the same sinks in every row test nothing"
    read = Read("pattern", [2], rows="last")
    edited = llava.lens.run(llava.lens.prompt(inputs=batch), [VAR(**LOOSE)], read=[read]).reads["pattern", 2]
    before = llava.lens.run(llava.lens.prompt(inputs=batch), read=[read]).reads["pattern", 2]
    for row, sinks in enumerate(slow.sinks[2]):
        ratio = edited[row, :, 0] / before[row, :, 0]
        given = (ratio - 0.4).abs() < 1e-4
        assert {i for i in range(width) if bool(given[:, i].all())} == sinks


# ---------------------------------------------------------------------- layers and tokens


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl", "paligemma2"])
def test_the_first_two_layers_and_the_last_are_left_alone(name):
    """In the released code the exclusion of the last layer never fires."""
    case = planted(name)
    layers = range(case.n_layers)
    read = [Read("pattern", layers, rows="after_image"), Read("resid_pre", layers)]
    before, after = case.lens.run(case.prompt, read=read), case.lens.run(case.prompt, [VAR(**LOOSE)], read=read)
    assert set(after.reports[0].edits) == {2, 3}
    for layer in (0, 1, 2):
        assert torch.equal(after.reads["resid_pre", layer], before.reads["resid_pre", layer])
    for layer in (0, 1):
        assert torch.equal(after.reads["pattern", layer], before.reads["pattern", layer])
    assert not torch.equal(after.reads["pattern", 2], before.reads["pattern", 2])
    with_last = case.lens.run(case.prompt, [VAR(**LOOSE, skip_last_layer=False)])
    assert set(with_last.reports[0].edits) == {2, 3, 4}
    assert (with_last.logits - after.logits).abs().max() > 1e-3
    from_first = case.lens.run(case.prompt, [VAR(**LOOSE, first_layer=0)])
    assert set(from_first.reports[0].edits) == {0, 1, 2, 3}
    assert (from_first.logits - after.logits).abs().max() > 1e-3


def test_the_beginning_of_the_sequence_counts_among_the_sinks():
    """The released code's tokenisation drops it. Here it is the only sink, and no patch is one."""
    model, inputs = build("llava")
    lens = Lens(plant(model, inputs, words=(BOS,), n_visual=0))
    prompt = lens.prompt(inputs=inputs)
    read = Read("pattern", [2, 3], rows="after_image")
    before, after = lens.run(prompt, read=[read]), lens.run(prompt, [VAR(**LOOSE)], read=[read])
    assert after.reports[0].edits == {2: 6 * 4, 3: 6 * 4}
    old, new = before.reads["pattern", 2], after.reads["pattern", 2]
    torch.testing.assert_close(new[..., 0], 0.4 * old[..., 0])
    visual = inputs["input_ids"][0] == IMAGE
    torch.testing.assert_close(new[..., visual].sum(-1), old[..., visual].sum(-1) + 0.6 * old[..., 0])
    others = ~visual
    others[0] = False
    assert torch.equal(new[..., others], old[..., others])
    assert (after.logits - before.logits).abs().max() > 1e-3
    assert sum(after.reports[0].moved.values()) > 0


def test_sinks_are_looked_for_in_each_layer_anew():
    """A token whose massive activation is taken away on the way gives in the layers before and not after."""
    case = planted("llava")

    class Vanish:
        def __call__(self, module, args, output):
            x = (output[0] if isinstance(output, tuple) else output).clone()
            x[..., list(DIMS)] = 0
            return (x, *output[1:]) if isinstance(output, tuple) else x

    hook = case.model.get_decoder().layers[2].register_forward_hook(Vanish())
    try:
        run = case.lens.run(case.prompt, [VAR(**LOOSE)])
    finally:
        hook.remove()
    assert run.reports[0].edits[2] > 0
    assert run.reports[0].edits[3] == 0


def test_rows_before_and_in_the_image_are_left_alone(llava):
    read = Read("pattern", [2], rows="all")
    before = llava.lens.run(llava.prompt, read=[read]).reads["pattern", 2]
    after = llava.lens.run(llava.prompt, [VAR(**LOOSE)], read=[read]).reads["pattern", 2]
    rows = llava.scopes["after_image"]
    assert torch.equal(after[:, :, : rows[0]], before[:, :, : rows[0]])
    assert not torch.allclose(after[:, :, rows], before[:, :, rows], atol=1e-3)


def test_another_row_scope_edits_its_rows_and_no_other(llava):
    read = Read("pattern", [2], rows="all")
    before = llava.lens.run(llava.prompt, read=[read]).reads["pattern", 2]
    run = llava.lens.run(llava.prompt, [VAR(**LOOSE, rows="last")], read=[read])
    assert run.reports[0].edits == {2: 4, 3: 4}
    assert torch.equal(run.reads["pattern", 2][:, :, :-1], before[:, :, :-1])
    assert not torch.allclose(run.reads["pattern", 2][:, :, -1], before[:, :, -1], atol=1e-3)
