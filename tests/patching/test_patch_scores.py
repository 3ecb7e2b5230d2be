"""Effects as a value: means, intervals, rankings and files, on tables made by hand."""

import dataclasses
import json
import pickle
import stat
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lmm_lens import HeadSet, LensError
from lmm_lens.bundled import shapes
from lmm_lens.patching import PatchScores
from tests.support.patch_scores import NAN, PER_PAIR, made, refused

# ---------------------------------------------------------------------- numbers


def test_the_mean_is_over_the_pairs_in_which_an_effect_is_defined():
    scores = made()
    expected = torch.tensor([[0.25, 0.625, -0.125], [0.75, 0.0, NAN]])
    torch.testing.assert_close(scores.values, expected, equal_nan=True)
    assert (scores.n_pairs, scores.n_undefined) == (3, 1)


def test_the_interval_spans_the_pairs_in_which_an_effect_is_defined():
    low, high = made().interval(level=0.99)
    expected = [[0.25, 0.5, -0.5], [0.5, 0.0, NAN]], [[0.25, 0.75, 0.25], [1.0, 0.0, NAN]]
    torch.testing.assert_close(low, torch.tensor(expected[0]), equal_nan=True)
    torch.testing.assert_close(high, torch.tensor(expected[1]), equal_nan=True)


def test_an_interval_without_gaps_is_the_plain_bootstrap_and_gaps_do_not_touch_other_heads():
    from lmm_lens.statistics.resampling import bootstrap_interval

    samples = torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(0))
    low, high = made(samples).interval()
    for given, expected in zip((low, high), bootstrap_interval(samples), strict=True):
        torch.testing.assert_close(given, expected)
    holed = samples.clone()
    holed[4, 0, 1] = NAN
    again, _ = made(holed).interval()
    assert (again != low).nonzero().tolist() in ([], [[0, 1]])
    others, _ = bootstrap_interval(samples[torch.arange(20) != 4])
    torch.testing.assert_close(again[0, 1], others[0, 1])


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_is_a_share(level):
    assert refused(made().interval, level) == f"the level of an interval lies between 0 and 1, given {level}"


def test_the_best_heads_are_a_head_set_of_the_model():
    scores = made()
    assert scores.top(3) == HeadSet([(5, 0), (3, 1), (3, 0)], 7, 3)
    assert scores.top(3).heads == ((5, 0), (3, 1), (3, 0))
    assert scores.top(1, layers=[3]).heads == ((3, 1),)
    for n in (0, 6):
        assert refused(scores.top, n) == f"{n} heads were asked for, expected 1 to 5 (the heads with an effect)"
    assert refused(scores.top, 1, [7], kind=LensError) == "layer 7 is out of range: the model has layers 0 to 6"
    spans = made(by="span", units=("bos", "image", "last"))
    assert refused(spans.top, 1) == "top gives heads, but these scores are by span: see to_pandas(), best first"


def test_the_table_has_one_row_an_effect_best_first():
    frame = made().to_pandas()
    assert list(frame.columns) == ["layer", "head", "effect", "low", "high"]
    assert list(zip(frame["layer"], frame["head"], strict=True)) == [(5, 0), (3, 1), (3, 0), (5, 1), (3, 2)]
    assert frame["effect"].tolist() == pytest.approx([0.75, 0.625, 0.25, 0, -0.125])
    assert (frame["low"] <= frame["effect"]).all()
    assert (frame["high"] >= frame["effect"]).all()
    spans = made(by="span", units=("bos", "image", "last")).to_pandas()
    assert spans["span"].tolist()[:2] == ["bos", "image"]


# ---------------------------------------------------------------------- rank correlation


def test_the_rank_correlation_worked_by_hand():
    one = made(torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, NAN]]]))
    two = made(torch.tensor([[[10.0, 30.0, 20.0], [50.0, 40.0, 99.0]]]))
    # ranks 1 2 3 4 5 and 1 3 2 5 4: 1 - 6 * (0 + 1 + 1 + 1 + 1) / (5 * 24)
    assert one.rank_correlation(two) == pytest.approx(1 - 24 / 120)
    assert one.rank_correlation(one) == pytest.approx(1)
    assert one.rank_correlation(made(-one.per_pair)) == pytest.approx(-1)
    assert one.rank_correlation(made(one.per_pair.exp())) == pytest.approx(1)  # of ranks alone


def test_ties_have_their_mean_rank():
    one = made(torch.tensor([[[1.0, 2.0, 2.0], [3.0, NAN, NAN]]]))  # ranks 1 2.5 2.5 4
    two = made(torch.tensor([[[1.0, 2.0, 3.0], [4.0, NAN, NAN]]]))
    assert one.rank_correlation(two) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert np.isnan(one.rank_correlation(made(torch.zeros(1, 2, 3))))


def test_a_rank_correlation_needs_the_same_axes():
    for change, said in (
        ({"layers": (3, 4)}, "layers: (3, 5) and (3, 4)"),
        ({"units": ("0", "1", "9")}, "units: ('0', '1', '2') and ('0', '1', '9')"),
        ({"by": "patch"}, "by: 'head' and 'patch'"),
    ):
        text = refused(made().rank_correlation, made(**change))
        assert text == f"a rank correlation needs scores on the same axes, these differ in {said}"


# ---------------------------------------------------------------------- several batches as one


def test_batches_are_joined_pair_by_pair():
    parts = [made(PER_PAIR[:1], answers=(("red", "blue"),)), made(PER_PAIR[1:])]
    whole = PatchScores.concat(parts)
    torch.testing.assert_close(whole.per_pair, PER_PAIR, equal_nan=True)
    assert whole.answers == (("red", "blue"), ("red", "green"), ("red", "green"))
    assert whole.clean_ld.shape == whole.corrupt_ld.shape == (3,)
    assert "no scores were given" in refused(PatchScores.concat, [])
    text = refused(PatchScores.concat, [made(), made(rows="all")])
    assert text == "only scores of one experiment are joined, these differ in rows: 'last' and 'all'"


# ---------------------------------------------------------------------- words


def test_the_repr_is_a_sentence_with_what_was_patched_and_the_best():
    assert repr(made()) == (
        "PatchScores: patching of z by head at rows 'last', 2 layers x 3, mean of 3 pairs (1 of them undefined); "
        "logit difference +4.00 clean, -3.00 corrupt; highest L5H0 0.75, L3H1 0.62, L3H0 0.25"
    )
    spans = made(PER_PAIR[:1], site="resid_pre", by="span", rows="", units=("bos", "image", "last"), layers=(0, 1))
    assert repr(spans).startswith("PatchScores: patching of resid_pre by span, 2 layers x 3, mean of 1 pairs; ")
    assert repr(spans).endswith("highest L1 bos 1.00, L0 image 0.50, L0 bos 0.25")
    assert repr(made(torch.full((1, 2, 3), NAN))).endswith("highest none")


def test_in_a_notebook_spans_are_shown_as_layer_by_span():
    shown = made(by="span", units=("bos", "image", "last"))._repr_html_()
    assert "<th>image</th>" in shown
    assert "0.62" in shown
    assert made()._repr_html_().count("<tr") == 6  # five heads and the header


def test_scores_are_frozen():
    with pytest.raises(AttributeError):
        made().site = "z"


# ---------------------------------------------------------------------- files


@pytest.fixture
def path(tmp_path):
    made().save(tmp_path / "effects.safetensors")
    return tmp_path / "effects.safetensors"


def test_everything_comes_back_bit_for_bit(path):
    before, after = made(), PatchScores.load(path)
    for field in dataclasses.fields(PatchScores):
        one, two = getattr(before, field.name), getattr(after, field.name)
        if isinstance(one, torch.Tensor):
            assert torch.equal(one.view(torch.int32), two.view(torch.int32))
        else:
            assert one == two
            assert type(one) is type(two)
    assert repr(before) == repr(after)
    assert path.stat().st_mode & stat.S_IROTH


def test_the_file_is_a_json_header_and_the_numbers(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert set(header) == {"__metadata__", "per_pair", "clean_ld", "corrupt_ld"}
    about = json.loads(header["__metadata__"]["lmm_lens"])
    assert about["format"] == "lmm-lens patch scores 2"
    assert about["units"] == ["0", "1", "2"]


@pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.99])
def test_a_file_cut_short_is_refused(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "'effects.safetensors' is truncated or no safetensors file" in refused(PatchScores.load, path)


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    file = tmp_path / "effects.safetensors"
    file.write_bytes(pickle.dumps(Trap()))
    assert "is truncated or no safetensors file" in refused(PatchScores.load, file)
    assert not (tmp_path / "executed").exists()


def test_files_of_another_kind_are_refused(tmp_path):
    expected = "holds no patch scores: expected a file written by their own save()"
    assert expected in refused(PatchScores.load, shapes.checkpoint() / "model.safetensors")
    for about in ("[1]", "{}", '{"format": "lmm-lens head scores 2"}'):
        save_file({"per_pair": torch.zeros(1)}, tmp_path / "x", {"lmm_lens": about})
        assert refused(PatchScores.load, tmp_path / "x") == f"'x' {expected}"
    save_file({"per_pair": torch.zeros(1)}, tmp_path / "x", {"lmm_lens": '{"format": "lmm-lens patch scores 2"}'})
    assert refused(PatchScores.load, tmp_path / "x") == f"'x' {expected}"  # the rest is missing
    save_file({"per_pair": torch.zeros(1)}, tmp_path / "x", {"lmm_lens": "{"})
    assert "is truncated" in refused(PatchScores.load, tmp_path / "x")


def test_files_and_folders_that_are_not_there_are_named(tmp_path):
    assert refused(PatchScores.load, tmp_path / "none") == "there is no file of patch scores 'none'"
    assert "there is no folder" in refused(made().save, tmp_path / "missing" / "effects")


def test_scores_of_another_model_are_refused_where_a_lens_is_given(lens, path, tmp_path):
    text = refused(PatchScores.load, path, lens=lens)
    assert text.startswith(
        "'effects.safetensors' was made with another model: the model's class, the number of layers and the number of "
        "heads differ\n  made with: Some 7 x 3\n  lens: "
    )
    made(model=lens.identity).save(tmp_path / "own")
    assert PatchScores.load(tmp_path / "own", lens=lens).n_pairs == 3
