"""Where patches are drawn is where they lie: against `prompt.box`, for every way of cutting a picture."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from lmm_lens.figures.sources import levels_of
from lmm_lens.prompts.spans import Box
from lmm_lens.viewer import view
from lmm_lens.viewer.panels import panels_of, picture_url
from tests.support.cases import case
from tests.support.evidence import picture
from tests.support.families import lens_of, prompt_of
from tests.viewer.pages import Shown

PLACED = [
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "idefics3",
    "internvl",
    "llama4",
    "pixtral",
    "deepseek_vl",
]


def film(n, width=60, height=40):
    return [Image.new("RGB", (width, height), (20 * i, 0, 0)) for i in range(n)]


@pytest.mark.parametrize("name", PLACED)
def test_every_visual_token_is_drawn_once_in_its_own_box(name):
    lens = lens_of(name)
    prompt = lens.prompt(
        "What is this?", images=[picture(90, 60), picture(50, 80)] if name == "qwen2_vl" else picture(90, 60)
    )
    boxes = Shown(view(prompt, lens).html).boxes()
    visual = prompt.mask("visual")[0].nonzero().flatten().tolist()
    assert sorted(boxes) == visual
    for position in visual:
        assert boxes[position] == [pytest.approx(tuple(prompt.box(position)), abs=1e-3)]


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("llava", {"": 1}),
        ("qwen2_vl", {"": 1}),
        ("llava_next", {"overview": 1, "detail": 1}),
        ("idefics3", {"overview": 1, "detail": 12}),
        ("internvl", {"overview": 1, "detail": 6}),
    ],
)
def test_a_picture_that_is_seen_whole_and_in_crops_is_drawn_twice(name, levels):
    panels = panels_of(prompt_of(name), 0)
    assert {panel.level: len(panel.spans) for panel in panels} == levels
    assert len({panel.source for panel in panels}) == 1
    for panel in panels:
        for span in panel.spans:
            assert not any(span.region.overlaps(other.region) for other in panel.spans if other is not span)


def test_levels_begin_with_the_largest_patches_whatever_their_order():
    spans = [span for span in prompt_of("ovis2").spans[0] if span.kind == "image"]
    there, back = levels_of(spans), levels_of(spans[::-1])
    assert [len(level) for level in there] == [len(level) for level in back] == [1, len(spans) - 1]


def test_patches_over_the_edge_of_a_picture_widen_the_drawing():
    (panel,) = panels_of(prompt_of("deepseek_vl"), 0)  # pads 90 x 60 to a square
    assert panel.picture[0] == Box(0, 0, 90, 60)
    assert panel.extent[1] < -10
    assert panel.extent[3] > 70


@pytest.mark.parametrize("name", ["blip-2", "mllama"])
def test_tokens_whose_place_is_not_known_are_cells_beside_the_picture(name):
    lens = lens_of(name)
    shown = Shown(view(prompt_of(name), lens).html)
    plain, cells = shown.about["panels"]
    assert (plain["grids"], plain["url"] is not None) == ([], True)
    assert (cells["placed"], cells["url"]) == (False, None)
    assert cells["label"].endswith("places not known")
    visual = prompt_of(name).mask("visual")[0].nonzero().flatten().tolist()
    assert [shown.about["positions"][key] for key in cells["grids"][0]["keys"]] == visual


def test_pictures_given_as_tensors_alone_have_patches_and_no_picture():
    known = case("llava")
    (panel,) = Shown(view(known.prompt, known.lens).html).about["panels"]
    assert panel["url"] is None
    assert panel["extent"] == [0, 0, 56, 56]
    assert panel["label"] == "image 0 (no picture was given): 4 x 4"


# ---------------------------------------------------------------------- videos


def red_of(url):
    array = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"))
    return round(float(array[..., 0].mean()))


def test_each_frame_is_drawn_over_the_one_that_was_given():
    lens = lens_of("smolvlm")
    panels = panels_of(lens.prompt("what?", videos=film(4)), 0)
    assert [red_of(panel.picture[1]) for panel in panels] == pytest.approx([0, 20, 40, 60], abs=2)
    assert [panel.label for panel in panels] == [f"video 0, frame {i}: 3 x 3" for i in range(4)]


def test_two_frames_that_the_model_takes_together_are_drawn_over_the_first():
    lens = lens_of("qwen2_vl")
    panels = panels_of(lens.prompt("what?", videos=film(5)), 0)
    assert [red_of(panel.picture[1]) for panel in panels] == pytest.approx([0, 40, 80], abs=2)
    assert [panel.label.split(":")[0] for panel in panels] == [
        "video 0, frame 0 (given 0 and 1)",
        "video 0, frame 1 (given 2 and 3)",
        "video 0, frame 2",
    ]


def test_frames_are_drawn_on_nothing_where_the_processor_dropped_some():
    lens = lens_of("smolvlm")
    prompt = lens.prompt("what?", videos=film(4))
    longer = prompt.__class__(**{**_fields(prompt), "videos": ((tuple(film(7)),),)})
    panels = panels_of(longer, 0)
    assert [panel.picture for panel in panels] == [None] * 4
    assert panels[0].label == "video 0, frame 0 (which of the 7 given frames is not known): 3 x 3"


def _fields(prompt):
    names = ("inputs", "spans", "images", "tokens", "masks", "texts", "template")
    return {name: getattr(prompt, name) for name in names}


# ---------------------------------------------------------------------- pictures


def test_large_pictures_are_shrunk_and_the_smaller_format_is_taken():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 1200, 3), np.uint8))
    url = picture_url(noise, 768)
    assert url.startswith("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).size == (768, 384)
    flat = picture_url(Image.new("RGB", (30, 20), "red"), 768)
    assert flat.startswith("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(flat.split(",")[1]))).size == (30, 20)
