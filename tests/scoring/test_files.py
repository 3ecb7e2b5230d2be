"""Scores in files: bit for bit, nothing executable, and no half file taken for a whole one."""

import copy
import dataclasses
import json
import pickle
import stat
import struct

import pytest
import torch
from safetensors.torch import save_file

from lmm_lens import HeadScores, Lens, score_heads
from lmm_lens.bundled import shapes
from lmm_lens.errors import ScoreError

FORMAT = "lmm-lens head scores 2"


@pytest.fixture(scope="module")
def scores(lens, asked):
    return score_heads(lens, asked.batch, "nonsink_mass")


@pytest.fixture
def path(tmp_path, scores):
    scores.save(tmp_path / "scores.safetensors")
    return tmp_path / "scores.safetensors"


def refused(path, **options) -> str:
    with pytest.raises(ScoreError) as caught:
        HeadScores.load(path, **options)
    assert len(str(caught.value).splitlines()) <= 3
    assert path.name in str(caught.value)
    return str(caught.value)


def header(path) -> dict:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])


def written(path, **metadata):
    save_file({"per_prompt": torch.zeros(1, 2, 2)}, path, metadata)
    return path


def test_everything_comes_back_bit_for_bit(lens, scores, path):
    again = HeadScores.load(path, lens=lens)
    assert torch.equal(again.per_prompt.view(torch.int32), scores.per_prompt.view(torch.int32))
    assert (again.metric, again.query) == ("nonsink_mass", "last")
    assert again.model == scores.model == lens.identity
    assert again.settings == scores.settings
    assert again.top(9).heads == scores.top(9).heads
    assert repr(again) == repr(scores)


def test_awkward_numbers_come_back_bit_for_bit(tmp_path):
    values = torch.tensor([[[torch.nan, -0.0, 1e-45], [torch.inf, 1 / 3, 3.4e38]]])
    before = HeadScores("visual_mass", "answer", values.transpose(1, 2))  # not contiguous
    before.save(tmp_path / "x")
    after = HeadScores.load(tmp_path / "x").per_prompt
    assert after.shape == (1, 3, 2)
    assert torch.equal(after.view(torch.int32), values.transpose(1, 2).contiguous().view(torch.int32))


def test_a_path_may_be_a_string(scores, tmp_path):
    scores.save(str(tmp_path / "x"))
    assert torch.equal(HeadScores.load(str(tmp_path / "x")).per_prompt, scores.per_prompt)


def test_the_file_is_a_json_header_and_the_numbers(scores, path):
    data = path.read_bytes()
    head = header(path)
    assert set(head) == {"__metadata__", "per_prompt"}
    begin, end = head["per_prompt"]["data_offsets"]
    assert end - begin == scores.per_prompt.numel() * 4
    assert data[-(end - begin) :] == scores.per_prompt.numpy().tobytes()
    about = json.loads(head["__metadata__"]["lmm_lens"])
    assert len(about.pop("sha256")) == 64
    assert about == {
        "format": FORMAT,
        "metric": "nonsink_mass",
        "query": "last",
        "model": scores.model,
        "settings": scores.settings,
    }


def test_nothing_is_unpickled(path, scores, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a score file was unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, forbidden)
    assert torch.equal(HeadScores.load(path).per_prompt, scores.per_prompt)


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    file = tmp_path / "scores.safetensors"
    file.write_bytes(pickle.dumps(Trap()))
    assert "is truncated or no safetensors file" in refused(file)
    torch.save({"per_prompt": torch.zeros(1)}, file)
    assert "is truncated or no safetensors file" in refused(file)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("share", [0, 0.005, 0.05, 0.3, 0.6, 0.99])
def test_a_file_cut_short_is_refused(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "is truncated or no safetensors file" in refused(path)


def test_a_file_that_lacks_its_last_byte_is_refused(path):
    path.write_bytes(path.read_bytes()[:-1])
    assert "compute the head scores again" in refused(path)


def test_files_of_another_kind_are_refused(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("head scores of a model\n" * 20)
    assert "is truncated or no safetensors file" in refused(text)
    weights = shapes.checkpoint() / "model.safetensors"
    assert "holds no head scores: expected a file written by their own save()" in refused(weights)


@pytest.mark.parametrize(
    "about",
    ["[1]", "null", '"text"', "{", "{}", '{"format": "lmm-lens head scores 0"}', json.dumps({"format": FORMAT})],
)
def test_a_file_with_another_header_is_refused(tmp_path, about):
    refused(written(tmp_path / "other.safetensors", lmm_lens=about))


def test_a_file_without_the_numbers_is_refused(tmp_path, path):
    save_file({"other": torch.zeros(2)}, tmp_path / "x", {"lmm_lens": header(path)["__metadata__"]["lmm_lens"]})
    refused(tmp_path / "x")


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert refused(tmp_path / "none.safetensors") == "there is no file of head scores 'none.safetensors'"
    assert "there is no file of head scores" in refused(tmp_path)  # a folder


def test_a_folder_that_is_not_there_is_named(scores, tmp_path):
    with pytest.raises(ScoreError, match=r"there is no folder .*missing"):
        scores.save(tmp_path / "missing" / "scores.safetensors")


def test_scores_of_another_model_are_refused_where_a_lens_is_given(lens, path):
    other = copy.deepcopy(lens.model)
    with torch.no_grad():
        other.lm_head.weight.mul_(1.01)
    text = refused(path, lens=Lens(other, lens.processor))
    assert "was made with another model: the weights differ\n" in text
    mine, others = lens.identity["weights"][:8], Lens(other, lens.processor).identity["weights"][:8]
    assert f"made with: LlavaForConditionalGeneration 6 x 8, weights {mine}\n" in text
    assert text.endswith(f"lens:      LlavaForConditionalGeneration 6 x 8, weights {others}")
    assert HeadScores.load(path).n_prompts == 7  # without a lens nothing is compared


def test_scores_made_with_another_processor_are_refused_and_it_is_named(lens, path):
    processor = copy.deepcopy(lens.processor)
    processor.image_processor.image_mean = [0.4, 0.5, 0.5]
    text = refused(path, lens=Lens(lens.model, processor))
    assert "was made with the same weights, but the processor differs\n" in text
    assert "6 x 8, processor LlavaProcessor " in text


def test_scores_that_an_earlier_version_made_are_refused_where_a_lens_is_given(lens, scores, tmp_path):
    old = {"model": "LlavaForConditionalGeneration", "n_layers": 6, "n_heads": 8, "weights": "0123456789abcdef"}
    dataclasses.replace(scores, model=old).save(tmp_path / "old")
    assert refused(tmp_path / "old", lens=lens) == (
        "'old' was made by another version of lmm-lens, which told models apart in another way, so its model is not "
        "known\n  compute it again, or load it without a lens"
    )
    dataclasses.replace(scores, model={}).save(tmp_path / "nothing")
    assert "'nothing' does not say which model it was made with" in refused(tmp_path / "nothing", lens=lens)
    dataclasses.replace(scores, model={**old, "n_layers": 7}).save(tmp_path / "other")
    assert "was made with another model: the number of layers differs" in refused(tmp_path / "other", lens=lens)
    assert refused(tmp_path / "other") == (
        "per_prompt in 'other' has the shape [7, 6, 8], expected [prompt, layer 7, head 8]"
    )
    for name in ("old", "nothing"):
        assert HeadScores.load(tmp_path / name).n_prompts == 7


def test_the_same_weights_loaded_again_are_the_same_model(path):
    assert HeadScores.load(path, lens=Lens.demo()).n_prompts == 7


def test_others_may_read_the_file(path):
    assert path.stat().st_mode & stat.S_IROTH
