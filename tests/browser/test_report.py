"""The demo's report, opened in a browser: it is drawn whole, and says what the run computed."""

import io

import pytest
from PIL import Image

from lmm_lens import HeadScores
from lmm_lens.cli.demo import run
from tests.support.axe import faults, overflow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("demo")
    run(made, 14, 0)
    return made


@pytest.fixture
def report(visit, folder):
    return visit(folder / "report.html")


def test_every_figure_is_drawn(report):
    figures = report.locator("figure img")
    sizes = figures.evaluate_all("images => images.map((i) => [i.complete, i.naturalWidth, i.alt.length])")
    assert len(sizes) >= 2
    assert all(done and width > 300 and named for done, width, named in sizes)


@pytest.mark.parametrize("metric", ["visual_mass", "nonsink_mass"])
def test_the_ranking_that_is_read_is_the_one_that_was_saved(report, folder, metric):
    scores = HeadScores.load(folder / f"{metric}.safetensors")
    table = report.locator(f"table:has(caption:has-text('{metric}'))")
    rows = [row.locator("td").all_inner_texts() for row in table.locator("tr").all()[1:]]
    best = scores.top(len(rows), layers=range(1, 6))
    assert [head for head, _ in rows] == str(best).split()
    shown = [float(value.split()[0]) for _, value in rows]
    assert shown == pytest.approx([float(scores.values[head]) for head in best], abs=6e-4)


def test_hovering_a_word_of_the_sequence_says_where_it_stands(report):
    word = report.locator(".sequence span", has_text="triangle").last
    assert word.get_attribute("title") == "question, position 42"


def test_it_is_readable_in_light_and_dark_and_fits_a_narrow_window(visit, folder):
    for scheme in ("light", "dark"):
        page = visit(folder / "report.html", color_scheme=scheme)
        page.set_viewport_size({"width": 700, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= 700
        corner = Image.open(io.BytesIO(page.screenshot())).convert("L").getpixel((3, 3))
        assert (corner < 60) == (scheme == "dark")


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (400, "light")])
def test_it_can_be_read_by_everyone_and_on_a_telephone(visit, folder, width, scheme):
    page = visit(folder / "report.html", color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    assert faults(page) == []
    assert overflow(page) == 0
