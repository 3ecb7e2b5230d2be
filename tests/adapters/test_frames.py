"""Videos of LLaVA-NeXT-Video, LLaVA-OneVision and Video-LLaVA: a square a frame, against pixels and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_lens import LensError
from tests.support.evidence import check_it_runs, identity, supports
from tests.support.families import lens_of
from tests.support.families.llavas import check_colours, colours, ramp, tokenizer

LAYOUT = {  # tokens along the edge of a frame, before its patches, after the last frame
    "llava_next_video": (2, 0, 0),
    "llava_onevision": (3, 0, 1),
    "video_llava": (4, 1, 0),
}


@pytest.fixture(params=LAYOUT)
def name(request):
    return request.param


def film(width, height, n_frames=3):
    """Frames that tell where a pixel lies, and by their blue which frame it is."""
    return [ramp(width, height, blue=255 - 40 * i) for i in range(n_frames)]


def pooled(lens, inputs):
    """The mean colour that every patch token of the videos sees, as the model pools: [video, frame, patch, 3]."""
    model, pixels = lens.model.model, inputs["pixel_values_videos"]
    found = colours(lens.model, pixels).flatten(0, 1)
    if hasattr(model, "vision_resampler"):
        found = model.vision_resampler(found)
    elif hasattr(model, "apply_pooling"):
        found = model.apply_pooling(found)
    return found.unflatten(0, pixels.shape[:2])


def check_frames(lens, prompt, row, video, found):
    """Spans of a video are its frames in order, each token at the place whose colour it sees."""
    spans = [s for s in prompt.spans[row] if s.video == video and s.kind == "video"]
    assert [s.frame for s in spans] == list(range(len(found)))
    for span, frame in zip(spans, found, strict=True):
        assert frame[:, 2].tolist() == pytest.approx([255 - 40 * span.frame] * len(span), abs=0.5)
        marked = torch.cat([frame[:, :2], torch.full_like(frame[:, 2:], 255)], 1)
        check_colours(prompt, list(span.positions), marked, row)


def test_every_token_of_a_video_is_a_patch_of_a_frame_or_a_marker(name):
    lens, (side, lead, tail) = lens_of(name), LAYOUT[name]
    prompt = lens.prompt("what happens?", videos=film(90, 60))
    ids = prompt.inputs["input_ids"]
    is_video = ids == lens.model.config.video_token_id
    assert torch.equal(prompt.mask("video") | prompt.mask("marker"), is_video)
    assert [s.grid for s in prompt.spans[0] if s.kind == "video"] == [(side, side)] * 3
    assert int(prompt.mask("marker").sum()) == 3 * lead + tail
    markers = [s for s in prompt.spans[0] if s.kind == "marker"]
    assert [(len(s), s.video, s.frame) for s in markers] == [(1, 0, i) for i in range(3)] * lead + [(1, 0, None)] * tail
    check_it_runs(lens, prompt)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(list(LAYOUT)), st.integers(20, 250), st.integers(20, 250), st.integers(1, 6))
def test_every_token_sees_the_colours_of_its_box_in_its_frame(name, width, height, n_frames):
    lens = lens_of(name)
    prompt = lens.prompt("what?", videos=film(width, height, n_frames))
    check_frames(lens, prompt, 0, 0, pooled(lens, prompt.inputs)[0])


@pytest.mark.parametrize(("name", "size"), [("llava_next_video", 28), ("video_llava", 14)])
def test_the_box_of_every_token_is_where_its_gradient_lies(name, size):
    """On frames of the tower's own size; where frames are averaged, on the patches that make one token."""
    lens = lens_of(name)
    prompt = lens.prompt("what?", videos=film(56, 56))
    core = lens.model.model
    tower = core.video_tower if name == "video_llava" else core.vision_tower

    def features(frames):
        if name == "video_llava":
            return core.get_video_features(pixel_values_videos=frames[None]).pooler_output[:, 1:].flatten(0, 1)
        return core.get_video_features(pixel_values_videos=frames[None]).pooler_output[0]

    with identity(tower.encoder.layers):
        found = supports(features, prompt.inputs["pixel_values_videos"][0])
    positions = prompt.mask("video")[0].nonzero().flatten().tolist()
    for position, (frame, box) in zip(positions, found, strict=True):
        assert (box[2] - box[0], box[3] - box[1]) == (size, size)
        assert prompt.box(position) == box
        assert prompt.patch_at(box[0], box[1], video=0, frame=frame) == position


def test_a_shrunk_frames_token_mixes_the_patches_around_its_box():
    """LLaVA-OneVision: 5 x 5 patches interpolated to 3 x 3, where the box is the token's share of the frame."""
    lens = lens_of("llava_onevision")
    prompt = lens.prompt("what?", videos=film(72, 72, 2))
    core = lens.model.model
    with identity(core.vision_tower.encoder.layers):
        pixels = prompt.inputs["pixel_values_videos"][0]
        found = supports(lambda x: core.get_video_features(pixel_values_videos=x[None]).pooler_output[0, :-1], pixels)
    spans = [s for s in prompt.spans[0] if s.kind == "video"]
    assert tuple(spans[0].region) == pytest.approx((0, 0, 70, 70))
    positions = [p for span in spans for p in span.positions]
    for position, (_, (x0, y0, x1, y1)) in zip(positions, found, strict=True):
        box = prompt.box(position)
        assert (x1 - x0, y1 - y0) <= (28, 28)
        assert x0 <= (box.x0 + box.x1) / 2 <= x1
        assert y0 <= (box.y0 + box.y1) / 2 <= y1


@pytest.mark.parametrize("side", ["left", "right"])
def test_videos_and_pictures_of_a_mixed_batch_are_told_apart(name, side, monkeypatch):
    monkeypatch.setattr(tokenizer(), "padding_side", side)
    lens = lens_of(name)
    films = [None, [film(90, 60)], [film(50, 50), film(60, 110)], [film(40, 40)]]
    pictures = [[ramp(60, 60)], [], [], [ramp(120, 50)]]
    texts = ["a picture", "one video", "two videos, and a long question", "both: <image> and <video>"]
    prompt = lens.prompt(texts, images=pictures, videos=films)
    assert [sorted({s.video for s in spans if s.kind == "video"}) for spans in prompt.spans] == [[], [0], [0, 1], [0]]
    assert [sorted({s.image for s in spans if s.kind == "image"}) for spans in prompt.spans] == [[0], [], [], [0]]
    found = iter(pooled(lens, prompt.inputs))
    for row, videos in enumerate(films):
        for video in range(len(videos or ())):
            check_frames(lens, prompt, row, video, next(found))
    assert bool(prompt.mask("pad").any())
    check_it_runs(lens, prompt)


def test_tensors_alone_are_laid_out_in_pixels_of_the_processed_frames(name):
    lens, (side, _, _) = lens_of(name), LAYOUT[name]
    prompt = lens.prompt("<video><video>what?", videos=[film(90, 60), film(60, 90)])
    bare = lens.prompt(inputs=dict(prompt.inputs))
    shapes = [[(s.kind, s.positions, s.grid, s.video, s.frame) for s in p.spans[0]] for p in (prompt, bare)]
    assert shapes[0] == shapes[1]
    seen = lens.model.config.vision_config.image_size // 14 * 14
    assert {tuple(s.region) for s in bare.spans[0] if s.kind == "video"} == {(0, 0, seen, seen)}
    assert len(bare.spans[0][-1 if name != "llava_onevision" else -2]) == side * side


def test_frames_are_counted_in_the_features_where_only_these_are_given(name):
    """As in `generate`, which encodes the videos and calls the model without their pixels."""
    lens = lens_of(name)
    prompt = lens.prompt(["<video>what?", "and<video>this?"], videos=[film(90, 60), film(60, 90)])
    with torch.no_grad():
        pixels = prompt.inputs["pixel_values_videos"]
        features = lens.model.model.get_video_features(pixel_values_videos=pixels, return_dict=True)
    bare = {name: prompt.inputs[name] for name in ("input_ids", "attention_mask")}
    encoded = lens.prompt(inputs={**bare, "mm_encoder_outputs": {"video": features}})
    shapes = [
        [[(s.kind, s.positions, s.grid, s.video, s.frame) for s in row] for row in p.spans] for p in (prompt, encoded)
    ]
    assert shapes[0] == shapes[1]


def test_a_video_without_its_frames_is_refused(name):
    inputs = dict(lens_of(name).prompt("what?", videos=film(90, 60)).inputs)
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"][:, :2]
    with pytest.raises(LensError, match=r"no whole number of videos\n.* tokens of 2 frames"):
        lens_of(name).prompt(inputs=inputs)
    with pytest.raises(LensError, match=r"expected pixel_values_videos \[video, frame, channel, height, width\]"):
        lens_of(name).prompt(inputs={**inputs, "pixel_values_videos": inputs["pixel_values_videos"][0]})
    del inputs["pixel_values_videos"]
    with pytest.raises(LensError, match="no pixels were given"):
        lens_of(name).prompt(inputs=inputs)
