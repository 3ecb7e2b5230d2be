"""`lmm-lens compare`: its numbers are those of `compare`, it goes on where it was, and it refuses what it must."""

import pandas
import pytest
import yaml

from lmm_lens import VAR, AblateHeads, Condition, HeadSet, compare
from lmm_lens.data import named
from lmm_lens.interventions import to_json

SMALL = {"kind": "shapes", "n": 6, "kinds": ["color", "exist"]}
HEADS = [[1, 4], [3, 4]]
CONDITIONS = {
    "plain": [],
    "VAR": [{"intervention": "VAR", "task": "general"}],
    "ablated": [{"intervention": "AblateHeads", "heads": HEADS, "rows": "after_image"}],
    "blank": {"pictures": "blank"},
}


@pytest.fixture
def config(tmp_path):
    """Writes a config of four conditions into the folder "out" unless told otherwise; gives its path."""

    def write(**changes):
        values = {"data": SMALL, "conditions": CONDITIONS, "out": str(tmp_path / "out"), "controls": 1, **changes}
        path = tmp_path / "compare.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        return path

    return write


def test_it_writes_what_compare_finds(cli, config, lens, tmp_path):
    result = cli("compare", config())
    assert result.status == 0, result.err
    heads = HeadSet([tuple(head) for head in HEADS], lens.n_layers, lens.n_heads)
    conditions = {
        "plain": [],
        "VAR": VAR.for_task("general", lens),
        "ablated": AblateHeads(heads, rows="after_image"),
        "blank": Condition(pictures="blank"),
    }
    expected = compare(lens, named(**SMALL), conditions, controls=1)
    written = pandas.read_csv(tmp_path / "out" / "conditions.csv")
    columns = ["condition", "value", "low", "high", "n", "edits", "moved"]
    pandas.testing.assert_frame_equal(written[columns], expected.to_pandas()[columns])
    pandas.testing.assert_frame_equal(pandas.read_csv(tmp_path / "out" / "tests.csv"), expected.tests())
    answers = pandas.read_csv(tmp_path / "out" / "answers.csv", dtype=str)
    assert answers["blank"].tolist() == list(expected.said("blank"))
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 5000
    printed = " ".join(result.out.split())
    assert "exact_match, n = 6 items" in printed
    for note in expected.notes:
        assert note in printed
    again = cli("compare", tmp_path / "out" / "config.yaml")
    assert again.status == 0
    assert pandas.read_csv(tmp_path / "out" / "conditions.csv").equals(written), "seconds, too: nothing computed anew"


def test_saved_interventions_and_flags(cli, config, lens, tmp_path):
    (tmp_path / "edits.json").write_text(to_json([AblateHeads([(1, 4)])]))
    path = config(conditions={"plain": [], "saved": str(tmp_path / "edits.json")}, controls=0)
    result = cli("compare", path, "--n", "2", "--metric", "log_prob", "--out", tmp_path / "other")
    assert result.status == 0, result.err
    expected = compare(
        lens, named(**SMALL).take(2), {"plain": [], "saved": AblateHeads([(1, 4)])}, "log_prob"
    ).to_pandas()
    written = pandas.read_csv(tmp_path / "other" / "conditions.csv")
    assert written["value"].tolist() == pytest.approx(expected["value"].tolist())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditions": {}}, "conditions must have names, given {}"),
        ({"conditions": {"x": 3}}, "the condition 'x' must list interventions, given 3"),
        ({"conditions": {"x": {"picture": "blank"}}}, "unknown key of the condition 'x' 'picture'"),
        ({"conditions": {"x": [{"intervention": "Vaar"}]}}, "unknown intervention 'Vaar'"),
        ({"conditions": {"x": "gone.json"}}, "the interventions 'gone.json' of 'x' cannot be read"),
        ({"conditions": {"x": [{"intervention": "VAR", "task": "genral"}]}}, "unknown task 'genral'"),
        ({"metric": "exact"}, "unknown metric 'exact'"),
        ({"control": 3}, "unknown key of the config 'control', did you mean 'controls'"),
        ({"controls": -2}, "controls must be a whole number of at least 0, given -2"),
        ({"data": "pope"}, "data must have a kind and that kind's options, given 'pope'"),
        ({"dtype": "float31"}, "unknown dtype 'float31'"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(cli, config, changes, message):
    result = cli("compare", config(**changes))
    assert result.status == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert len(result.err.strip().splitlines()) <= 3


def test_a_config_that_is_none_and_a_folder_of_other_things_are_refused(cli, config, tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    assert "is empty, and a comparison needs conditions" in cli("compare", tmp_path / "empty.yaml").err
    (tmp_path / "none.yaml").write_text("model: demo")
    assert "names no conditions" in cli("compare", tmp_path / "none.yaml").err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    result = cli("compare", config())
    assert "holds other things and no comparison" in result.err
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
