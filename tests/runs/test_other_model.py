"""Checkpoints and run folders of another model, another processor, another version: refused, with what differs."""

import copy
import json

import pytest
import torch

from lmm_lens import AblateHeads, Knockout, Lens
from lmm_lens.bundled import shapes
from lmm_lens.errors import ScoreError
from lmm_lens.runs import RunFolder
from lmm_lens.runs.checkpoint import Checkpoint, unfinished

OLD = {"model": "LlavaForConditionalGeneration", "n_layers": 6, "n_heads": 8, "weights": "0123456789abcdef"}


@pytest.fixture
def own():
    return Lens(*copy.deepcopy(shapes.load()))


def refused(call, *arguments) -> str:
    with pytest.raises(ScoreError) as caught:
        call(*arguments)
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


def change_a_weight(lens):
    with torch.no_grad():
        lens.model.lm_head.weight[3, 4] += 1


def change_the_processor(lens):
    lens.processor.image_processor.image_std = [0.4, 0.5, 0.5]


def begun(path, lens, about=None) -> Checkpoint:
    checkpoint = Checkpoint(lens, "test", about or {"seed": 0}, path)
    checkpoint.put(part=torch.ones(2))
    return checkpoint


def test_a_checkpoint_of_another_model_says_what_differs(own, tmp_path):
    begun(tmp_path / "x", own)
    assert "part" in Checkpoint(own, "test", {"seed": 0}, tmp_path / "x")
    change_a_weight(own)
    assert refused(begun, tmp_path / "x", own) == (
        "the checkpoint 'x' belongs to another experiment: it differs in the model (the weights differ)\n"
        "  give another file, or delete this one"
    )
    change_the_processor(own)
    text = refused(begun, tmp_path / "x", own, {"seed": 1})
    assert "it differs in seed, the model (the weights and the processor differ)\n" in text


def test_a_checkpoint_of_an_earlier_version_is_refused(own, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Lens, "identity", OLD)
        begun(tmp_path / "x", own)
    text = refused(begun, tmp_path / "x", own)
    assert "it differs in the model, which another version of lmm-lens recorded in another way\n" in text


def test_parts_that_stay_with_the_lens_are_not_those_of_the_model_as_it_was(own):
    begun(None, own)
    assert "part" in Checkpoint(own, "test", {"seed": 0}, None)
    change_a_weight(own)
    assert "part" not in Checkpoint(own, "test", {"seed": 0}, None)
    assert len(unfinished(own)) == 2


def test_what_an_enclosing_block_applies_makes_it_another_experiment(own, tmp_path):
    prompt = own.prompt("what color is it?", images=shapes.blank(0))
    begun(tmp_path / "x", own)
    with own.apply(AblateHeads([(1, 1)])):
        own.run(prompt)
        assert "it differs in applied\n" in refused(begun, tmp_path / "x", own)
        begun(tmp_path / "y", own)
    for others in (AblateHeads([(1, 2)]), Knockout("image", "last")):
        with own.apply(others):
            own.run(prompt)
            assert "it differs in applied\n" in refused(begun, tmp_path / "y", own)
    with own.apply(AblateHeads([(1, 1)])):
        own.run(prompt)
        assert "part" in Checkpoint(own, "test", {"seed": 0}, tmp_path / "y")


def opened(path, lens, **about) -> RunFolder:
    return RunFolder(path, "test", {"model": lens.identity, **about})


def test_a_run_folder_of_another_model_says_what_differs(own, tmp_path):
    opened(tmp_path / "run", own).close()
    before = own.identity["weights"]
    opened(tmp_path / "run", own).close()
    change_a_weight(own)
    text = refused(opened, tmp_path / "run", own)
    assert "'run' belongs to another run: it differs in 1 field; of the model the weights differ\n" in text
    assert f'model.weights: "{before}" there, "{own.identity["weights"]}" here' in text
    change_the_processor(own)
    own.model.set_attn_implementation("eager")
    text = refused(lambda: opened(tmp_path / "run", own, seed=1))
    assert "4 fields; of the model the weights, the attention implementation and the processor differ\n" in text
    assert 'model.attention: "sdpa" there, "eager" here' in text


def test_a_run_folder_of_an_earlier_version_is_refused(own, tmp_path):
    RunFolder(tmp_path / "run", "test", {"model": OLD}).close()
    assert refused(opened, tmp_path / "run", own) == (
        "the run folder 'run' was made by another version of lmm-lens, which told models apart in another way, so its "
        "model is not known\n  give another folder, or delete this one"
    )
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["about"]["model"] == OLD
