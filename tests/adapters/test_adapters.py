"""Adapters: the layers of every family, the layout of the known ones against the gradient of the vision tower."""

from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch import nn

from lmm_lens import Lens, LensError
from lmm_lens.adapters import Adapter, Generic, adapter_for, families, registry
from lmm_lens.adapters.square import square_spans
from lmm_lens.prompts.spans import Box
from tests.support.cases import case
from tests.support.models import FAMILIES, IMAGE, joined
from tests.support.models.parts import TEXT, clip
from tests.support.reference import attention_of

GRIDS = ["llava", "vipllava"]


def test_the_layers_found_are_those_of_the_decoder(family):
    layers = list(family.model.get_decoder().layers)
    found = family.lens.adapter.layers
    assert [layer.module for layer in found] == layers
    for layer, parts in zip(layers, found, strict=True):
        attention = attention_of(layer)
        assert parts.attention is attention
        assert parts.mlp is layer.mlp
        if attention is None:
            assert (parts.n_heads, parts.d_head, parts.output_projection) == (0, 0, None)
        else:
            assert (parts.n_heads, parts.d_head) == (4, 16)
            assert parts.output_projection is attention.o_proj


def test_the_lens_knows_the_shape_of_every_family(family):
    lens = family.lens
    assert (lens.n_layers, lens.n_heads, lens.d_head) == (family.n_layers, 4, 16)
    assert lens.shape.n_heads == tuple(4 if i in family.attending else 0 for i in range(family.n_layers))


def test_the_visual_tokens_are_the_image_tokens(family):
    visual, marker = family.prompt.mask("visual"), family.prompt.mask("marker")
    image_tokens = family.inputs["input_ids"] == IMAGE
    assert torch.equal(visual | (marker & image_tokens), image_tokens)  # newline vectors are image tokens too
    assert bool(visual.any())
    assert (
        sorted(p for span in family.prompt.spans[0] if span.kind != "marker" for p in span.positions)
        == visual[0].nonzero().flatten().tolist()
    )


def test_without_an_adapter_pixels_are_not_mapped_and_everything_else_works():
    family = case("idefics2")
    lens = Lens(family.model, adapter=Generic(family.model))
    prompt = lens.prompt(inputs=family.inputs)
    assert not lens.adapter.has_grid
    assert torch.equal(prompt.mask("visual"), family.prompt.mask("visual"))
    assert torch.equal(lens.run(prompt).logits, family.lens.run(family.prompt).logits)
    with pytest.raises(LensError, match="layout of these 8 visual tokens is not known"):
        prompt.patch_at(1, 1)


@pytest.mark.parametrize("name", ["pixtral_llava", "mistral3", "idefics3"])
def test_runs_of_one_picture_are_not_counted_as_pictures(name):
    """One picture makes several runs there, by row breaks or tiles; the tensors do not tell where the next begins."""
    spans = case(name).prompt.spans[0]
    assert len(spans) > 1
    assert {span.image for span in spans} <= {None, 0}


def test_a_pixel_of_a_picture_whose_runs_are_not_told_apart_is_refused_in_these_words():
    prompt = case("pixtral_llava").lens.prompt(inputs=case("pixtral_llava").inputs)
    blind = Lens(case("pixtral_llava").model, adapter=Generic(case("pixtral_llava").model)).prompt(
        inputs=joined([case("pixtral_llava").inputs])
    )
    assert len([span for span in prompt.spans[0] if span.kind != "marker"]) > 0
    with pytest.raises(LensError) as raised:
        blind.patch_at(3, 3)
    assert str(raised.value) == (
        "which of row 0's visual tokens belong to image 0 is not known, nor where they lie in it\n"
        "  the family has no adapter with a grid; `lmm-lens families` lists those that have"
    )


# ---------------------------------------------------------------------- the gradient oracle


def support_of_each_token(model, pixels):
    """For each visual token the box (x0, y0, x1, y1) of the pixels on which its features depend.

    With the tower's layers replaced by the identity, a patch reaches its own token alone.
    """
    tower = model.model.vision_tower
    layers = next(m for n, m in tower.named_modules() if isinstance(m, nn.ModuleList) and n.endswith("layers"))
    hooks = [layer.register_forward_hook(lambda m, args, out: args[0], prepend=True) for layer in layers]
    try:
        pixels = pixels.clone().requires_grad_(True)
        features = model.get_image_features(pixel_values=pixels).pooler_output
        features = torch.cat(list(features)).flatten(0, -2)
        boxes = []
        for token in features:
            (slope,) = torch.autograd.grad(token.square().sum(), pixels, retain_graph=True)
            image, _, y, x = slope.nonzero(as_tuple=True)
            assert len(image.unique()) == 1
            boxes.append((int(image[0]), (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)))
    finally:
        for hook in hooks:
            hook.remove()
    return boxes


@pytest.mark.parametrize("name", GRIDS)
def test_the_box_of_every_token_is_where_its_gradient_lies(name):
    family = case(name)
    inputs = {
        "input_ids": torch.tensor([[1, 5, *[IMAGE] * 16, 6, *[IMAGE] * 32, 7]]),  # the last two are adjacent
        "pixel_values": torch.randn(3, 3, 56, 56),
    }
    prompt = family.lens.prompt(inputs=inputs)
    assert [(span.image, len(span), span.grid) for span in prompt.spans[0]] == [(i, 16, (4, 4)) for i in range(3)]
    tokens = prompt.mask("image")[0].nonzero().flatten().tolist()
    boxes = support_of_each_token(family.model, inputs["pixel_values"])
    assert len(boxes) == len(tokens)
    for position, (image, box) in zip(tokens, boxes, strict=True):
        assert prompt.box(position) == box
        assert prompt.patch_at(box[0], box[1], image=image) == position
        assert prompt.positions_in_box(box, image=image) == (position,)


def test_a_class_token_that_is_kept_is_a_marker_and_lies_nowhere():
    config = hf.LlavaConfig(
        vision_config=clip(),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_select_strategy="full",
    )
    lens = Lens(hf.LlavaForConditionalGeneration(config).eval())
    inputs = {"input_ids": torch.tensor([[1, *[IMAGE] * 17, 6]]), "pixel_values": torch.randn(1, 3, 56, 56)}
    prompt = lens.prompt(inputs=inputs)
    assert [(span.kind, span.positions[0], len(span)) for span in prompt.spans[0]] == [
        ("marker", 1, 1),
        ("image", 2, 16),
    ]
    assert prompt.patch_at(0, 0) == 2
    assert prompt.mask("marker")[0].nonzero().flatten().tolist() == [1]
    lens.run(prompt)


@pytest.mark.parametrize("n_tokens", [15, 17, 20])
def test_a_run_that_is_no_whole_number_of_pictures_is_refused(n_tokens):
    where = f"run of {n_tokens} image tokens at positions 1 to {n_tokens}"
    message = f"{where} is no whole number of pictures\n.*16 tokens.*4 x 4"
    inputs = {"input_ids": torch.tensor([[1, *[IMAGE] * n_tokens, 6]]), "pixel_values": torch.randn(1, 3, 56, 56)}
    with pytest.raises(LensError, match=message):
        case("llava").lens.prompt(inputs=inputs)


def test_pictures_are_cut_from_a_run_in_order_each_with_its_region():
    whole, other = Box(0, 0, 2, 2), Box(5, 5, 9, 9)
    spans = square_spans([(0, 1, 2, 3), (6, 7, 8, 9, 10, 11, 12, 13)], 2, [None, other], whole)
    assert [(span.image, span.positions[0], span.region) for span in spans] == [
        (0, 0, whole),
        (1, 6, other),
        (2, 10, whole),
    ]


# ---------------------------------------------------------------------- choosing an adapter


def test_each_model_gets_its_familys_adapter():
    chosen = {name: case(name).lens.adapter.family for name in FAMILIES}
    assert chosen["llava"] == "llava"
    assert chosen["vipllava"] == "vipllava"
    assert {"llava", "vipllava"} <= set(families())
    assert "generic" not in chosen.values()


def test_an_installed_package_may_add_a_family(monkeypatch):
    class Mine(Adapter):
        family = "mine"
        model_types = ("idefics2", "llava")

    entry = SimpleNamespace(load=lambda: Mine)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == "lmm_lens.adapters" else [])
    families.cache_clear()
    try:
        assert isinstance(adapter_for(case("idefics2").model), Mine)
        assert isinstance(adapter_for(case("llava").model), Mine)  # it overrides a built-in one
    finally:
        families.cache_clear()


def test_an_adapter_may_be_given():
    llava = case("llava")
    lens = Lens(llava.model, adapter=Generic(llava.model))
    assert lens.adapter.family == "generic"
    assert not lens.prompt(inputs=llava.inputs).spans[0][0].grid


def test_a_text_only_model_is_refused():
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT))
    what = r"LlamaForCausalLM \(llama\) has no image token, so it has no visual tokens"
    with pytest.raises(LensError, match=what + r"\n.*image_token_id.*\n.*TransformerLens"):
        Lens(model)


def test_what_is_no_hugging_face_model_is_refused():
    with pytest.raises(
        LensError, match=r"expected a Hugging Face model with a config, given Linear\n.*from_pretrained"
    ):
        Lens(nn.Linear(2, 2))


def test_a_model_without_decoder_layers_is_refused():
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(model_type="strange", image_token_id=3)
    with pytest.raises(LensError, match=r"no decoder layers were found in Linear\n.*layer_idx"):
        Lens(model)


def test_the_answer_turn_is_read_off_the_chat_template(lens):
    tokens = lens.processor.tokenizer.convert_ids_to_tokens(lens.adapter.answer_turn)
    assert tokens == ["ASSISTANT:"]
    assert case("llava").lens.adapter.answer_turn == []
    assert lens.adapter.image_slot == "<image>"
    assert case("llava").lens.adapter.image_slot is None
