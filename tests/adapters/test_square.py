"""Square pictures: LLaVA, PaliGemma, DeepSeek-VL (one tower and two), Janus, FastVLM, with their real processors."""

from functools import cache

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmm_lens import Lens, LensError
from tests.support.evidence import (
    changed,
    check_bookkeeping,
    check_boxes,
    check_it_runs,
    check_mark,
    identity,
    picture,
    supports,
)
from tests.support.models.parts import NO_HEAD_DIM, SMALL, TEXT, TOWER, siglip
from tests.support.tokenizer import byte_tokenizer

SQUARE = {"height": 56, "width": 56}
LLAMA = hf.LlamaConfig(**{**TEXT, "vocab_size": 300})


def tokenizer():
    return byte_tokenizer(image_token="<image>", boi_token="<begin>", eoi_token="<end>")


def llava():
    """On a SigLIP tower whose patches leave 4 of 60 pixels unseen, as SO400M leaves 6 of 384."""
    tokens = tokenizer()
    seen = hf.SiglipImageProcessorPil(size={"height": 60, "width": 60})
    processor = hf.LlavaProcessor(seen, tokens, patch_size=14, vision_feature_select_strategy="full")
    config = hf.LlavaConfig(
        vision_config=hf.SiglipVisionConfig(**{**SMALL, "image_size": 60}, vision_use_head=False),
        text_config=LLAMA,
        image_token_index=tokens.image_token_id,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    return hf.LlavaForConditionalGeneration(config), processor


def paligemma():
    tokens = byte_tokenizer(image_token="<image>")
    seen = hf.SiglipImageProcessorPil(size=SQUARE)
    seen.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(seen, tokens)
    config = hf.PaliGemmaConfig(
        vision_config=siglip(projection_dim=64).to_dict(),
        text_config={**TEXT, "vocab_size": 1600, "model_type": "gemma"},
        image_token_index=processor.image_token_id,
        projection_dim=64,
        hidden_size=64,
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


def deepseek_vl():
    tokens = tokenizer()
    processor = hf.DeepseekVLProcessor(hf.DeepseekVLImageProcessorPil(size=SQUARE), tokens, num_image_tokens=16)
    config = hf.DeepseekVLConfig(vision_config=siglip(), text_config=LLAMA, image_token_id=tokens.image_token_id)
    return hf.DeepseekVLForConditionalGeneration(config), processor


def deepseek_vl_hybrid():
    tokens = tokenizer()
    seen = hf.DeepseekVLHybridImageProcessorPil(size=SQUARE, high_res_size={"height": 128, "width": 128})
    processor = hf.DeepseekVLHybridProcessor(seen, tokens, num_image_tokens=16)
    sam = {
        **TOWER,
        "output_channels": 8,
        "image_size": 128,
        "global_attn_indexes": [1],
        "mlp_dim": 32,
        "window_size": 4,
    }
    config = hf.DeepseekVLHybridConfig(
        vision_config=siglip(), high_res_vision_config=sam, text_config=LLAMA, image_token_id=tokens.image_token_id
    )
    return hf.DeepseekVLHybridForConditionalGeneration(config), processor


def janus():
    tokens = tokenizer()
    processor = hf.JanusProcessor(hf.JanusImageProcessorPil(size=SQUARE), tokens, num_image_tokens=16)
    vision = {**SMALL, "projection_dim": 64, "depth": 2, "mlp_ratio": 2, "num_image_tokens": 16}
    codebook = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "projection_dim": 32}
    config = hf.JanusConfig(
        vision_config=vision, text_config=LLAMA, vq_config=codebook, image_token_id=tokens.image_token_id
    )
    return hf.JanusForConditionalGeneration(config), processor


def fast_vlm():
    """With a ConvNeXt tower in place of timm's FastViT: another tower of convolutions, 32 pixels a cell."""
    tokens = tokenizer()
    seen = hf.LlavaImageProcessorPil(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96}, do_pad=True)
    processor = hf.LlavaProcessor(seen, tokens, patch_size=32, vision_feature_select_strategy="full")
    config = hf.FastVlmConfig(
        vision_config=hf.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
        text_config=hf.Qwen2Config(**{**NO_HEAD_DIM, "vocab_size": 300}),
        image_token_index=tokens.image_token_id,
    )
    config.vision_config.hidden_size = 16
    return hf.FastVlmForConditionalGeneration(config), processor


BUILD = {build.__name__: build for build in (llava, paligemma, deepseek_vl, deepseek_vl_hybrid, janus, fast_vlm)}
BEGIN_END = {"janus"}
BATCHES = [name for name in BUILD if name != "paligemma"]  # which takes no row without a picture


@cache
def lens_of(name: str) -> Lens:
    torch.manual_seed(0)
    model, processor = BUILD[name]()
    for gate in (p for n, p in model.named_parameters() if n.endswith("high_res_vision_alpha")):
        nn.init.constant_(gate, 0.7)
    return Lens(model.eval(), processor)


def image_id(lens: Lens) -> int:
    return lens.processor.tokenizer.convert_tokens_to_ids("<image>")


def features(lens: Lens, inputs, pixels=None):
    """The feature of every image token, in order, each from its own pixels alone."""
    model = lens.adapter.model.model
    pixels = inputs["pixel_values"] if pixels is None else pixels
    tower = model.vision_model if hasattr(model, "vision_model") else model.vision_tower
    blocks = [m for m in tower.modules() if type(m).__name__.endswith(("EncoderLayer", "ConvNextLayer"))]
    assert blocks
    with identity(blocks):
        if hasattr(model, "get_low_res_image_features"):  # the other tower looks beyond the box
            return model.get_low_res_image_features(pixels).last_hidden_state.flatten(0, 1)
        out = model.get_image_features(pixel_values=pixels).pooler_output
        return torch.cat(list(out))


@pytest.mark.parametrize("name", BUILD)
def test_every_picture_is_one_square(name):
    lens = lens_of(name)
    assert lens.adapter.family == name
    prompt = lens.prompt("<image> a <image><image> b", images=[picture(56, 84), picture(100, 28), picture(60, 60)])
    check_bookkeeping(lens, prompt, image_id(lens))
    check_it_runs(lens, prompt)
    images = [span for span in prompt.spans[0] if span.kind == "image"]
    side = 3 if name == "fast_vlm" else 4
    assert [(s.image, s.tile, s.grid) for s in images] == [(i, 0, (side, side)) for i in range(3)]
    tokens = lens.processor.tokenizer.convert_ids_to_tokens(prompt.inputs["input_ids"][0].tolist())
    around = ("<begin>", "<end>") if name in BEGIN_END else ()
    assert prompt.mask("marker")[0].tolist() == [token in around for token in tokens]


@pytest.mark.parametrize("name", BUILD)
def test_the_box_of_every_token_is_where_its_gradient_lies(name):
    lens = lens_of(name)
    prompt = lens.prompt(inputs=dict(lens.prompt("<image> and <image>", images=[picture(90, 90)] * 2).inputs))
    found = supports(lambda pixels: features(lens, prompt.inputs, pixels), prompt.inputs["pixel_values"])
    check_boxes(prompt, found)


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("size", [(112, 112), (300, 170), (90, 231)])
def test_a_mark_in_the_picture_as_given_moves_the_tokens_that_its_box_names(name, size):
    lens = lens_of(name)
    width, height = size
    mark = (width // 2, height // 3, width // 2 + width // 4, height // 3 + height // 4)
    before, after = (lens.prompt("<image>?", images=picture(*size, m)) for m in (None, mark))
    moved = changed(features(lens, before.inputs), features(lens, after.inputs), before)
    check_mark(before, moved, mark, halo=(2.5 * max(size) / 56,) * 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(20, 300), st.integers(20, 300), st.sampled_from(sorted(BUILD)))
def test_the_square_covers_the_whole_picture_whatever_its_shape(width, height, name):
    lens = lens_of(name)
    prompt = lens.prompt("<image>?", images=picture(width, height))
    check_bookkeeping(lens, prompt, image_id(lens))
    seen = 56 / 60 if name == "llava" else 1
    corners = [(x, y) for x in (0, width * seen - 1) for y in (0, height * seen - 1)]
    assert all(prompt.patch_at(*corner) in prompt.spans[0][name in BEGIN_END].positions for corner in corners)
    boxes = [prompt.box(p) for p in prompt.mask("image")[0].nonzero().flatten().tolist()]
    region = next(span.region for span in prompt.spans[0] if span.kind == "image")
    area = (region.x1 - region.x0) * (region.y1 - region.y0)
    assert sum((b.x1 - b.x0) * (b.y1 - b.y0) for b in boxes) == pytest.approx(area)


@pytest.mark.parametrize("name", ["deepseek_vl", "deepseek_vl_hybrid", "janus"])
@pytest.mark.parametrize("size", [(133, 77), (77, 133), (200, 5), (5, 200), (61, 60), (60, 60)])
def test_padding_is_where_the_processor_put_it_to_the_pixel(name, size):
    """Thin pictures are stretched to the smallest side that the processor allows."""
    prompt = lens_of(name).prompt("<image>", images=picture(*size, (0, 0, *size)))  # white, on a grey ground
    pixels = prompt.inputs.get("high_res_pixel_values", prompt.inputs["pixel_values"])[0, 0]
    ground = pixels < pixels.max() - 0.01
    square, (x0, y0, x1, y1) = len(pixels), next(s.region for s in prompt.spans[0] if s.kind == "image")
    for whole, start, end, padded in ((size[0], x0, x1, ground.all(0)), (size[1], y0, y1, ground.all(1))):
        shown = (~padded).nonzero().flatten()
        if ground.any():
            assert (0 - start) / (end - start) * square == pytest.approx(int(shown[0]))
            assert (whole - start) / (end - start) * square == pytest.approx(int(shown[-1]) + 1)
        else:
            assert (start, end) == (0, whole)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", BATCHES)
def test_rows_of_a_batch_have_their_own_pictures_and_padding(name, side):
    lens = lens_of(name)
    lens.processor.tokenizer.padding_side = side
    texts = ["no picture at all", "<image> two <image>", "x <image>"]
    pictures = [None, [picture(56, 84), picture(112, 28)], [picture(84, 84)]]
    prompt = lens.prompt(texts, images=pictures)
    check_bookkeeping(lens, prompt, image_id(lens))
    check_it_runs(lens, prompt)
    alone = [lens.prompt(t, images=p) for t, p in zip(texts, pictures, strict=True)]
    for row, single in enumerate(alone):
        shift = int(prompt.mask("all")[row].int().argmax())
        moved = [[p + shift for p in span.positions] for span in single.spans[0]]
        assert [list(span.positions) for span in prompt.spans[row]] == moved
        assert [(s.kind, s.image, s.grid, s.region) for s in prompt.spans[row]] == [
            (s.kind, s.image, s.grid, s.region) for s in single.spans[0]
        ]


def test_paligemma_batches_rows_with_pictures():
    lens = lens_of("paligemma")
    prompt = lens.prompt(["<image> a", "longer text"], images=[picture(90, 40), picture(40, 90)])
    check_bookkeeping(lens, prompt, image_id(lens))
    check_it_runs(lens, prompt)
    assert [len(row) for row in prompt.spans] == [1, 1]
    bos = prompt.mask("bos").int().argmax(1).tolist()
    assert bos == [row[-1].positions[-1] + 1 for row in prompt.spans]  # right after the picture


def test_paligemma_refuses_a_row_without_a_picture():
    with pytest.raises(LensError, match=r"rows \[1\] have none\n.*a prompt of their own"):
        lens_of("paligemma").prompt(["<image> a", "text"], images=[picture(56, 56), None])


@pytest.mark.parametrize("name", BUILD)
def test_a_run_that_is_no_whole_number_of_pictures_is_refused(name):
    inputs = dict(lens_of(name).prompt("<image>", images=picture(56, 56)).inputs)
    ids = inputs["input_ids"][0]
    first = int((ids == image_id(lens_of(name))).int().argmax())
    shorter = {"input_ids": torch.cat([ids[:first], ids[first + 1 :]])[None], "pixel_values": inputs["pixel_values"]}
    with pytest.raises(LensError, match="is no whole number of pictures"):
        lens_of(name).prompt(inputs=shorter)
