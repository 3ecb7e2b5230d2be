"""Sinks of the vision tower: patches whose norm was made to explode."""

import pytest
import torch

from lmm_lens import Lens, find_sinks
from lmm_lens.bundled import shapes
from lmm_lens.errors import ModelError, ScoreError
from lmm_lens.sinks import find_vision_sinks
from tests.support.cases import case, plain
from tests.support.models import FAMILIES, another

TOWERS = [name for name in FAMILIES if name != "mllama"]


def towers(model):
    """The module lists of the vision encoder."""
    return [m for m in model.get_encoder(modality="image").modules() if isinstance(m, torch.nn.ModuleList)]


def with_loud_patches(name, patches, norm=5000.0):
    """A model whose tower's first layer is entered by patches of that norm."""
    model, inputs = FAMILIES[name]()
    first = max(towers(model), key=len)[0]

    def loud(module, args, kwargs):
        x = (args[0] if args else kwargs["hidden_states"]).clone()
        flat = x if x.ndim == 3 else x[None]
        flat[:, patches] *= norm / flat[:, patches].norm(dim=-1, keepdim=True)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    first.register_forward_pre_hook(loud, with_kwargs=True)
    return model, inputs


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_without_any_is_reported_as_such(name):
    given = case(name)
    found = find_vision_sinks(given.lens, given.prompt, threshold=1000)  # random SigLIPs pass the 100 of CLIP ViT-L
    assert not found.sinks.any()
    largest = float(found.norms.max())
    assert repr(found) == (
        f"VisionSinks: none: no token of the vision tower reaches norm 1000, the largest is {largest:.1f}"
    )
    assert found.norms.ndim == 3
    assert found.norms.isfinite().all()


@pytest.mark.parametrize("name", ["llava", "vipllava", "gemma3", "paligemma", "internvl", "llava_next", "idefics3"])
def test_loud_patches_are_found_in_every_layer_and_no_other(name):
    model, inputs = with_loud_patches(name, [2, 5])
    lens = Lens(model)
    found = find_vision_sinks(lens, lens.prompt(inputs=inputs), 1000)
    expected = torch.zeros_like(found.sinks)
    expected[..., [2, 5]] = True
    assert torch.equal(found.sinks, expected)
    assert repr(found).startswith("VisionSinks: 2.0 tokens a picture after the last layer")


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3"])
def test_loud_patches_of_a_tower_without_batch_are_found(name):
    model, inputs = with_loud_patches(name, [2, 5])
    lens = Lens(model)
    found = find_vision_sinks(lens, lens.prompt(inputs=inputs), 1000)
    assert found.sinks.shape[0] == 1
    assert (found.sinks.sum(-1) == 2).all()


def test_the_norms_are_those_of_a_plain_forward():
    given = case("llava")
    layers, seen = max(towers(given.model), key=len), []
    hooks = [
        layer.register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for layer in layers
    ]
    plain(given.model, given.inputs)
    for hook in hooks:
        hook.remove()
    expected = torch.stack([x.norm(dim=-1) for x in seen], 1)
    found = find_vision_sinks(given.lens, given.prompt)
    torch.testing.assert_close(found.norms, expected)
    assert found.norms.shape == (1, 2, 17)  # a class token and 4 x 4 patches


@pytest.mark.parametrize(("backend", "remote"), [("transformer_lens", False), ("nnsight", False), ("nnsight", "local")])
def test_they_are_the_same_on_every_backend(lens, backend, remote):
    options = {"remote": remote} if remote else {}
    other, example = Lens.demo(backend=backend, **options), shapes.examples(1, seed=3)[0]
    expected, found = (
        find_sinks(each, each.prompt(example.question, images=example.image), part="vision") for each in (lens, other)
    )
    torch.testing.assert_close(found.norms, expected.norms, atol=1e-3, rtol=1e-4)


def test_a_threshold_of_ones_own_decides():
    given = case("llava")
    norms = find_vision_sinks(given.lens, given.prompt).norms
    middle = float(norms.median())
    found = find_vision_sinks(given.lens, given.prompt, threshold=middle)
    assert torch.equal(found.sinks, norms >= middle)
    assert 0 < int(found.sinks.sum()) < norms.numel()


def test_the_default_threshold_is_the_published_one():
    given = case("llava")
    assert find_vision_sinks(given.lens, given.prompt).threshold == 100
    assert not find_vision_sinks(given.lens, given.prompt).sinks.any()


def test_each_picture_has_its_own():
    given = case("llava")
    inputs = {
        name: torch.cat([given.inputs[name], other]) if name == "pixel_values" else given.inputs[name].repeat(2, 1)
        for name, other in another(given.inputs).items()
    }
    found = find_vision_sinks(given.lens, given.lens.prompt(inputs=inputs))
    alone = find_vision_sinks(given.lens, given.prompt)
    assert found.norms.shape[0] == 2
    torch.testing.assert_close(found.norms[:1], alone.norms)
    assert not torch.allclose(found.norms[0], found.norms[1])


def test_a_prompt_without_a_picture_is_refused():
    given = case("llava")
    prompt = given.lens.prompt(inputs={"input_ids": torch.tensor([[1, 5, 6]])})
    with pytest.raises(ScoreError, match="the prompt has no visual tokens, so the vision tower does not run on it"):
        find_vision_sinks(given.lens, prompt)


def test_a_model_whose_tower_cannot_be_found_is_refused():
    model, inputs = FAMILIES["llava"]()
    lens = Lens(model)
    prompt = lens.prompt(inputs=inputs)
    model.get_encoder = lambda modality=None: model
    with pytest.raises(
        ModelError, match="LlavaForConditionalGeneration has no vision tower with layers that could be found"
    ):
        find_vision_sinks(lens, prompt)


def test_looking_leaves_no_hooks():
    given = case("llava")
    count = lambda: sum(len(m._forward_hooks) for m in given.model.modules())  # noqa: E731
    before = count()
    find_vision_sinks(given.lens, given.prompt)
    assert count() == before


def test_the_vision_towers_sinks_are_another_set_than_the_decoders():
    from lmm_lens import find_sinks

    model, inputs = with_loud_patches("llava", [2, 5])
    lens = Lens(model)
    prompt = lens.prompt(inputs=inputs)
    assert find_vision_sinks(lens, prompt).sinks.any()
    assert not find_sinks(lens, prompt)


def test_it_is_find_sinks_of_the_tower():
    model, inputs = with_loud_patches("llava", [2, 5])
    lens = Lens(model)
    prompt = lens.prompt(inputs=inputs)
    found = find_sinks(lens, prompt, part="vision", norm=1000)
    assert torch.equal(found.norms, find_vision_sinks(lens, prompt, 1000).norms)
    assert found.positions(0) == found.positions(1) == (2, 5)
    assert find_sinks(lens, prompt, part="vision").threshold == 100
    for options, message in (
        ({"part": "vision", "dims": [3]}, "told by their norm, without dims, on one prompt"),
        ({"norm": 3.0}, 'norm is of tokens of the vision tower: give part="vision" with it'),
        ({"part": "tower"}, "unknown part of the model 'tower'"),
    ):
        with pytest.raises(ScoreError, match=message):
            find_sinks(lens, prompt, **options)
    with pytest.raises(ScoreError, match="layer 9 of picture 0 is not there"):
        found.positions(9)
