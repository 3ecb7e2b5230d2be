"""What a user's own processor made is taken as tensors, arrays or lists, in any dtype, or refused by name."""

import numpy as np
import pytest
import torch
from transformers import BatchFeature

from lmm_lens import Lens
from lmm_lens.prompts.tensors import fresh, holds_pixels, mapped, tensors_in, tensors_of
from tests.support.cases import case
from tests.support.evidence import picture
from tests.support.families import lens_of
from tests.support.picture_files import refused


def made(name="qwen2_vl"):
    return dict(lens_of(name).prompt("What is this?", images=picture(90, 60)).inputs)


FORMS = {
    "tensors": lambda inputs: inputs,
    "arrays": lambda inputs: {name: value.numpy() for name, value in inputs.items()},
    "lists": lambda inputs: {name: value.tolist() for name, value in inputs.items()},
    "lists of tensors": lambda inputs: {name: list(value) for name, value in inputs.items()},
    "lists of arrays": lambda inputs: {name: list(value.numpy()) for name, value in inputs.items()},
    "BatchFeature": BatchFeature,
    "BatchFeature of lists": lambda inputs: BatchFeature({name: value.tolist() for name, value in inputs.items()}),
    "doubles": lambda inputs: {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()},
    "halves": lambda inputs: {n: v.half().float() if v.is_floating_point() else v for n, v in inputs.items()},
    "int32": lambda inputs: {n: v if v.is_floating_point() else v.int() for n, v in inputs.items()},
    "int16 ids": lambda inputs: inputs | {"input_ids": inputs["input_ids"].short()},
    "mask of floats": lambda inputs: inputs | {"attention_mask": inputs["attention_mask"].float()},
    "mask of truths": lambda inputs: inputs | {"attention_mask": inputs["attention_mask"].bool()},
    "no mask": lambda inputs: {name: value for name, value in inputs.items() if name != "attention_mask"},
    "None among them": lambda inputs: inputs | {"pixel_values_videos": None},
}


@pytest.mark.parametrize("form", FORMS)
def test_inputs_in_every_form_are_the_same_prompt(form):
    lens, inputs = lens_of("qwen2_vl"), made()
    expected = lens.run(lens.prompt(inputs=inputs)).logits
    prompt = lens.prompt(inputs=FORMS[form](inputs))
    tolerance = 1e-2 if form == "halves" else 1e-5
    torch.testing.assert_close(lens.run(prompt).logits, expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(prompt.mask("image"), lens.prompt(inputs=inputs).mask("image"))


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "llava_next", "pixtral", "internvl"])
def test_pixels_are_brought_to_the_dtype_of_the_model(name):
    lens = lens_of(name)
    inputs = dict(lens.prompt("What is this?", images=picture(90, 60)).inputs)
    half = Lens(type(lens.model)(lens.model.config).to(torch.bfloat16).eval())
    prompt = half.prompt(inputs=inputs)
    assert prompt.inputs["pixel_values"].dtype == torch.bfloat16
    assert not half.run(prompt).logits.isnan().any()
    assert inputs["pixel_values"].dtype == torch.float32  # the user's own stay as they are


def test_a_model_of_several_dtypes_gets_pixels_of_one_of_them_as_they_are():
    lens = lens_of("llava")
    model = type(lens.model)(lens.model.config).eval()
    model.lm_head.to(torch.bfloat16)
    assert Lens(model).prompt(inputs=made("llava")).inputs["pixel_values"].dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: list(x.items()), "expected inputs as a mapping of names to tensors, given list\n  as processor"),
        (lambda x: x | {"input_ids": [[1, 2], [1]]}, "input_ids has rows of different lengths, .*\n.*padding=True"),
        (lambda x: x | {"input_ids": [1, 2]}, r"expected inputs with input_ids, an integer tensor \[batch, position\]"),
        (lambda x: x | {"input_ids": "what?"}, "expected inputs with input_ids, an integer tensor"),
        (lambda x: x | {"input_ids": x["input_ids"].bool()}, "expected inputs with input_ids, an integer tensor"),
        (lambda x: x | {"input_ids": x["input_ids"].float()}, "expected inputs with input_ids, an integer tensor"),
        (
            lambda x: x | {"inputs_embeds": torch.zeros(1, x["input_ids"].shape[1], 64)},
            "inputs_embeds were given, which models take in place of input_ids.*\n  give input_ids and pixel_values",
        ),
        (
            lambda x: {"inputs_embeds": torch.zeros(1, 9, 64)},
            "inputs_embeds were given, which models take in place of input_ids",
        ),
        (lambda x: x | {"attention_mask": "all"}, "attention_mask must be .* given str"),
        (
            lambda x: x | {"attention_mask": (1.0 - x["attention_mask"].float()) * -1e9 - 1},
            "attention_mask must be 1 for tokens and 0 for padding, given negative numbers",
        ),
        (
            lambda x: x | {"mm_token_type_ids": x["mm_token_type_ids"][:, 1:]},
            r"mm_token_type_ids must be \[batch, position\] like input_ids \(1, \d+\), given \(1, \d+\)",
        ),
        (
            lambda x: x | {"pixel_values": (x["pixel_values"] * 50).to(torch.uint8)},
            "expected pixel_values as floats, as processors make them, given torch.uint8\n  give the pictures",
        ),
        (
            lambda x: x | {"pixel_values": torch.cat([x["pixel_values"]] * 2)},
            "pixel_values has 48 patches, but image_grid_thw tells of 24",
        ),
    ],
)
def test_what_is_no_prompt_is_refused_by_name(change, message):
    refused(message, lambda: lens_of("qwen2_vl").prompt(inputs=change(made())))


def test_lists_that_some_models_take_stay_lists():
    """MiniCPM-V's pixels: a list of lists of tensors of different shapes."""
    from lmm_lens.prompts.tensors import tensors_of

    nested = [[torch.zeros(3, 4, 5), torch.zeros(3, 6, 7)]]
    given = {"input_ids": [[1, 2]], "pixel_values": nested, "tgt_sizes": [[1], [2, 3]], "image_bound": ["a"]}
    kept = tensors_of(given, [torch.float32])
    assert kept["pixel_values"] is nested
    assert kept["tgt_sizes"] == [[1], [2, 3]]
    assert kept["image_bound"] == ["a"]
    assert torch.equal(kept["input_ids"], torch.tensor([[1, 2]]))


def test_labels_are_left_out():
    llava = case("llava")
    prompt = llava.lens.prompt(inputs=llava.inputs | {"labels": np.zeros(3)})
    assert "labels" not in prompt.inputs


def test_tensors_in_lists_and_dictionaries_are_found_and_changed():
    media = {"image": [torch.zeros(3, 4, 4), (torch.ones(3, 2, 2), "x")], "none": None}
    assert [tuple(x.shape) for x in tensors_in(media)] == [(3, 4, 4), (3, 2, 2)]
    doubled = mapped(media, lambda x: x + 1)
    assert [float(x.max()) for x in tensors_in(doubled)] == [1, 2]
    assert doubled["image"][1][1] == "x"
    assert doubled["none"] is None
    assert float(media["image"][0].max()) == 0
    assert mapped(media, lambda x: x) is media
    assert holds_pixels("media", media)
    assert not holds_pixels("image_bound", [torch.zeros(2, 2).long()])


def test_pixels_in_a_dictionary_are_brought_to_the_models_dtype():
    given = {"input_ids": [[1, 2]], "media": {"image": [torch.zeros(3, 4, 4).double()]}}
    made = tensors_of(given, [torch.float32])
    assert made["media"]["image"][0].dtype == torch.float32
    assert given["media"]["image"][0].dtype == torch.float64


def test_inputs_of_one_call_can_be_written_into():
    inputs = {
        "input_ids": torch.zeros(1, 2).long(),
        "bounds": [torch.ones(1, 2).long()],
        "pixels": torch.zeros(1, 3, 4),
    }
    inputs["media"] = {"image": [inputs["pixels"]]}
    one = fresh(inputs)
    one["media"]["image"].pop()
    assert len(inputs["media"]["image"]) == 1
    one["input_ids"] += 1
    one["bounds"][0] += 1
    assert int(inputs["input_ids"].sum()) == 0
    assert int(inputs["bounds"][0].sum()) == 2
    assert one["pixels"] is inputs["pixels"]
