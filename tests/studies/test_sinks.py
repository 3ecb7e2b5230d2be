"""The study of sinks: where the planted ones are, and the numbers of `compare`."""

import pytest
import torch

from lmm_lens import VAR, KnockoutSinks, compare, find_sinks
from lmm_lens.bundled.shapes import examples, sink_patches
from lmm_lens.errors import ScoreError
from lmm_lens.studies import SinkSettings, sinks
from lmm_lens.studies.sink_study import times
from tests.studies.small import DATA, SINKS

pytestmark = pytest.mark.long


def test_it_finds_the_dimensions_and_tokens_of_find_sinks(lens, sink_study):
    record = sink_study.records[0]
    report = find_sinks(lens, [sample.prompt(lens) for sample in DATA["color"]])
    assert tuple(record["found"]["dims"]) == report.dims == (5, 77)
    assert [row["visual"] for row in record["tokens"]] == report.per_layer()["visual"].tolist()


def test_places_are_where_sinks_were_planted(sink_study):
    places = torch.tensor(sink_study.records[0]["found"]["places"]).flatten()
    expected = torch.zeros(36)
    for example in examples(4, ["color"]):  # the scenes of DATA["color"]
        assert example.scene is not None
        expected[list(sink_patches(example.scene))] += 1 / 4
    torch.testing.assert_close(places, expected)


def test_answers_are_those_of_compare_with_the_papers_setting_marked(lens, sink_study):
    table = sink_study.table("conditions")
    own = {"sink_dims": (5, 77), "sink_threshold": 7.0}
    expected = compare(
        lens,
        DATA["exist"],
        {"plain": [], "sinks masked": KnockoutSinks(**own), "VAR p=0.6 rho=0.5": VAR(min_nonsink_ratio=0.5, **own)},
        "log_prob",
        controls=1,
    ).to_pandas()
    for row in expected.to_dict("records"):
        found = table[(table["data"] == "exist") & (table["condition"] == row["condition"])].iloc[0]
        assert found["value"] == pytest.approx(row["value"], rel=1e-5)
        assert found["edits"] == pytest.approx(row["edits"])
    marked = table[table["paper"] & ~table["condition"].str.endswith("controls")]
    assert dict(zip(marked["data"], marked["condition"], strict=True)) == {
        "color": "VAR p=0.6 rho=0.8",
        "exist": "VAR p=0.6 rho=0.5",
    }
    assert set(table[table["data"] == "exist"]["ratio"].dropna()) == {0.5, 0.8}


def test_a_model_without_sinks_says_so_and_tests_nothing(sink_study):
    record = sink_study.records[1]
    assert record["sinks"] == {"dims": [], "threshold": None, "source": "none: the model's own card"}
    verdicts = {claim["verdict"] for claim in record["claims"][1:]}
    assert verdicts == {"not tested"}
    assert record["claims"][0]["verdict"] == "contradicted"
    assert record["conditions"] == []


def test_time_is_told_as_times_the_plain_answer(lens):
    compared = compare(lens, DATA["exist"], {"plain": [], "again": []}, "log_prob")
    by_hand = compared.seconds[1:].sum(0)
    rows = times(compared)
    assert rows[0]["times_plain"] == 1
    assert rows[1]["times_plain"] == pytest.approx(float(by_hand[1] / by_hand[0]))
    assert rows[1]["low"] <= rows[1]["times_plain"] <= rows[1]["high"]


def test_the_write_up_shows_sinks_and_the_grid(sink_study, tmp_path):
    text = sink_study.write(tmp_path).read_text()
    assert "dimensions [5, 77]" in text
    assert "this model shows no massive activation" in text
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "places planted.png",
        "var planted color.png",
        "var planted exist.png",
    }


def test_what_cannot_be_meant_is_refused(lens):
    with pytest.raises(ScoreError, match="unknown type of task 'genral', did you mean 'general'"):
        SinkSettings(tasks={"color": "genral"})
    with pytest.raises(ScoreError, match="unknown metric 'exact'"):
        SinkSettings(metric="exact")
    with pytest.raises(ScoreError, match="unknown data set 'colour', did you mean 'color'"):
        sinks({"planted": lens}, DATA, settings=SinkSettings(tasks={"colour": "general"}))
    assert SINKS.task("color") == "general"
