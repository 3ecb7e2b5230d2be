"""Adapters that are switched, merged and put in after a lens was made: the lens answers for the model as it is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from lmm_lens import AblateHeads, Lens
from lmm_lens.bundled import shapes
from lmm_lens.errors import ModelError
from tests.containers.by_hand import ByHand
from tests.containers.held import BACKENDS, lively, lora, plain, with_two_adapters

pytestmark = pytest.mark.filterwarnings("ignore")  # of these packages about themselves and torch
HEADS = [(1, 4), (3, 4), (2, 5)]


def grow(model: Any) -> None:
    """Another scaling of the adapter that acts, as PEFT's own method sets it."""
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(3.0)


SWITCHES: dict[str, Callable[[Any], None]] = {
    "another adapter": lambda model: model.set_adapter("second"),
    "both": lambda model: model.base_model.set_adapter(["first", "second"]),
    "off": lambda model: model.base_model.disable_adapter_layers(),
    "merged": lambda model: model.merge_adapter(),
    "scaled": grow,
    "deleted": lambda model: model.delete_adapter("first"),
    "unloaded": lambda model: model.unload(),
    "a third": lambda model: lively(model.add_adapter("third", lora(r=3)) or model).set_adapter("third"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("switch", SWITCHES.values(), ids=SWITCHES)
def test_a_lens_follows_its_adapters(switch: Callable[[Any], None], backend: str):
    model = with_two_adapters()
    lens = Lens(model, shapes.load()[1], backend)
    example = shapes.examples(1, ["color"])[0]
    prompt = lens.prompt(example.question, images=example.image)
    base = model.get_base_model()
    hand = ByHand(base, prompt.inputs, base.config.image_token_id)
    before = lens.run(prompt).logits[0, -1]
    torch.testing.assert_close(before, hand.logits(), atol=2e-3, rtol=0)
    switch(model)
    now = hand.logits()
    if switch is not SWITCHES["merged"]:
        assert (now - before).abs().max() > 0.05
    torch.testing.assert_close(lens.run(prompt).logits[0, -1], now, atol=2e-3, rtol=0)
    without = hand.ablated(HEADS)
    torch.testing.assert_close(lens.run(prompt, [AblateHeads(HEADS)]).logits[0, -1], without, atol=2e-3, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_adapter_put_into_a_plain_model_behind_the_lens(backend: str):
    model = plain()
    lens = Lens(model, shapes.load()[1], backend)
    example = shapes.examples(1, ["color"])[0]
    prompt = lens.prompt(example.question, images=example.image)
    lens.run(prompt, [AblateHeads(HEADS)])
    model.add_adapter(LoraConfig(r=4, target_modules=["q_proj", "o_proj"]))
    lively(model).eval()
    hand = ByHand(model, prompt.inputs, model.config.image_token_id)
    without = hand.ablated(HEADS)  # what LoRA adds to W_O is given the heads' outputs too
    torch.testing.assert_close(lens.run(prompt, [AblateHeads(HEADS)]).logits[0, -1], without, atol=2e-3, rtol=0)
    with_context = lens.run(prompt).logits[0, -1]
    model.disable_adapters()
    torch.testing.assert_close(lens.run(prompt).logits[0, -1], hand.logits(), atol=2e-3, rtol=0)
    assert (with_context - hand.logits()).abs().max() > 0.05


def test_an_adapter_folder_is_opened_with_its_model(tmp_path):
    model, processor = shapes.load()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    adapted = lively(get_peft_model(plain(), lora()))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "model")
    adapted.save_pretrained(tmp_path / "adapter")
    lens = Lens.from_pretrained(str(tmp_path / "adapter"))
    assert isinstance(lens.model, PeftModel)
    example = shapes.examples(1, ["color"])[0]
    prompt = lens.prompt(example.question, images=example.image)
    with torch.no_grad():
        expected = adapted(**prompt.inputs).logits
    torch.testing.assert_close(lens.run(prompt).logits, expected, atol=1e-4, rtol=0)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="adapter"):
        Lens.from_pretrained(str(tmp_path / "adapter"))
