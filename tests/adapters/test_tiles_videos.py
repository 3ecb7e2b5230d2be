"""Videos of InternVL and SmolVLM: their frames hold the tokens of pictures, and only the words before them tell."""

import pytest
import torch

from lmm_lens import LensError
from tests.support.evidence import check_bookkeeping, check_it_runs, identity, picture
from tests.support.families import lens_of
from tests.support.families.tile_evidence import entering, tiles_of, vision_layers
from tests.support.families.tiled import TILE, TOKEN

LABELS = {
    "internvl": ["Frame1: ", "\nFrame2: ", "\nFrame3: "],
    "smolvlm": ["\nFrame from 00:00:", "\nFrame from 00:00:", "\nFrame from 00:00:"],
}
pytestmark = pytest.mark.parametrize("name", list(LABELS))


def film(width, height, n_frames, mark=None, marked=()):
    return [picture(width, height, mark if frame in marked else None) for frame in range(n_frames)]


def frames_of(prompt, row=0):
    return [(s.video, s.frame, s.tile, s.grid, s.region) for s in prompt.spans[row] if s.kind == "video"]


def asked(name, text, **media):
    lens = lens_of(name)
    lens.processor.tokenizer.padding_side = media.pop("side", "left")
    slots = {"V": lens.adapter.video_slot, "I": lens.adapter.image_slot}
    texts = [text] if isinstance(text, str) else text
    texts = ["".join(slots.get(letter, letter) for letter in one) for one in texts]
    prompt = lens.prompt(texts[0] if isinstance(text, str) else texts, **media)
    check_bookkeeping(lens, prompt, lens.adapter.image_token_id)
    check_it_runs(lens, prompt)
    return prompt


def test_each_frame_is_a_span_of_its_own(name):
    """The time before it is text, to be read; the tags around it are markers."""
    prompt = asked(name, "V why?", videos=film(60, 30, 3))
    assert frames_of(prompt) == [(0, frame, 0, (3, 3), (0, 0, 60, 30)) for frame in range(3)]
    ids, markers = prompt.inputs["input_ids"][0], prompt.mask("marker")[0]
    words = lens_of(name).processor.tokenizer.decode(ids[~prompt.mask("visual")[0] & ~markers])
    assert "".join(LABELS[name]) in words
    assert words.endswith(" why?")
    assert int(markers.sum()) == 3 * {"internvl": 2, "smolvlm": 3}[name]
    assert not prompt.mask("image").any()
    assert prompt.positions_in_box((0, 0, 20, 10), video=0, frame=1) == (prompt.patch_at(5, 5, video=0, frame=1),)


def test_two_videos_are_told_apart_even_side_by_side(name):
    one = asked(name, "VV", videos=[film(30, 20, 1), film(30, 20, 1)])
    assert [frame[:2] for frame in frames_of(one)] == [(0, 0), (1, 0)]
    two = asked(name, "a V b V", videos=[film(30, 20, 2), film(40, 60, 2)])
    assert [(frame[:2], frame[4][2:]) for frame in frames_of(two)] == [
        ((0, 0), (30, 20)),
        ((0, 1), (30, 20)),
        ((1, 0), (40, 60)),
        ((1, 1), (40, 60)),
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_with_a_video_and_without_one_make_a_batch(name, side):
    prompt = asked(name, ["V why?", "hm", "a V"], videos=[film(30, 20, 2), None, film(20, 30, 2)], side=side)
    assert frames_of(prompt, 1) == []
    assert [frame[4] for frame in frames_of(prompt, 0)] == [(0, 0, 30, 20)] * 2
    assert [frame[4] for frame in frames_of(prompt, 2)] == [(0, 0, 20, 30)] * 2


def test_pictures_beside_videos_are_kept_apart_or_refused(name):
    """InternVL keeps the order of the text. SmolVLM's processor drops the pictures, so that is refused."""
    media = {"videos": film(30, 20, 2), "images": picture(24, 24)}
    if name == "smolvlm":
        with pytest.raises(LensError, match=r"returns only the pixels of the videos\n.*give some of their frames"):
            asked(name, "a I b V", **media)
        return
    for text in ("I b V", "V b I"):
        prompt = asked(name, text, **media)
        assert [(s.kind, s.source, s.frame) for s in prompt.spans[0] if s.kind != "marker"] == sorted(
            [("image", 0, None), ("video", 0, 0), ("video", 0, 1)], reverse=text.startswith("V"), key=lambda s: s[0]
        )
    batch = asked(name, ["V", "I b I"], videos=[film(30, 20, 2), None], images=[None, [picture(24, 24)] * 2])
    assert [{(s.video, s.image) for s in spans} for spans in batch.spans] == [{(0, None)}, {(None, 0), (None, 1)}]


def test_a_frames_token_depends_on_its_own_pixels_alone(name):
    prompt = asked(name, "V why?", videos=film(60, 30, 2))
    pixels = prompt.inputs["pixel_values"].clone().requires_grad_(True)
    with identity(vision_layers(lens_of(name).adapter.model)):
        entered = entering(lens_of(name), prompt, pixel_values=pixels)
    for frame, span in enumerate(span for span in prompt.spans[0] if span.kind == "video"):
        for position in span.positions:
            (slope,) = torch.autograd.grad(entered[0, position].square().sum(), pixels, retain_graph=True)
            found = [one.abs().sum(0) for one in tiles_of(name, prompt, slope)]
            assert [i for i, one in enumerate(found) if one.any()] == [frame]
            y, x = found[frame].nonzero(as_tuple=True)
            row, column = span.cell(position)
            assert (int(x.min()), int(x.max()) + 1) == (column * TOKEN, (column + 1) * TOKEN)
            assert (int(y.min()), int(y.max()) + 1) == (row * TOKEN, (row + 1) * TOKEN)


def test_a_mark_in_one_frame_changes_that_frames_tokens_alone(name):
    mark = (42, 21, 58, 29)  # inside the last token of a 60 x 30 frame
    clean = asked(name, "V why?", videos=film(60, 30, 3))
    marked = asked(name, "V why?", videos=film(60, 30, 3, mark, marked=[1]))
    with identity(vision_layers(lens_of(name).adapter.model)), torch.no_grad():
        moved = (entering(lens_of(name), clean) - entering(lens_of(name), marked))[0].abs().amax(-1)
    strongest = int(moved.argmax())
    assert clean.positions_in_box(mark, video=0, frame=1) == (strongest,)
    moved_spans = {span for span in clean.spans[0] if any(moved[p] > 1e-6 for p in span.positions)}
    assert {(span.video, span.frame) for span in moved_spans} == {(0, 1)}


def test_of_tensors_alone_frames_are_found_by_their_labels(name):
    full = asked(name, "a V b V", videos=[film(30, 20, 2), film(40, 60, 2)])
    prompt = lens_of(name).prompt(inputs=full.inputs)
    assert frames_of(prompt) == [(v, f, 0, (3, 3), (0, 0, TILE, TILE)) for v in range(2) for f in range(2)]


def test_pictures_that_the_user_calls_frames_are_pictures(name):
    text = "".join(label + "I" for label in LABELS[name])
    prompt = asked(name, text, images=[picture(24, 24)] * 3)
    assert {(s.kind, s.image) for s in prompt.spans[0] if s.kind != "marker"} == {("image", i) for i in range(3)}
