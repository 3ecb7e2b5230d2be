"""`Lens.from_pretrained`: options of the processor and of the model, folders that lack files, wrong names."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

from lmm_lens import Lens
from lmm_lens.bundled import shapes
from lmm_lens.errors import ModelError, PromptError

WORDS = ("processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled model's folder."""
    return Path(shutil.copytree(shapes.checkpoint(), tmp_path / "model"))


def asked(lens: Lens) -> torch.Tensor:
    example = shapes.examples(1, ["color"])[0]
    return lens.run(lens.prompt(example.question, images=example.image)).logits


def test_options_of_the_processor_reach_it_and_those_of_the_model_reach_that(folder):
    lens = Lens.from_pretrained(folder, dtype=torch.bfloat16, image_mean=[0.1, 0.2, 0.3], padding_side="right")
    assert lens.model.dtype == torch.bfloat16
    assert list(lens.processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert lens.processor.tokenizer.padding_side == "right"


def test_a_processor_of_ones_own_is_taken(folder):
    processor = AutoProcessor.from_pretrained(folder)
    assert Lens.from_pretrained(folder, processor=processor).processor is processor
    other = Path(shutil.copytree(folder, folder.parent / "other"))
    for name in WORDS:
        (folder / name).unlink()
    lens = Lens.from_pretrained(folder, processor=str(other))
    assert torch.equal(asked(lens), asked(Lens.from_pretrained(other)))


def test_without_processor_files_a_lens_takes_tensors(folder):
    inputs = dict(Lens.from_pretrained(folder).prompt("a <image> b", images=shapes.blank(0), template=False).inputs)
    for name in WORDS:
        (folder / name).unlink()
    lens = Lens.from_pretrained(folder)
    assert lens.processor is None
    assert lens.run(lens.prompt(inputs=inputs)).logits.shape[1] == inputs["input_ids"].shape[1]
    with pytest.raises(PromptError, match=r"this lens has no processor\n  load one with Lens\(model, processor\)"):
        lens.prompt("a question")


def test_a_processor_that_is_damaged_is_told(folder):
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(
        ModelError, match=r"the processor in '.*model' cannot be opened: .*\n  give processor=..., or the"
    ):
        Lens.from_pretrained(folder)


def test_an_option_of_neither_is_refused_with_one_that_there_is(folder):
    with pytest.raises(ModelError, match=r"unknown option of the model or of its processor 'image_maen', did you mean"):
        Lens.from_pretrained(folder, image_maen=[0.0, 0.0, 0.0])


def test_what_old_processor_files_leave_out_is_taken_from_the_model(folder):
    config = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
        config.pop(name, None)
    (folder / "processor_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert AutoProcessor.from_pretrained(folder).patch_size is None
    lens = Lens.from_pretrained(folder)
    assert lens.processor.patch_size == lens.model.config.vision_config.patch_size
    assert torch.equal(asked(lens), asked(Lens.from_pretrained(shapes.checkpoint())))


def test_a_lens_is_opened_again_with_its_options(folder):
    lens = Lens.from_pretrained(folder, image_mean=[0.1, 0.2, 0.3])
    assert lens.origin is not None
    assert lens.origin().identity == lens.identity


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder"])
def test_a_name_of_nothing_is_told(name):
    with pytest.raises(
        ModelError,
        match=r"cannot be opened as an image-text-to-text model: .*\n  (give a Hub name or a|the Hub cannot be)",
    ):
        Lens.from_pretrained(name)
