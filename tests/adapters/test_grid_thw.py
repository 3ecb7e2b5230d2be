"""Pictures in the Qwen layout, in twelve families with their real processors: every token's place, and every marker."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_lens import LensError
from tests.support.evidence import changed, check_it_runs, picture
from tests.support.families import lens_of
from tests.support.families.grid_thw import NAMES, check_bookkeeping, features, places, tokens_of

NAMELESS = ["exaone4_5", "hyperclovax_vision_v2", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"]
"""Whose configurations do not name the tokens around pictures."""
PROCESSORS = ["qwen2_vl", "qwen3_vl", "glm4v", "paddleocr_vl"]  # those that resize differently


def test_each_family_has_its_adapter():
    families = {name: lens_of(name).adapter.family for name in NAMES}
    assert families == {
        **{name: name for name in NAMES},
        "qwen3_vl_moe": "qwen3_vl",
        "qwen3_5_moe": "qwen3_5",
        "glm4v_moe": "glm4v",
        "glm46v": "glm4v",
        "ernie4_5_vl_moe": "ernie4_5_vl",
        **dict.fromkeys(("glm_ocr", "glmga"), "glm4v"),
        **dict.fromkeys(("cosmos3_omni", "lfm3_vl"), "qwen3_vl"),
        **dict.fromkeys(("exaone4_5", "hyperclovax_vision_v2"), "qwen2_5_vl"),
        **dict.fromkeys(("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"), "qwen_omni"),
        "qwen4_exp": "qwen3_5",
    }
    assert all(lens_of(name).adapter.has_grid for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_several_sizes_become_grids_of_their_own_shape(name):
    lens = lens_of(name)
    sizes = [(100, 70), (60, 200), (30, 30)]
    prompt = lens.prompt("Which is blue?", images=[picture(*size) for size in sizes])
    check_bookkeeping(lens, prompt)
    check_it_runs(lens, prompt)
    pictures = [span for span in prompt.spans[0] if span.kind == "image"]
    assert [span.image for span in pictures] == [0, 1, 2]
    assert [span.grid for span in pictures] == [(h // 2, w // 2) for _, h, w in prompt.inputs["image_grid_thw"]]
    regions = [(0, 0, *size) for size in sizes]
    assert ([span.region for span in pictures] == regions) == (name != "glm5_next")  # which fills pictures up
    assert {(span.tile, span.frame, span.video) for span in pictures} == {(0, None, None)}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "video_llama_3"])
def test_markers_are_the_tokens_around_pictures_and_nothing_else(name):
    lens = lens_of(name)
    prompt = lens.prompt("Which?", images=[picture(60, 60), picture(90, 60)])
    around = lens.processor.tokenizer.convert_tokens_to_ids(list(tokens_of(name).around["image"]))
    ids = prompt.inputs["input_ids"][0]
    assert torch.equal(prompt.mask("marker")[0], torch.isin(ids, torch.tensor(around)))
    assert prompt.mask("marker").sum() == 4
    assert prompt.mask("question").sum() == len("Which?")


@pytest.mark.parametrize("name", NAMES)
def test_the_box_of_every_token_is_where_its_gradient_lies(name):
    """From tensors alone, so that boxes are pixels of the processed picture, as the gradient's are."""
    lens = lens_of(name)
    inputs = lens.prompt("?", images=[picture(96, 60), picture(64, 90)]).inputs
    prompt = lens.prompt(inputs=dict(inputs))
    assert {span.region is None for span in prompt.spans[0] if span.kind == "image"} == {False}
    tokens = prompt.mask("image")[0].nonzero().flatten().tolist()
    found = places(lens, "image", inputs)
    for position, (image, _, box) in zip(tokens, found, strict=True):
        assert prompt.box(position) == box
        assert prompt.patch_at(box[0], box[1], image=image) == position
        assert prompt.positions_in_box(box, image=image) == (position,)


@pytest.mark.parametrize(
    "name", ["qwen2_5_vl", "qwen3_vl", "glm4v", "ernie4_5_vl_moe", "paddleocr_vl", "video_llama_3"]
)
@pytest.mark.parametrize("size", [(200, 110), (45, 150)])  # shrunk here, and there stretched a little
def test_a_mark_in_the_middle_of_a_box_moves_that_token_alone(name, size):
    lens = lens_of(name)
    other, blank = picture(60, 60), picture(*size)

    def seen(image):
        prompt = lens.prompt("?", images=[other, image])
        inputs = prompt.inputs
        return prompt, features(lens, "image", inputs)

    prompt, before = seen(blank)
    span = next(span for span in prompt.spans[0] if span.image == 1 and span.kind == "image")
    for position in span.positions:
        x0, y0, x1, y1 = prompt.box(position)
        x, y = int((x0 + x1) / 2), int((y0 + y1) / 2)
        moved = changed(before, seen(picture(*size, (x, y, x + 2, y + 2)))[1], prompt)
        assert moved == {position} == set(prompt.positions_in_box((x, y, x + 2, y + 2), image=1))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_every_row_the_spans_it_has_alone(name, side, monkeypatch):
    lens = lens_of(name)
    monkeypatch.setattr(lens.processor.tokenizer, "padding_side", side)
    texts = ["What is on these two?", "No picture here", "And what here?"]
    rows = [[picture(100, 70), picture(30, 90)], None, [picture(64, 64)]]
    prompt = lens.prompt(texts, images=rows)
    check_bookkeeping(lens, prompt)
    check_it_runs(lens, prompt)
    assert not prompt.spans[1]
    tensors_only = lens.prompt(inputs=dict(prompt.inputs))
    for row, (text, images) in enumerate(zip(texts, rows, strict=True)):
        alone = lens.prompt(text, images=images)
        pad = int(prompt.mask("pad")[row].sum()) if side == "left" else 0
        moved = [(s.kind, tuple(p - pad for p in s.positions), s.image, s.grid, s.region) for s in prompt.spans[row]]
        assert moved == [(s.kind, s.positions, s.image, s.grid, s.region) for s in alone.spans[0]]
        blind = [(s.kind, s.positions, s.image, s.grid) for s in tensors_only.spans[row]]
        assert blind == [(s.kind, s.positions, s.image, s.grid) for s in prompt.spans[row]]


@pytest.mark.parametrize("name", PROCESSORS)
@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(20, 260), st.integers(20, 260)), max_size=3), min_size=1, max_size=3))
def test_spans_cover_the_placeholders_and_boxes_tile_the_pictures_whatever_their_size(name, sizes):
    lens = lens_of(name)
    prompt = lens.prompt(["x"] * len(sizes), images=[[picture(*size) for size in row] for row in sizes])
    check_bookkeeping(lens, prompt)
    for row, row_sizes in enumerate(sizes):
        pictures = [span for span in prompt.spans[row] if span.kind == "image"]
        assert [span.image for span in pictures] == list(range(len(row_sizes)))
        for span, (width, height) in zip(pictures, row_sizes, strict=True):
            boxes = [span.box(position) for position in span.positions]
            assert sum((b.x1 - b.x0) * (b.y1 - b.y0) for b in boxes) == pytest.approx(width * height)
            for position, box in zip(span.positions, boxes, strict=True):
                middle = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
                assert prompt.patch_at(*middle, image=span.image, row=row) == position


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NAMELESS])
def test_without_a_processor_the_config_names_the_markers(name):
    from lmm_lens import Lens

    whole = lens_of(name)
    prompt = whole.prompt("Which?", images=[picture(60, 60), picture(90, 60)])
    bare = Lens(whole.adapter.model).prompt(inputs=dict(prompt.inputs))
    assert [(s.kind, s.positions) for s in bare.spans[0]] == [(s.kind, s.positions) for s in prompt.spans[0]]


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["qwen2_vl", "glm4v"])
def test_tensors_that_do_not_fit_the_text_are_refused(name):
    lens = lens_of(name)
    inputs = dict(lens.prompt("?", images=[picture(60, 60), picture(90, 60)]).inputs)
    grids = inputs["image_grid_thw"]
    wrong = {
        r"tokens of more than 1 images, the entries of image_grid_thw\n.*\(frames, rows, columns\)": grids[:1],
        r"image_grid_thw has 3 entries, but the text has tokens of 2 images only\n": grids[[0, 1, 1]],
        r"image 0 of the row has 5 x 2 tokens by image_grid_thw, but the text has 4 where its grid 0 of 1 "
        r"should be\n.*model's own processor": torch.tensor([[1, 10, 4], [1, 4, 6]]),
    }
    for message, given_grids in wrong.items():
        with pytest.raises(LensError, match=message):
            lens.prompt(inputs={**inputs, "image_grid_thw": given_grids})
    with pytest.raises(LensError, match="more than 0 images"):
        lens.prompt(inputs={key: value for key, value in inputs.items() if key != "image_grid_thw"})


@pytest.mark.parametrize("name", NAMES)
def test_without_a_template_pictures_stand_apart(name):
    """Neighbouring runs would be one picture to the model."""
    lens = lens_of(name)
    prompt = lens.prompt("which?", images=[picture(90, 60), picture(60, 60)], template=False)
    assert [span.image for span in prompt.spans[0] if span.kind == "image"] == [0, 1]
    check_it_runs(lens, prompt)
