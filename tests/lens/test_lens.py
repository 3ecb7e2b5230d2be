"""The lens itself: loading, what it says of the model, and that it is one model from another."""

import torch

from lmm_lens import Lens
from lmm_lens.bundled import shapes
from tests.support.cases import case, close
from tests.support.models import FAMILIES


def test_a_model_is_loaded_from_a_folder_with_its_processor(lens):
    loaded = Lens.from_pretrained(shapes.checkpoint(), dtype=torch.float32)
    image = shapes.examples(1, ["color"])[0].image
    assert not loaded.model.training
    close(
        loaded.run(loaded.prompt("what color is it?", images=image)).logits,
        lens.run(lens.prompt("what color is it?", images=image)).logits,
        1e-6,
    )


def test_options_of_loading_reach_the_model():
    assert Lens.from_pretrained(str(shapes.checkpoint()), dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_a_lens_says_what_it_looks_at(lens):
    assert repr(lens) == (
        "Lens on LlavaForConditionalGeneration (family llava, backend native): 6 layers x 8 heads of 16, on cpu"
    )
    assert lens.device == torch.device("cpu")
    assert repr(case("llava").lens.run(case("llava").prompt)) == "Run with logits (1, 27, 200), 0 reads"


def test_two_copies_of_a_model_are_the_same_model_and_other_weights_another(lens):
    model, _ = FAMILIES["llava"]()
    before = Lens(model).identity
    assert before == case("llava").lens.identity
    assert (before["model"], before["n_layers"], before["n_heads"]) == ("LlavaForConditionalGeneration", 3, 4)
    with torch.no_grad():
        model.get_decoder().layers[1].self_attn.o_proj.weight.mul_(2)
    assert Lens(model).identity != before
    assert Lens.demo("plain").identity != lens.identity
