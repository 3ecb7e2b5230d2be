"""Videos in the Qwen layout, in ten families with their real processors: frames, their merging, stamps and markers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_lens import Lens, LensError
from tests.support.evidence import changed, check_it_runs, picture
from tests.support.families import lens_of
from tests.support.families.grid_thw import GLM, check_bookkeeping, features, places, tokens_of
from tests.support.families.grid_thw import NAMES as EVERY

NAMELESS = ["exaone4_5", "hyperclovax_vision_v2", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"]
"""Whose configurations do not name the tokens around videos."""
NAMES = [name for name in EVERY if name not in ("paddleocr_vl", "video_llama_3", "cosmos3_edge")]
TOGETHER = ["qwen2_vl", "qwen2_5_vl", "ernie4_5_vl_moe", *NAMELESS]  # all frames in one run
APART = [name for name in NAMES if name not in TOGETHER]  # each in its own markers, with its stamp


def film(width, height, n_frames, marked=None, mark=None):
    """Frames of one grey, one of them with a mark where asked."""
    return [picture(width, height, mark if index == marked else None) for index in range(n_frames)]


def words(lens, prompt, row=0):
    """What is left of a row when everything visual and every marker is taken out."""
    return lens.processor.tokenizer.decode(prompt.inputs["input_ids"][row][prompt.mask("text")[row]])


def outline(spans):
    return [(s.kind, s.positions, s.image, s.video, s.frame, s.grid) for s in spans]


@pytest.mark.parametrize("name", NAMES)
def test_two_frames_become_one_grid_and_an_odd_one_is_a_grid_alone(name):
    lens = lens_of(name)
    prompt = lens.prompt("What happens?", videos=film(100, 70, 5))
    check_bookkeeping(lens, prompt)
    check_it_runs(lens, prompt)
    ((_, h, w),) = prompt.inputs["video_grid_thw"].tolist()
    frames = [span for span in prompt.spans[0] if span.kind == "video"]
    assert [(span.video, span.frame, span.grid) for span in frames] == [(0, i, (h // 2, w // 2)) for i in range(3)]
    assert {(span.image, span.tile) for span in frames} == {(None, 0)}
    assert ({span.region for span in frames} == {(0, 0, 100, 70)}) == (name != "glm5_next")  # which fills frames up


@pytest.mark.parametrize("name", NAMES)
def test_time_stamps_and_markers_are_no_text(name):
    lens = lens_of(name)
    prompt = lens.prompt("What happens <at 3.1 seconds>?", videos=film(60, 60, 6))
    assert words(lens, prompt) == "<|user|>What happens <at 3.1 seconds>?<|assistant|>"
    ids = prompt.inputs["input_ids"][0]
    marked = lens.processor.tokenizer.decode(ids[prompt.mask("marker")[0]])
    assert marked.count("second") == (0 if name in (*TOGETHER, "glm4v", "glm4v_moe") else 3)
    assert prompt.mask("question")[0].sum() == len("What happens <at 3.1 seconds>?")
    if name in NAMELESS:
        return
    bare = Lens(lens.adapter.model).prompt(inputs=dict(prompt.inputs))  # the config names the markers as well
    assert outline(bare.spans[0]) == outline(prompt.spans[0])


@pytest.mark.parametrize("name", APART)
def test_frames_stand_apart_each_in_its_own_markers(name):
    lens = lens_of(name)
    prompt = lens.prompt("?", videos=film(60, 60, 6))
    start, end = lens.processor.tokenizer.convert_tokens_to_ids(list(tokens_of(name).around["image"]))
    ids = prompt.inputs["input_ids"][0]
    for span in prompt.spans[0]:
        if span.kind == "video":
            assert (ids[span.positions[0] - 1], ids[span.positions[-1] + 1]) == (start, end)


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5"])
def test_the_first_stamp_is_a_marker_also_where_the_text_puts_none_around_the_video(name):
    lens = lens_of(name)
    prompt = lens.prompt("a <b>: <|video_pad|> and?", videos=film(60, 60, 4), template=False)
    check_bookkeeping(lens, prompt)
    assert words(lens, prompt) == "a <b>:  and?"


@pytest.mark.parametrize("name", NAMES)
def test_the_box_of_every_token_is_where_its_gradient_lies_in_its_two_frames(name):
    lens = lens_of(name)
    inputs = lens.prompt("?", videos=[film(96, 60, 4), film(64, 64, 2)]).inputs
    prompt = lens.prompt(inputs=dict(inputs))
    tokens = prompt.mask("video")[0].nonzero().flatten().tolist()
    found = places(lens, "video", inputs)
    frame_of = {p: span.frame for span in prompt.spans[0] if span.kind == "video" for p in span.positions}
    for position, (video, frames, box) in zip(tokens, found, strict=True):
        assert prompt.box(position) == box
        assert frames == {2 * frame_of[position], 2 * frame_of[position] + 1}
        assert prompt.patch_at(box[0], box[1], video=video, frame=frame_of[position]) == position
        assert prompt.positions_in_box(box, video=video, frame=frame_of[position]) == (position,)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "glm4v", "ernie4_5_vl_moe"])
@pytest.mark.parametrize("frame", [1, 4])
def test_a_mark_in_one_frame_moves_the_tokens_of_its_grid_that_its_box_names(name, frame):
    lens = lens_of(name)
    prompts = [lens.prompt("?", videos=film(150, 100, 5, frame, mark)) for mark in (None, (104, 20, 106, 22))]
    before, after = (features(lens, "video", prompt.inputs) for prompt in prompts)
    named = prompts[0].positions_in_box((104, 20, 106, 22), video=0, frame=frame // 2)
    assert changed(before, after, prompts[0]) == set(named)
    assert len(named) == 1


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_videos_pictures_and_text_gives_every_row_its_own(name, side, monkeypatch):
    lens = lens_of(name)
    monkeypatch.setattr(lens.processor.tokenizer, "padding_side", side)
    rows = [
        {"videos": [film(60, 60, 4), film(100, 60, 2)]},
        {},
        {"videos": [film(64, 90, 3)], "images": [picture(64, 64), picture(90, 30)]},
    ]
    texts = ["What happens?", "Nothing to see", "And in these?"]
    given_ = {kind: [row.get(kind) for row in rows] for kind in ("images", "videos")}
    prompt = lens.prompt(texts, **given_)
    check_bookkeeping(lens, prompt)
    if tokens_of(name) is not GLM:  # GLM-4V takes pictures or videos, not both in one batch
        check_it_runs(lens, prompt)
    assert outline(lens.prompt(inputs=dict(prompt.inputs)).spans[0]) == outline(prompt.spans[0])
    for row, (text, visual) in enumerate(zip(texts, rows, strict=True)):
        alone = lens.prompt(text, **visual)
        pad = int(prompt.mask("pad")[row].sum()) if side == "left" else 0
        moved = [(kind, tuple(p - pad for p in places_), *rest) for kind, places_, *rest in outline(prompt.spans[row])]
        assert moved == outline(alone.spans[0])
        assert words(lens, prompt, row) == f"<|user|>{text}<|assistant|>"


@pytest.mark.parametrize("name", [*NAMES, "video_llama_3"])
def test_generation_of_the_model_itself_sees_the_same_masks_without_the_grids(name):
    """It encodes pictures and videos beforehand, and its first pass has their features and no `grid_thw`."""
    lens, seen = lens_of(name), []
    visual = {"videos": [[film(60, 60, 4), film(60, 90, 2)], [film(90, 60, 3)]]}
    if tokens_of(name) is not GLM:
        visual["images"] = [[picture(60, 90)], [picture(90, 30), picture(60, 60)]]
    prompt = lens.prompt(["What happens?", "And there, between them?"], **visual)
    model = lens.adapter.model
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    model.generate(**prompt.inputs, max_new_tokens=1, do_sample=False)
    hook.remove()
    assert "image_grid_thw" not in seen[0]
    given_ = {
        key: seen[0][key] for key in ("input_ids", "mm_encoder_outputs", "video_compression_mask") if key in seen[0]
    }
    blind = lens.prompt(inputs={**given_, "attention_mask": prompt.inputs["attention_mask"]})
    for role in ("image", "video", "marker", "text", "after_image"):
        assert torch.equal(blind.mask(role), prompt.mask(role)), role
    for spans, known in zip(blind.spans, prompt.spans, strict=True):
        sources = [
            {(p, s.kind, s.source) for s in row for p in s.positions if s.kind != "marker"} for row in (spans, known)
        ]
        assert sources[0] == sources[1]
        assert all(span.grid is None for span in spans)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "glm4v"])
@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(30, 150), st.integers(30, 150), st.integers(2, 7)), min_size=1, max_size=3))
def test_spans_cover_the_placeholders_whatever_the_length_and_size(name, films):
    lens = lens_of(name)
    prompt = lens.prompt("x", videos=[film(*size) for size in films])
    check_bookkeeping(lens, prompt)
    frames = [span for span in prompt.spans[0] if span.kind == "video"]
    expected = [(v, f) for v, (*_, n_frames) in enumerate(films) for f in range((n_frames + 1) // 2)]
    assert [(span.video, span.frame) for span in frames] == expected
    assert [span.region for span in frames] == [(0, 0, *films[v][:2]) for v, _ in expected]
    assert words(lens, prompt) == "<|user|>x<|assistant|>"


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "glm4v"])
def test_tensors_that_do_not_fit_the_text_are_refused(name):
    lens = lens_of(name)
    inputs = dict(lens.prompt("?", videos=[film(60, 60, 4)]).inputs)
    grids = inputs["video_grid_thw"]
    wrong = {
        r"tokens of more than 0 videos, the entries of video_grid_thw": grids[:0],
        r"video_grid_thw has 2 entries, but the text has tokens of 1 videos only": grids[[0, 0]],
        r"video 0 of the row has 2 x 2 tokens .*but the text has 0 where its grid 2 of 3": grids
        + torch.tensor([1, 0, 0]),
    }
    for message, given_grids in wrong.items():
        with pytest.raises(LensError, match=message):
            lens.prompt(inputs={**inputs, "video_grid_thw": given_grids})


def test_a_video_of_glm_outside_its_markers_would_be_taken_for_pictures_and_is_refused():
    with pytest.raises(LensError, match="tokens of more than 0 images"):
        lens_of("glm4v").prompt("<|video|> what?", videos=film(60, 60, 4), template=False)
