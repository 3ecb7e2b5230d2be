"""The page of a sweep: it holds what the sweep found, escaped, and can be sent alone."""

from types import SimpleNamespace

import pytest
from PIL import Image

from lmm_lens import HeadSet, head_effects
from lmm_lens.cli.sweep import run
from lmm_lens.data import named
from lmm_lens.errors import ScoreError
from lmm_lens.reports.sweep import COLUMNS, Sweep, write_sweep_report
from tests.support.page import Page


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished sweep of half the heads with controls, and its page."""
    folder = tmp_path_factory.mktemp("sweep") / "<b>mine</b> & more"
    flags = {
        "data": "shapes",
        "data_option": ["n=12"],
        "heads": str([[layer, head] for layer in range(6) for head in range(0, 8, 2)]),
    }
    run(None, {**flags, "controls": 5, "out": folder})
    html = (folder / "report.html").read_text(encoding="utf-8")
    return SimpleNamespace(folder=folder, sweep=Sweep.open(folder), html=html, page=Page(html))


def text_of(page) -> str:
    return " ".join(page.text.split())


def test_the_page_lists_the_largest_effects(made):
    table = next(table for table in made.page.tables if table[0] == list(COLUMNS))
    assert [row[0] for row in table[1:]] == made.sweep.table["unit"].tolist()[:20]
    first = made.sweep.table.iloc[0]
    assert table[1][1:3] == [f"{first['effect']:+.3g}", f"{first['low']:+.3g} to {first['high']:+.3g}"]
    assert "The first 20 of 24; all are in effects.csv." in text_of(made.page)


def test_the_page_says_what_was_done(made):
    facts, told = ({row[0]: row[1] for row in table} for table in made.page.tables if len(table[0]) == 2)
    assert facts["prompts"] == "12 from shapes"
    assert facts["metric"].startswith("log_prob: log-probability of the right answer")
    assert facts["rows"] == "last"
    assert facts["data set"] == "no bad rows"
    assert facts["computed"] == made.sweep.effects.how
    assert told["metric"] == "log_prob"
    assert told["torch"]
    shown = text_of(made.page)
    assert made.sweep.verdict() in shown
    assert made.sweep.compared() in shown


def test_the_page_holds_every_figure(made):
    names = ["effect_map.png", "effects_by_layer.png", "sorted_effects.png", "against_random.png"]
    for name, shown in zip(names, made.page.pictures(), strict=True):
        figure = Image.open(made.folder / name)
        assert (shown.size, shown.tobytes()) == (figure.size, figure.tobytes())
        assert figure.convert("L").getextrema()[0] < 80


def test_the_page_can_be_sent_alone(made):
    assert all(address.startswith("data:image/png;base64,") for address in made.page.fetched)
    assert "http:" not in made.html
    assert "https:" not in made.html
    assert "default-src 'none'; img-src data:; style-src" in made.html, "it may fetch nothing, and run nothing"
    assert len(made.html) < 1_000_000


def test_what_comes_from_outside_is_escaped(lens, tmp_path):
    data = named("table", source=[{"question": "is it?", "answer": "yes"}] * 2, image=None, name="<b>mine</b> & more")
    head_effects(lens, data, heads=HeadSet([(0, 0)], 6, 8), folder=tmp_path / "run")
    write_sweep_report(Sweep.open(tmp_path / "run"))
    html = (tmp_path / "run" / "report.html").read_text()
    assert "<b>mine" not in html
    assert "2 from &lt;b&gt;mine&lt;/b&gt; &amp; more" in html


def test_sets_of_heads_are_reported_without_a_map(lens, tmp_path):
    sets = [HeadSet([(1, 4), (3, 4)], 6, 8), HeadSet([(a, b) for a in (0, 1) for b in range(8)], 6, 8)]
    head_effects(lens, named("shapes", n=6), heads=sets, folder=tmp_path / "run")
    sweep = Sweep.open(tmp_path / "run")
    write_sweep_report(sweep)
    assert "of 2 units have an effect" in sweep.verdict()
    assert sorted(path.name for path in (tmp_path / "run").glob("*.png")) == ["sorted_effects.png"]
    assert {row[0] for row in sweep.rows(2)} == {"L1H4 L3H4", "L0H0 L0H1 L0H2 L0H3 L0H4 L0H5 L0H6 L0..."}


@pytest.mark.parametrize(("n_prompts", "too_few"), [(5, True), (6, True), (7, False)])
def test_too_few_prompts_for_any_finding_are_told(lens, tmp_path, n_prompts, too_few):
    # of two heads the least p after Holm is 2 * 2 / 2^n: .125, .0625, .03125
    head_effects(lens, named("shapes", n=n_prompts), heads=HeadSet([(1, 4), (5, 5)], 6, 8), folder=tmp_path / "run")
    verdict = Sweep.open(tmp_path / "run").verdict()
    assert ("prompts are too few for any p to survive the correction" in verdict) == too_few


def test_a_damaged_config_is_told(made, tmp_path):
    (tmp_path / "effects").mkdir()
    with pytest.raises(ScoreError, match=r"config.yaml of the sweep .* cannot be read"):
        Sweep.open(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 0")
    with pytest.raises(ScoreError, match="is damaged: it names no metric"):
        Sweep.open(tmp_path)
    (tmp_path / "config.yaml").write_text("metric: log_prob")
    with pytest.raises(ScoreError, match=r"it has no manifest\.json"):
        Sweep.open(tmp_path)
