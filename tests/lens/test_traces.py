"""`with lens.trace(prompt)`: hook points read and written by layer and name, as the native backend reads and edits."""

import nnsight
import pytest
import torch

from lmm_lens import Read
from lmm_lens.errors import HookError
from tests.support.cases import SITES, case
from tests.support.changes import CHANGES, Change, even, shifted
from tests.support.nnsight_lenses import FOUR, TOLERANCE, edit_of

PATTERN_EDITS = ("knockout", "var", "uniform", "patch_pattern")


def last_layer(family, site):
    return family.layers_of(site)[-1]


@pytest.fixture(params=["nnsight", "remote"], ids=["here", "as on a server"])
def backend(request):
    return request.param


# ---------------------------------------------------------------------- reading


def test_every_hook_point_reads_as_natively(family, backend):
    lens = family.on(backend)
    layers = {site: family.layers_of(site) for site in SITES}
    places = [(layer, site) for layer in range(family.n_layers) for site in SITES if layer in layers[site]]
    expected = family.lens.run(family.prompt, read=[Read(site, layers[site]) for site in SITES])
    with lens.trace(family.prompt):
        seen = nnsight.save([])
        for layer, site in places:
            seen.append(lens.read(layer, site))
        logits = lens.envoy.output.logits.save()
    assert (logits - expected.logits).abs().max() < TOLERANCE
    assert len(seen) == len(places)
    for (layer, site), value in zip(places, seen, strict=True):
        assert value.shape == expected.reads[site, layer].shape
        assert (value - expected.reads[site, layer]).abs().max() < TOLERANCE, (site, layer)


ACTING = [(name, edit) for name in FOUR for edit in ("zero", *PATTERN_EDITS)]
ACTING += [("llava", edit) for edit in ("scale", "steer", "own_pattern", "own_rows", "back_patch")]


@pytest.mark.parametrize(("name", "edit"), ACTING)
def test_interventions_act_before_the_blocks_reads(name, edit, backend):
    family, lens = case(name), case(name).on(backend)
    edits, layer = [edit_of(name, edit)], family.self_attending[-1]
    expected = family.lens.run(family.prompt, edits, read=["pattern", "z", "resid_post"])
    with lens.trace(family.prompt, interventions=edits):
        pattern = lens.read(layer, "pattern").save()
        z = lens.read(layer, "z").save()
        out = lens.read(layer, "resid_post").save()
        logits = lens.envoy.output.logits.save()
    assert (logits - expected.logits).abs().max() < TOLERANCE
    assert (z - expected.reads["z", layer]).abs().max() < TOLERANCE
    assert (out - expected.reads["resid_post", layer]).abs().max() < TOLERANCE
    assert (pattern - expected.reads["pattern", layer]).abs().max() < TOLERANCE, "reads see what edits left"


def test_the_prompts_masks_and_spans_can_be_used_in_the_block(lens, backend):
    llava, mine = case("llava"), case("llava").on(backend)
    prompt = llava.prompt
    first, last = prompt.spans[0][0].positions[0], prompt.spans[0][0].positions[-1]
    with mine.trace(prompt):
        rows = mine.read(1, "pattern")[:, :, -1]
        mass = rows[..., prompt.mask("image")[0]].sum(-1).save()
        again = rows[..., first : last + 1].sum(-1).save()
    expected = llava.lens.run(prompt, read=["pattern"]).reads["pattern", 1][:, :, -1, first : last + 1].sum(-1)
    assert (mass - expected).abs().max() < TOLERANCE
    assert (again - expected).abs().max() < TOLERANCE


def test_a_padded_batch_reads_all_rows_of_the_pass(family):
    prompt = family.lens.prompt(inputs=family.pair("left")[1])
    layer, lens = family.self_attending[-1], family.on("nnsight")
    native = family.lens.run(prompt, read=[Read("z", [layer]), Read("pattern", [layer])])
    with lens.trace(prompt):
        pattern = lens.read(layer, "pattern").save()
        z = lens.read(layer, "z").save()
    for row, real in enumerate(prompt.mask("all")):
        n = int(real.sum())
        assert (z[row][real] - native.reads["z", layer][row, :n]).abs().max() < TOLERANCE
        assert (pattern[row][:, real] - native.reads["pattern", layer][row, :, :n]).abs().max() < TOLERANCE


# ---------------------------------------------------------------------- writing


@pytest.mark.parametrize("site", SITES)
def test_reading_then_writing_is_the_native_edit(family, site):
    lens, layer, change = family.on("nnsight"), last_layer(family, site), CHANGES.get(site, shifted)
    expected = family.lens.run(family.prompt, [Change(site, layer, change)]).logits
    with lens.trace(family.prompt):
        lens.write(layer, site, change(lens.read(layer, site)))
        logits = lens.envoy.output.logits.save()
    assert (logits - expected).abs().max() < TOLERANCE
    assert (expected - family.logits).abs().max() > 1e-3


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", FOUR)
def test_writing_without_reading_is_the_native_edit(name, site, backend):
    family, lens, change = case(name), case(name).on(backend), CHANGES.get(site, shifted)
    layer = last_layer(family, site)
    value = change(family.lens.run(family.prompt, read=[Read(site, [layer])]).reads[site, layer])
    expected = family.lens.run(family.prompt, [Change(site, layer, change)]).logits
    with lens.trace(family.prompt):
        lens.write(layer, site, value)
        logits = lens.envoy.output.logits.save()
    assert (logits - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("site", SITES)
def test_what_was_written_is_read(site, backend):
    family, lens, change = case("llava"), case("llava").on(backend), CHANGES.get(site, shifted)
    with lens.trace(family.prompt):
        value = change(lens.read(1, site)).save()
        lens.write(1, site, value)
        seen = lens.read(1, site).save()
    assert (seen - value).abs().max() < TOLERANCE


@pytest.mark.parametrize("site", SITES)
def test_what_is_written_last_counts(site, backend):
    if (site, backend) == ("resid_pre", "remote"):  # written at operations that the model has gone past then
        with pytest.raises(HookError, match="resid_pre of layer 1 was written before in this trace\n  on a server ask"):
            written_twice(site, backend)
    else:
        logits, expected = written_twice(site, backend)
        assert (logits - expected).abs().max() < TOLERANCE


def written_twice(site, backend):
    """Logits after an activation was written twice, and after the second was written natively."""
    family, lens, change = case("llava"), case("llava").on(backend), CHANGES.get(site, shifted)
    first = change(family.lens.run(family.prompt, read=[Read(site, [1])]).reads[site, 1])
    last = even(first) if site == "pattern" else first / 2
    expected = family.lens.run(family.prompt, [Change(site, 1, lambda x: last.to(x))]).logits
    with lens.trace(family.prompt):
        lens.write(1, site, first)
        lens.write(1, site, last)
        logits = lens.envoy.output.logits.save()
    return logits, expected


@pytest.mark.parametrize("edit", PATTERN_EDITS)
@pytest.mark.parametrize("read_first", [False, True])
def test_a_pattern_is_written_over_what_interventions_left(edit, read_first, backend):
    family, lens, edits = case("llava"), case("llava").on(backend), [edit_of("llava", edit)]
    expected = family.lens.run(family.prompt, [*edits, Change("pattern", 1, even)]).logits
    uniform = even(torch.empty(1, 4, family.prompt.n_tokens, family.prompt.n_tokens))
    with lens.trace(family.prompt, edits):
        if read_first:
            lens.read(1, "pattern")
        lens.write(1, "pattern", uniform)
        logits = lens.envoy.output.logits.save()
    assert (logits - expected).abs().max() < TOLERANCE


def test_the_last_of_two_writes_counts(backend):
    family, lens = case("llava"), case("llava").on(backend)
    expected = family.lens.run(family.prompt, [Change("pattern", 1, even), Change("z", 1, shifted)]).logits
    with lens.trace(family.prompt):
        pattern, z = lens.read(1, "pattern"), None
        lens.write(1, "pattern", pattern * 0)
        lens.write(1, "pattern", even(pattern))
        z = lens.read(1, "z")
        lens.write(1, "z", z * 0)
        lens.write(1, "z", shifted(z))
        logits = lens.envoy.output.logits.save()
    assert (logits - expected).abs().max() < TOLERANCE


def test_the_users_own_envoys_may_be_used_beside(backend):
    family, lens = case("llava"), case("llava").on(backend)
    edits = [edit_of("llava", "zero")]
    expected = family.lens.run(family.prompt, edits, read=["resid_post"])
    with lens.trace(family.prompt, edits):
        out = lens.envoy.model.language_model.layers[1].output.save()
        logits = lens.envoy.lm_head.output.save()
    assert (out - expected.reads["resid_post", 1]).abs().max() < TOLERANCE
    assert (logits - expected.logits).abs().max() < TOLERANCE


@pytest.mark.parametrize("site", SITES)
def test_a_value_of_another_dtype_is_written_in_the_models_own(site, backend):
    llava, lens = case("llava"), case("llava").on(backend)
    expected = llava.lens.run(llava.prompt, [Change(site, 1, CHANGES.get(site, shifted))]).logits
    change = CHANGES.get(site, shifted)
    with lens.trace(llava.prompt):
        lens.write(1, site, change(lens.read(1, site)).double())
        logits = lens.envoy.output.logits.save()
    assert (logits - expected).abs().max() < TOLERANCE


def test_gradients_reach_what_was_read_from_the_heads(backend):
    llava, lens = case("llava"), case("llava").on(backend)
    given = []
    projection = llava.model.model.language_model.layers[2].self_attn.o_proj
    handle = projection.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    logits = llava.model(**llava.prompt.inputs).logits
    handle.remove()
    expected = torch.autograd.grad(logits.sum(), given)[0].unflatten(-1, (4, 16))
    with lens.trace(llava.prompt):
        z = lens.read(2, "z")
        logits = lens.envoy.output.logits
        with logits.sum().backward():
            mine = z.grad.save()
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_a_trace_of_nnsights_own_does_not_see_the_last_one():
    """The pattern is taken anew, also where the trace before has written it."""
    llava, lens = case("llava"), case("llava").on("nnsight")
    other = llava.lens.prompt(inputs={"input_ids": torch.tensor([[1, 5, 6, 7]])})
    expected = llava.lens.run(other, read=[Read("pattern", [2], rows="all")]).reads["pattern", 2]
    with lens.trace(llava.prompt):
        lens.write(2, "pattern", even(lens.read(2, "pattern")))
    with lens.envoy.trace(**other.inputs):
        pattern = lens.read(2, "pattern").save()
    assert (pattern - expected).abs().max() < TOLERANCE
