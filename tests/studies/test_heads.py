"""The study of heads: its numbers are those of the library's own calls, and it goes on where it was killed."""

import json

import pandas
import pytest
import torch

from lmm_lens import AblateHeads, HeadSet, head_effects, score_heads
from lmm_lens.data import shapes
from lmm_lens.errors import ScoreError
from lmm_lens.statistics import sign_flip_test
from lmm_lens.studies import HeadSettings, Record, Study, heads, sinks
from lmm_lens.studies.looks import LookWork
from tests.studies.small import DATA, HEADS, TEXT

pytestmark = pytest.mark.long


def test_maps_are_those_of_score_heads(lens, head_study):
    (record,) = head_study.records
    samples = list(DATA["color"])
    prompts = [sample.prompt(lens) for sample in samples]
    for query in ("last", "answer"):
        for metric in ("visual_mass", "nonsink_mass", "nonsink_ratio", "concentration", "region_mass"):
            boxes = [[list(box) for box in sample.boxes] for sample in samples] if metric == "region_mass" else None
            expected = score_heads(lens, prompts, metric, query, boxes=boxes).values
            found = torch.tensor(record["maps"]["color"][query][metric]["mean"])
            torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-6)


def test_effects_are_those_of_head_effects_on_the_other_half(lens, head_study):
    expected = head_effects(lens, list(DATA["color"])[1::2])
    found = torch.tensor(head_study.records[0]["effects"]["color"]["effect"], dtype=torch.float64)
    torch.testing.assert_close(found, expected.values, rtol=1e-4, atol=1e-5)


def test_what_is_removed_was_chosen_on_the_other_half(lens, head_study):
    table = head_study.table("removal")
    row = table[(table["data"] == "color") & (table["outcome"] == "log_prob") & (table["k"] == 2)].iloc[0]
    maps = [
        score_heads(lens, [sample.prompt(lens) for sample in list(each)[::2]], "nonsink_mass").values
        for each in DATA.values()
    ]
    chosen = torch.stack(maps).mean(0).flatten().topk(2).indices.tolist()
    assert row["heads"] == str(HeadSet([divmod(i, lens.n_heads) for i in chosen], lens.n_layers, lens.n_heads))
    top = HeadSet([divmod(i, lens.n_heads) for i in chosen], lens.n_layers, lens.n_heads)
    control = top.random_like(0, "most")
    expected = head_effects(lens, list(DATA["color"])[1::2], rows="all", heads=[top, control])
    assert row["effect"] == pytest.approx(float(expected.mean[0]), rel=1e-4)
    assert row["control"] == pytest.approx(float(expected.mean[1]), rel=1e-4, abs=1e-6)
    gap = expected.per_prompt[:, 0] - expected.per_prompt[:, 1]
    assert row["p"] == pytest.approx(float(sign_flip_test(gap).p))
    assert set(table[table["data"] == "sums"]["questions"]) == {"without a picture"}


def test_every_claim_has_a_verdict_a_statistic_and_a_control(head_study):
    claims = head_study.claims
    assert set(claims["verdict"]) <= {"holds", "contradicted", "open", "not tested"}
    tested = claims[claims["verdict"] != "not tested"]
    assert tested[["statistic", "control"]].map(bool).all(axis=None)
    assert tested[["value", "control_value"]].notna().all(axis=None)
    removed = tested[tested["claim"].str.contains("removed")]
    assert set(removed["verdict"]) <= {"open", "contradicted"}, "two prompts cannot show that nothing is lost"


def test_killed_in_the_middle_it_ends_with_the_same_record(lens, head_study, tmp_path, monkeypatch):
    done = LookWork.__call__
    calls = []

    def dies(self, item):
        calls.append(item.name)
        if len(calls) == 6:  # in the second data set
            raise KeyboardInterrupt
        return done(self, item)

    monkeypatch.setattr(LookWork, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        heads({"planted": lens}, DATA, text=TEXT, settings=HEADS, folder=tmp_path)
    assert not (tmp_path / "planted" / "study.json").exists()
    again = heads({"planted": lens}, DATA, text=TEXT, settings=HEADS, folder=tmp_path)
    assert calls[6:] == ["shapes/exist/2", "shapes/exist/3", "shapes/exist/4"], "only what was missing"
    assert again.records[0].content == head_study.records[0].content


def test_within_apply_it_is_a_study_of_the_edited_model(lens, head_study, tmp_path):
    edit, data = AblateHeads([(0, 0), (0, 4)], rows="all"), {"color": DATA["color"]}
    plain = heads({"planted": lens}, data, settings=HEADS, folder=tmp_path)
    with lens.apply(edit):
        with pytest.raises(ScoreError, match="run"):
            heads({"planted": lens}, data, settings=HEADS, folder=tmp_path)
        found = heads({"planted": lens}, data, settings=HEADS)
    assert found.records[0]["model"]["applied"] == [repr(edit)]
    assert "applied" not in plain.records[0]["model"]
    assert found.records[0]["maps"] != plain.records[0]["maps"]
    report = found.write(tmp_path).read_text()
    assert f", under {edit!r}; sinks: " in report


def test_a_pair_of_data_sets_is_named_by_both_whatever_their_names(lens):
    found = heads({"planted": lens}, {"a ~ b": DATA["color"], "c": DATA["exist"].take(2)}, settings=HEADS)
    claims = found.claims
    (row,) = claims[claims["claim"] == "The same heads are visual on every data set"].to_dict("records")
    assert (row["data"], row["n"]) == ("a ~ b ~ c", 2)


def test_a_record_is_sealed_and_says_what_it_is_of(lens, head_study, head_folder, tmp_path):
    record = Record.load(head_folder / "planted")
    assert record.content == head_study.records[0].content
    assert record["model"]["id"] == "lmm-lens/shapes-llava"
    assert record["model"]["weights"] == lens.identity["weights"]
    assert record["versions"]["lmm-lens"]
    changed = json.loads((head_folder / "planted" / "study.json").read_text())
    changed["claims"][0]["verdict"] = "holds very much"
    (tmp_path / "study.json").write_text(json.dumps(changed))
    with pytest.raises(ScoreError, match="is damaged: its checksum is wrong"):
        Record.load(tmp_path)
    with pytest.raises(ScoreError, match="there is no study in"):
        Record.load(tmp_path / "none")


def test_a_loaded_study_is_the_study(head_study, head_folder):
    loaded = Study.load(head_folder)
    pandas.testing.assert_frame_equal(loaded.claims, head_study.claims)
    assert repr(loaded) == repr(head_study)
    with pytest.raises(ScoreError, match="there is no table 'depths', only depth, agreement, removal"):
        loaded.table("depths")


def test_the_write_up_has_every_claim_and_figure(head_study, tmp_path):
    text = head_study.write(tmp_path).read_text()
    for claim in head_study.claims["claim"]:
        assert claim in text
    figures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert figures == [
        "depth.png",
        "map planted.png",
        "removal accuracy planted.png",
        "removal log_prob planted.png",
    ]
    assert len(pandas.read_csv(tmp_path / "removal.csv")) == len(head_study.table("removal"))


def test_what_cannot_be_studied_is_refused(lens, head_folder):
    with pytest.raises(ScoreError, match="a study needs models by name"):
        heads({}, DATA)
    with pytest.raises(ScoreError, match="at least one data set of questions about pictures"):
        heads({"planted": lens}, {})
    with pytest.raises(ScoreError, match="two data sets are called 'color'"):
        heads({"planted": lens}, DATA, text={"color": TEXT["sums"]})
    with pytest.raises(ScoreError, match="becomes a folder's, so it has no slash or colon in it, given 'a/b'"):
        heads({"a/b": lens}, DATA)
    with pytest.raises(
        ScoreError, match=r"a data set becomes a folder's, so it has no slash or colon in it, given '\.\./"
    ):
        heads({"planted": lens}, {"../color": DATA["color"]})
    with pytest.raises(ScoreError, match=r"given 'study\.json'"):
        heads({"planted": lens}, DATA, text={"study.json": TEXT["sums"]})
    with pytest.raises(ScoreError, match="'sums' was given as questions without a picture, and shapes/color/1 has one"):
        heads({"planted": lens}, DATA, text={"sums": shapes(2, kinds="color")})
    with pytest.raises(ScoreError, match="has no visual tokens"):
        heads({"planted": lens}, {"sums": shapes(2, kinds="arith")})
    with pytest.raises(ScoreError, match=r"heads are ranked by one of visual_mass, .* given 'mass'"):
        HeadSettings(rank_by="mass")
    with pytest.raises(ScoreError, match="at least 1 random control, given controls=0"):
        HeadSettings(controls=0)
    with pytest.raises(ScoreError, match="holds a study of heads, not of sinks"):
        sinks({"planted": lens}, DATA, folder=head_folder)
