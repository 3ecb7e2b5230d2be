"""What the lens refuses, and what it says: models answer without their image, or with the wrong one, without a word."""

import numpy as np
import pytest
import torch
from PIL import Image

from lmm_lens import AblateHeads, HeadSet, Lens, LensError, Read
from lmm_lens.bundled import shapes
from tests.support.cases import case
from tests.support.models import IMAGE

PICTURE = Image.new("RGB", (48, 48))
KINDS = (
    r"a PIL image, a path, bytes, base64, an open file, an array \[height, width, 3\] or a tensor \[3, height, width\]"
)


def refused(message, ask):
    with pytest.raises(LensError, match=message) as caught:
        ask()
    assert len(str(caught.value).splitlines()) <= 3, "three lines at most"


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ("a <image>?", None, r"1 image slot \('<image>'\) but 0 images were given\n.*one image per slot"),
        ("a <image> <image>?", PICTURE, "2 image slots .* but 1 image was given"),
        ("a <image>?", [PICTURE] * 2, "1 image slot .* but 2 images were given"),
        (["a", "b <image>"], [PICTURE, None], "1 image slot .* but 0 images were given"),
        ([], None, r"expected a text or a list of texts, none of them empty, given \[\]"),
        ("", None, "none of them empty, given ''"),
        ("  ", PICTURE, "none of them empty"),
        (["a", ""], None, r"none of them empty, given \['a', ''\]"),
        ("a", "/no/such/picture.png", "'/no/such/picture.png' cannot be opened as an image: .*No such file"),
        ("a", __file__, "test_refusals.py' cannot be opened as an image: cannot identify"),
        ("a", {"image": 1}, f"expected an image, given dict\n.*{KINDS}"),
        ("a", [None], "expected an image, given NoneType"),
        ("a", 7, "expected an image, given int"),
        ("a", np.full((4, 4, 3), -1.0), r"the pixels of ndarray \(4, 4, 3\) of float64 go from -1 to -1"),
        ("a", np.zeros((4, 4, 5), np.uint8)[:, :, :0], r"ndarray \(4, 4, 0\) of uint8 has no pixel"),
        ("a", np.zeros((3, 4, 4), np.uint8), r"given ndarray \(3, 4, 4\) of uint8"),
        ("a", torch.zeros(7, 8, 9), r"given Tensor \(7, 8, 9\) of torch.float32"),
        ("a", "https://x.org/picture.png", "is an address, and nothing is downloaded"),
        ("a", [[PICTURE]], "expected an image, given list"),
        (
            ["a", "b"],
            PICTURE,
            "2 texts need a list of 2 entries as images, given one Image\n.*a list of images, or None",
        ),
        (["a", "b"], [PICTURE], "given 1 entries"),
        (["a", "b"], "picture.png", "given one str"),
    ],
)
def test_texts_and_pictures_that_do_not_fit(lens, text, images, message):
    refused(message, lambda: lens.prompt(text, images=images))


def test_a_file_that_is_not_there_is_named(lens, tmp_path):
    refused("cannot be opened as an image", lambda: lens.prompt("a", images=tmp_path / "none.png"))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"expected inputs with input_ids, an integer tensor \[batch, position\]\n  given \[\], input_ids None"),
        ({"input_ids": torch.tensor([1, 2])}, r"given \['input_ids'\], input_ids \(2,\)"),
        ({"input_ids": torch.ones(1, 2)}, "an integer tensor"),
        ({"input_ids": [[1.5, 2]]}, "an integer tensor"),
        (
            {"input_ids": torch.tensor([[1, *[IMAGE] * 16, 2]])},
            "16 image tokens but no pixels were given: the model would answer without the image\n.*pixel_values",
        ),
        (
            {"input_ids": torch.tensor([[1, *[IMAGE] * 16, 2]]), "pixel_values": None},
            "16 image tokens but no pixels",
        ),
        (
            {"input_ids": torch.tensor([[1, 2]]), "pixel_values": torch.zeros(1, 3, 56, 56)},
            r"pixels were given \(pixel_values\) but the text has no image token.*would not look at them",
        ),
        (
            {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 3)},
            r"attention_mask must be \[batch, position\] like input_ids \(1, 2\), given \(1, 3\)",
        ),
        (
            {"input_ids": torch.tensor([[1, 2], [3, 4]]), "attention_mask": torch.tensor([[1, 1], [0, 0]])},
            r"batch rows \[1\] hold padding only",
        ),
    ],
)
def test_processed_tensors_that_are_no_prompt(inputs, message):
    refused(message, lambda: case("llava").lens.prompt(inputs=inputs))


@pytest.mark.parametrize("name", ["qwen2_vl", "internvl", "idefics3", "paligemma", "video_llava", "mllama", "gemma3"])
def test_image_tokens_without_pixels_are_refused_in_every_family(name):
    family = case(name)
    blind = {key: value for key, value in family.inputs.items() if "pixel_values" not in key}
    refused("image tokens but no pixels were given", lambda: family.lens.prompt(inputs=blind))


def test_more_or_fewer_pictures_than_slots_in_processed_tensors_never_pass_silently():
    llava = case("llava")
    for n in (2, 3):
        inputs = {**llava.inputs, "pixel_values": torch.randn(n, 3, 56, 56)}
        with pytest.raises(ValueError, match=r"[Ii]mage"):
            llava.lens.run(llava.lens.prompt(inputs=inputs))


def test_a_text_needs_a_processor_and_either_text_or_tensors_are_given(lens):
    llava = case("llava")
    refused(r"this lens has no processor\n.*Lens\(model, processor\)", lambda: llava.lens.prompt("a"))
    refused("give either a text .* or inputs=", lens.prompt)
    refused("give either a text", lambda: lens.prompt("a", inputs=llava.inputs))
    refused("images and videos cannot be added", lambda: lens.prompt(images=PICTURE, inputs=llava.inputs))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AblateHeads([(9, 0)]), "layer 9 is out of range: the model has layers 0 to 2"),
        (lambda: AblateHeads([(0, 4)]), "head 4 of layer 0 is out of range: the layer has heads 0 to 3"),
        (lambda: AblateHeads([(0, -1)]), "head -1 of layer 0"),
        (
            lambda: AblateHeads([(0, 1)], rows="after-image"),
            "unknown row scope 'after-image', did you mean 'after_image'",
        ),
        (lambda: AblateHeads([(0, 1)], rows=[27]), r"positions \[27\] lie outside the prompt"),
        (lambda: AblateHeads([(0, 1)], rows="video"), "AblateHeads.* touches nothing: rows 'video' select no token"),
        (lambda: AblateHeads([(0, 1)], rows=[]), "touches nothing"),
        (lambda: AblateHeads([]), "AblateHeads was given no heads: pass a HeadSet"),
        (lambda: AblateHeads([(0, 1)], mode="zeros"), "unknown ablation mode 'zeros', did you mean 'zero'"),
        (lambda: AblateHeads(HeadSet([(0, 1)], 6, 8)), "made for a model of 6 layers x 8 heads, this one has 3 x 4"),
        (lambda: AblateHeads([3]), r"\(layer, head\)"),
    ],
)
def test_ablations_that_do_not_exist(make, message):
    llava = case("llava")
    refused(message, lambda: llava.lens.run(llava.prompt, [make()]))


@pytest.mark.parametrize(
    ("read", "message"),
    [
        ("patern", "unknown hook point 'patern', did you mean 'pattern'\\?\n  valid: resid_pre, pattern, z, attn_out"),
        (Read("z", layers=[3]), "layer 3 is out of range"),
        (Read("z", layers=[-1]), "layer -1 is out of range"),
        (Read("pattern", heads=[4]), "head 4 of layer 0 is out of range"),
        (Read("mlp_out", heads=[1]), r"mlp_out has no heads, so heads=\[1\] cannot be read there"),
        (Read("z", rows="lst"), "unknown row scope 'lst', did you mean 'last'"),
    ],
)
def test_reads_that_do_not_exist(read, message):
    llava = case("llava")
    refused(message, lambda: llava.lens.run(llava.prompt, read=[read]))


@pytest.mark.parametrize("rows", ["video", [], "answer"])
def test_a_read_of_no_rows_is_refused(rows):
    """An empty result would be met far away, as a KeyError; the answer row exists only while generating."""
    llava = case("llava")
    refused("select", lambda: llava.lens.run(llava.prompt, read=[Read("z", rows=rows)]))


def test_an_edit_whose_rows_were_not_reached_warns():
    llava = case("llava")
    with pytest.warns(UserWarning, match="AblateHeads.*changed nothing: its rows were not reached"):
        llava.lens.run(llava.prompt, [AblateHeads([(0, 1)], rows="answer")])


def test_names_that_do_not_exist():
    llava = case("llava")
    refused("unknown backend 'nativ', did you mean 'native'", lambda: Lens(llava.model, backend="nativ"))
    refused("unknown choice of logits 'lst', did you mean 'last'", lambda: llava.lens.run(llava.prompt, logits="lst"))
    refused("[Pp]rompt", lambda: llava.lens.run("what color?"))
    refused("text", lambda: llava.lens.prompt(3))


def test_the_demo_lists_its_variants():
    with pytest.raises(ValueError, match="'sinks', 'plain', 'emoji', 'emoji-adapted'; got 'sink'"):
        Lens.demo("sink")


def test_an_unknown_name_of_the_package_lists_what_there_is():
    import lmm_lens

    with pytest.raises(AttributeError, match="no attribute 'Lense'; it has Lens, Prompt"):
        _ = lmm_lens.Lense
    assert {"Lens", "AblateHeads", "HeadSet"} <= set(dir(lmm_lens))


def test_all_errors_are_one_kind_of_value_error():
    from lmm_lens import errors

    kinds = [kind for kind in vars(errors).values() if getattr(kind, "__module__", "") == errors.__name__]
    kinds = [kind for kind in kinds if isinstance(kind, type)]
    assert len(kinds) > 3
    assert all(issubclass(kind, LensError) and issubclass(kind, ValueError) for kind in kinds)


def test_shapes_examples_make_prompts(lens):
    """The happy path beside all these refusals."""
    example = shapes.examples(1, ["color"])[0]
    assert lens.generate(lens.prompt(example.question, images=example.image), max_new_tokens=1).tokens.shape == (1, 1)
