"""Hook points of the vision tower in traces, here and as on a server: as `lens.run` reads and edits them."""

import copy
from dataclasses import dataclass
from functools import cache

import nnsight
import pytest
import torch
from PIL import Image

from lmm_lens import AblateHeads, Intervention, Knockout, Lens, PatchResidual, Read
from lmm_lens.core.taps import Tap
from lmm_lens.errors import HookError, InterventionError
from lmm_lens.prompts.rows import bind_rows
from tests.support.evidence import picture
from tests.support.families import lens_of, prompt_of

SITES = ("resid_pre", "pattern", "z", "attn_out", "mlp_out", "resid_post")
TOLERANCE = 1e-5
FAMILIES = ("llava", "internvl", "qwen2_5_vl", "pixtral")


@dataclass(frozen=True)
class Halved(Intervention):
    """Half of what the heads of layer 0 of the tower give."""

    in_tower = True

    def taps(self, prompt, shape):
        return [Tap("z", 0, bind_rows("all", prompt), lambda x, context: x / 2, edits=True)]


def on(name, backend):
    native = lens_of(name)
    return Lens(native.model, native.processor, backend="nnsight", remote=backend)


@pytest.fixture(params=[False, "local"], ids=["here", "as on a server"])
def remote(request):
    return request.param


@pytest.mark.parametrize("name", FAMILIES)
def test_every_hook_point_reads_as_in_a_run(name, remote):
    lens, prompt = on(name, remote), prompt_of(name)
    expected = lens_of(name).run(prompt, read=[Read(f"vision.{site}", [0]) for site in SITES])
    with lens.trace(prompt):
        seen = nnsight.save([])
        for site in SITES:
            seen.append(lens.read(0, f"vision.{site}"))
        logits = lens.envoy.output.logits.save()
    assert (logits - expected.logits).abs().max() < 1e-4
    for site, value in zip(SITES, seen, strict=True):
        assert value.shape == expected.reads[f"vision.{site}", 0].shape
        assert (value - expected.reads[f"vision.{site}", 0]).abs().max() < TOLERANCE, site


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_layers_heads_written_to_zero_are_ablated(name, remote):
    lens, prompt = on(name, remote), prompt_of(name)
    heads = [(0, head) for head in range(lens.vision.n_heads)]
    expected = lens_of(name).run(prompt, [AblateHeads(heads, part="vision")]).logits
    with lens.trace(prompt):
        lens.write(0, "vision.z", lens.read(0, "vision.z") * 0)
        logits = lens.envoy.output.logits.save()
    assert (logits - expected).abs().max() < 1e-4
    assert (expected - lens_of(name).run(prompt).logits).abs().max() > 1e-4


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "resid_post"])
def test_what_is_written_is_what_a_run_patches(site, remote):
    lens, prompt = on("qwen2_5_vl", remote), prompt_of("qwen2_5_vl")
    run = lens_of("qwen2_5_vl").run(prompt, read=[f"vision.{site}"])
    drawn = torch.randn(run.reads[f"vision.{site}", 1].shape, generator=torch.Generator().manual_seed(0))
    run.reads[f"vision.{site}", 1] = drawn
    expected = lens_of("qwen2_5_vl").run(prompt, [PatchResidual([1], run, "all", site, part="vision")])
    with lens.trace(prompt):
        lens.write(1, f"vision.{site}", drawn)
        logits = lens.envoy.output.logits.save()
    assert (logits - expected.logits).abs().max() < 1e-4
    assert (expected.logits - run.logits).abs().max() > 1e-4


def test_a_pattern_is_written_and_read_beside_the_decoders_of_the_same_layer():
    """Layer 0 of both: what was read of one is not taken for the other's."""
    lens, prompt = on("llava", False), prompt_of("llava")
    edit = AblateHeads([(0, 0), (0, 1)], "uniform", part="vision")
    expected = lens_of("llava").run(prompt, [edit], read=[Read("vision.z", [0]), Read("pattern", [0])])
    with lens.trace(prompt):
        pattern = lens.read(0, "vision.pattern")
        lens.write(0, "vision.pattern", torch.full_like(pattern, 1 / pattern.shape[-1]))
        z = lens.read(0, "vision.z").save()
        decoder = lens.read(0, "pattern").save()
    assert (z - expected.reads["vision.z", 0]).abs().max() < TOLERANCE
    assert (decoder - expected.reads["pattern", 0]).abs().max() < TOLERANCE


def test_a_generation_reads_it_once_before_its_steps(remote):
    lens, prompt = on("llava", remote), prompt_of("llava")
    expected = lens_of("llava").run(prompt, read=["vision.resid_post"]).reads["vision.resid_post", 0]
    with lens.trace(prompt, max_new_tokens=2, eos_token_id=[]) as tracer:
        features = lens.read(0, "vision.resid_post").save()
        tokens = tracer.result.save()
    assert (features - expected).abs().max() < TOLERANCE
    assert tokens.shape[1] == prompt.n_tokens + 2


# ---------------------------------------------------------------------- interventions


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_interventions_act_before_the_block_sees_the_tower(name, remote):
    lens, prompt = on(name, remote), prompt_of(name)
    edits = [AblateHeads([(0, 1)], part="vision"), AblateHeads([(2, 1)])]
    expected = lens_of(name).run(prompt, edits, ["vision.z", "vision.resid_post", "z"])
    with lens.trace(prompt, interventions=edits):
        z = lens.read(0, "vision.z").save()
        left = lens.read(0, "vision.resid_post").save()
        decoder = lens.read(2, "z").save()
        logits = lens.envoy.output.logits.save()
    assert (z - expected.reads["vision.z", 0]).abs().max() < TOLERANCE
    assert (left - expected.reads["vision.resid_post", 0]).abs().max() < TOLERANCE
    assert (decoder - expected.reads["z", 2]).abs().max() < TOLERANCE
    assert (logits - expected.logits).abs().max() < 1e-4
    assert (expected.logits - lens_of(name).run(prompt, edits[1:]).logits).abs().max() > 1e-4


def test_patterns_are_edited_and_then_read():
    lens, prompt = on("llava", False), prompt_of("llava")
    edits = [Knockout([1, 2], [0, 3], [0], part="vision"), AblateHeads([(0, 1)], "uniform", part="vision")]
    expected = lens_of("llava").run(prompt, edits, ["vision.pattern"])
    with lens.trace(prompt, interventions=edits):
        pattern = lens.read(0, "vision.pattern").save()
        logits = lens.envoy.output.logits.save()
    assert (pattern - expected.reads["vision.pattern", 0]).abs().max() < TOLERANCE
    assert (logits - expected.logits).abs().max() < 1e-4


def test_what_the_block_writes_goes_over_them(remote):
    lens, prompt = on("llava", remote), prompt_of("llava")
    run = lens_of("llava").run(prompt, read=["vision.z"])
    z = run.reads["vision.z", 0]
    with lens.trace(prompt, interventions=[AblateHeads([(0, 1)], part="vision")]):
        lens.write(0, "vision.z", z)
        logits = lens.envoy.output.logits.save()
    assert (logits - run.logits).abs().max() < 1e-4


def test_a_generation_in_a_trace_is_edited_at_its_prefill(remote):
    lens, prompt = on("llava", remote), prompt_of("llava")
    edit = AblateHeads([(0, 0), (0, 1)], part="vision")
    expected = lens_of("llava").generate(prompt, [edit], max_new_tokens=3, eos_token_id=[], logits=True)
    with lens.trace(prompt, interventions=[edit], max_new_tokens=3, eos_token_id=[], output_logits=True) as tracer:
        made = tracer.result.save()
    assert made[:, prompt.n_tokens :].tolist() == expected.tokens.tolist()


def test_a_block_that_applies_is_applied_once(remote):
    """Twice halved would be a quarter."""
    lens, prompt = on("llava", remote), prompt_of("llava")
    half = Halved()
    expected = lens_of("llava").run(prompt, [half])
    with lens.apply(half):
        with lens.trace(prompt):
            logits = lens.envoy.output.logits.save()
        assert (lens.run(prompt).logits - expected.logits).abs().max() < 1e-4
    assert (logits - expected.logits).abs().max() < 1e-4


def test_what_the_tower_runs_is_found_once_for_pictures_of_one_size():
    lens, prompt, other = on("qwen2_5_vl", "local"), prompt_of("qwen2_5_vl"), picture(60, 90)
    edit = AblateHeads([(0, 1)], part="vision")
    lens.run(prompt, [edit])
    lens.run(lens.prompt("Which?", images=prompt.images[0][0]), [edit])
    assert len(lens._backend.wrapped.tower_passes) == 1
    turned = lens.prompt("Which?", images=other)  # as many patches in another order
    expected = lens_of("qwen2_5_vl").run(turned, [edit])
    assert (lens.run(turned, [edit]).logits - expected.logits).abs().max() < 1e-4
    assert len(lens._backend.wrapped.tower_passes) == 2


@cache
def sharp(name):
    """A lens on a model whose tower looks at some tokens more than at others, as those that are drawn hardly do."""
    given = lens_of(name)
    model = copy.deepcopy(given.model)
    with torch.no_grad():
        for layer in Lens(model).adapter.tower.layers:
            layer.attention.qkv.weight.mul_(8)
    return Lens(model, given.processor)


def noise(width, height):
    """A picture whose patches differ."""
    drawn = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Image.fromarray(drawn.numpy())


def packed(name, backend):
    """Two lenses and two pictures of other sizes in one sequence, the second in several windows if there are any."""
    native = sharp(name)
    lens = Lens(native.model, native.processor, backend="nnsight", remote=backend)
    return native, lens, native.prompt("Compare.", images=[noise(90, 60), noise(170, 140)])


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_packed_pictures_are_one_pattern_whose_parts_are_edited(name, remote):
    native, lens, prompt = packed(name, remote)
    edits = [AblateHeads([(0, 0)], "uniform", part="vision"), Knockout([1, 2], [0, 3], [1], part="vision")]
    read = ["vision.pattern", "vision.z"]
    expected, plain = native.run(prompt, edits, read), native.run(prompt, read=read)
    assert (expected.reads["vision.pattern", 0] == 0).any()  # of other pictures
    given = lens.run(prompt, edits, read)
    for at, value in expected.reads.items():
        assert (given.reads[at] - value).abs().max() < TOLERANCE
    assert all((plain.reads["vision.z", layer] - given.reads["vision.z", layer]).abs().max() > 1e-3 for layer in (0, 1))
    assert (given.logits - expected.logits).abs().max() < 1e-4
    assert [report.edits for report in given.reports] == [report.edits for report in expected.reports]


def test_a_packed_pattern_is_written_in_its_parts_alone(remote):
    native, lens, prompt = packed("qwen2_5_vl", remote)
    layer = 1
    expected = native.run(prompt, [AblateHeads([(layer, 0), (layer, 1)], "uniform", part="vision")])
    with lens.trace(prompt):
        pattern = lens.read(layer, "vision.pattern").save()
        even = (pattern > 0) / (pattern > 0).sum(-1, keepdim=True)
        lens.write(layer, "vision.pattern", even)
        logits = lens.envoy.output.logits.save()
    assert (logits - expected.logits).abs().max() < 1e-4
    everywhere = "an edit gives attention to tokens of another picture or window, which these rows cannot see"
    with pytest.raises(Exception, match=everywhere), lens.trace(prompt):
        lens.write(layer, "vision.pattern", torch.full_like(pattern, 1 / pattern.shape[-1]))


def test_a_packed_pattern_that_an_intervention_edits_is_not_read_as_it_was(remote):
    native, lens, prompt = packed("qwen2_5_vl", remote)
    edit = AblateHeads([(1, 0)], "uniform", part="vision")
    expected = native.run(prompt, [edit], ["vision.pattern", "vision.z"])
    with lens.trace(prompt, interventions=[edit]):
        before = lens.read(0, "vision.pattern").save()
        z = lens.read(1, "vision.z").save()
        logits = lens.envoy.output.logits.save()
    assert (before - expected.reads["vision.pattern", 0]).abs().max() < TOLERANCE
    assert (z - expected.reads["vision.z", 1]).abs().max() < TOLERANCE
    assert (logits - expected.logits).abs().max() < 1e-4
    said = (
        "the pattern of layer 1 of the vision tower is edited by an intervention of this trace, and a tower that packs"
    )
    with pytest.raises(Exception, match=said), lens.trace(prompt, interventions=[edit]):
        lens.read(1, "vision.pattern")


def test_an_edit_of_what_is_out_of_reach_is_refused(remote, monkeypatch):
    monkeypatch.setattr("lmm_lens.backends.nnsight.wrap.packed_in", lambda attention: ())  # a forward without the names
    edit, packing = AblateHeads([(0, 1)], "uniform", part="vision"), on("qwen2_5_vl", remote)
    said = r"layer 0 of the vision tower has no vision.pattern here: its forward attends in a way in which what it"
    with pytest.raises(HookError, match=said), packing.trace(prompt_of("qwen2_5_vl"), interventions=[edit]):
        pass
    assert "vision.pattern" not in refused(packing, prompt_of("qwen2_5_vl"), 0, "vision.pattern").partition("it has")[2]
    behind = AblateHeads([(1, 1)], part="vision")
    with (
        pytest.raises(InterventionError, match="takes the features that leave layer 0: what changes behind it"),
        on("llava", remote).trace(prompt_of("llava"), interventions=[behind]),
    ):
        pass
    nothing = on("llava", remote)
    with (
        pytest.raises(HookError, match="the vision tower of LlavaForConditionalGeneration did not run"),
        nothing.trace(nothing.prompt("What?"), interventions=[AblateHeads([(0, 1)], part="vision")]),
    ):
        pass


def refused(lens, prompt, layer, site, value=None):
    with pytest.raises(HookError) as caught, lens.trace(prompt):
        lens.read(layer, site) if value is None else lens.write(layer, site, value)
    return str(caught.value)


def test_what_is_not_there_is_told(remote):
    llava, prompt = on("llava", remote), prompt_of("llava")
    assert "layer 9 is out of range: the vision tower has layers 0 to 1" in refused(llava, prompt, 9, "vision.z")
    said = refused(llava, prompt, 0, "vision.patern")
    assert "layer 0 of the vision tower has no hook point 'vision.patern'\n  it has: vision.resid_pre, " in said
    assert "come through layers 0 to 0 of its vision tower: what is written into layer 1 reaches no answer" in refused(
        llava, prompt, 1, "vision.z", torch.zeros(1)
    )
    assert "vision.z of layer 0 is (1, 17, 2, 16), given (3,)" in refused(llava, prompt, 0, "vision.z", torch.zeros(3))


def test_a_model_without_a_tower_says_so():
    said = refused(on("fast_vlm", False), prompt_of("fast_vlm"), 0, "vision.z")
    assert "no vision tower with attention heads, so it has no hook points there" in said


def test_a_tower_that_did_not_run_gives_nothing():
    lens = on("llava", False)
    with pytest.raises(Exception, match=r"vision_tower.*output"), lens.trace(lens.prompt("What?")):
        lens.read(0, "vision.resid_post").save()


def test_asked_for_behind_the_decoder_is_an_error():
    lens = on("llava", False)
    with pytest.raises(Exception, match="the model already ran past it"), lens.trace(prompt_of("llava")):
        late = (lens.read(0, "z"), lens.read(0, "vision.z"))  # noqa: F841 (the second is asked for too late)


def test_outside_of_a_trace_it_says_so():
    with pytest.raises(HookError, match=r"work inside `with lens.trace"):
        on("llava", False).read(0, "vision.z")
