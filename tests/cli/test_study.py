"""`lmm-lens study` and `lmm-lens atlas`: their numbers are those of the library, and they refuse what they must."""

import pandas
import pytest
import yaml

from lmm_lens.data import named
from lmm_lens.studies import HeadSettings, Study, heads

pytestmark = pytest.mark.long

COLORS = {"kind": "shapes", "kinds": "color"}
SETTINGS = {"ks": [1], "controls": 1}


@pytest.fixture
def config(tmp_path):
    """Writes a config of one model and two samples into the folder "out" unless told otherwise; gives its path."""

    def write(**changes):
        values = {"models": {"planted": "demo"}, "data": {"color": COLORS}, "n": 2, "settings": SETTINGS}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**values, "out": str(tmp_path / "out"), **changes}), encoding="utf-8")
        return path

    return write


def test_it_writes_what_the_study_finds_and_goes_on_from_its_folder(cli, config, lens, tmp_path):
    result = cli("study", "heads", config())
    assert result.status == 0, result.err
    expected = heads({"planted": lens}, {"color": named(**COLORS).take(2)}, settings=HeadSettings(ks=(1,), controls=1))
    found = Study.load(tmp_path / "out" / "models")
    assert found.records[0].content == expected.records[0].content
    assert "Visual heads lie in the early and middle layers" in " ".join(result.out.split())
    assert (tmp_path / "out" / "report.md").read_text().startswith("# Vision heads: planted\n")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/models/planted/color/*/parts/*")}
    assert len(before) == 3
    again = cli("study", "heads", tmp_path / "out" / "config.yaml")
    assert again.status == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is computed anew"
    page = cli("atlas", tmp_path / "out" / "models", "--out", tmp_path / "atlas.html")
    assert page.status == 0, page.err
    assert "planted" in (tmp_path / "atlas.html").read_text()


def test_sinks_from_a_model_with_data_of_its_own(cli, config, tmp_path):
    models = {"planted": {"model": "demo", "data": {"exist": {"kind": "shapes", "kinds": "exist"}}}}
    settings = {"metric": "log_prob", "fractions": [0.6], "ratios": [0.8]}
    result = cli("study", "sinks", config(models=models, settings=settings))
    assert result.status == 0, result.err
    table = pandas.read_csv(tmp_path / "out" / "conditions.csv")
    assert set(table["data"]) == {"exist"}
    assert "Masking visual sinks costs less" in " ".join(result.out.split())


@pytest.mark.parametrize("kind", ["heads", "sinks"])
def test_a_plan_counts_forwards_and_writes_nothing(cli, config, kind, tmp_path):
    settings = SETTINGS if kind == "heads" else {"metric": "log_prob", "fractions": [0.6], "ratios": [0.8]}
    result = cli("study", kind, config(n=10, settings=settings), "--plan")
    assert result.status == 0, result.err
    assert not (tmp_path / "out").exists()
    rows = {line.split("│")[2].strip(): line.split("│")[3:5] for line in result.out.splitlines() if "color" in line}
    found = {stage: tuple(int(cell) for cell in cells) for stage, cells in rows.items()}
    if kind == "heads":  # one forward a look; one for the clean run of each sample of half the data, the rest replayed
        assert found == {"looks": (10, 10), "effects": (5, 5), "removed": (5, 5)}
    else:  # looks, and: plain, sinks masked and its control, VAR and its control
        assert found == {"looks": (10, 10), "answers": (10, 50)}
    assert "Plan of planted on cpu" in result.out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": {}}, "models must have names, given {}"),
        ({"models": {"a/b": "demo"}}, "the name of a model becomes a folder's"),
        ({"models": {"x": {"dtype": "float32"}}}, "the model 'x' must be a name, or have one under model:"),
        ({"models": {"x": {"model": "demo", "device": "cuda"}}}, "unknown key of the model 'x' 'device'"),
        ({"models": {"x": {"model": "demo", "dtype": "float31"}}}, "unknown dtype 'float31'"),
        ({"data": {}}, "data must name data sets, given {}"),
        ({"data": {"color": {"kinds": "color"}}}, "data: color must have a kind and that kind's options"),
        ({"data": {"color": {"kind": "shape"}}}, "unknown data set 'shape', did you mean 'shapes'"),
        ({"settings": {"control": 3}}, "unknown key of the settings 'control', did you mean 'controls'"),
        ({"settings": {"rank_by": "mass"}}, "heads are ranked by one of visual_mass"),
        ({"setting": {}}, "unknown key of the config 'setting', did you mean 'settings'"),
        ({"n": 0}, "n must be a whole number of at least 1, given 0"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(cli, config, changes, message):
    result = cli("study", "heads", config(**changes))
    assert result.status == 2
    assert message in " ".join(result.err.split())
    assert "Traceback" not in result.err
    assert len(result.err.strip().splitlines()) <= 3


def test_other_things_are_refused(cli, config, tmp_path):
    assert "takes no text" in cli("study", "sinks", config(text={"sums": COLORS}, settings={})).err
    (tmp_path / "none.yaml").write_text("models: {planted: demo}")
    assert "names no data" in cli("study", "heads", tmp_path / "none.yaml").err
    assert "there is no study in" in cli("atlas", tmp_path, "--out", tmp_path / "atlas.html").err
