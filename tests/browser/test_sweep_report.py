"""The page of a sweep in a browser: readable in light and in dark, on a screen and on a telephone."""

import pytest

from lmm_lens import HeadSet, head_effects
from lmm_lens.data import named
from lmm_lens.reports.sweep import Sweep, write_sweep_report
from tests.support.axe import faults, overflow

BRIGHTNESS = """element => {
    const canvas = document.createElement("canvas").getContext("2d")
    canvas.fillStyle = getComputedStyle(element).color
    canvas.fillRect(0, 0, 1, 1)
    const [red, green, blue] = canvas.getImageData(0, 0, 1, 1).data
    return (red + green + blue) / 765
}"""


@pytest.fixture(scope="module")
def page_file(lens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "run"
    head_effects(lens, named("shapes", n=6), heads=HeadSet.all(6, 8, [1, 3]), folder=folder)
    return write_sweep_report(Sweep.open(folder))


def test_the_page_is_readable_in_light_and_dark_and_fits_a_telephone(visit, page_file):
    for scheme, is_light_text in (("light", False), ("dark", True)):
        page = visit(page_file, color_scheme=scheme)
        assert page.title() == "lmm-lens: which heads matter?"
        for place in ("h1", "td", "p"):
            brightness = page.locator(place).first.evaluate(BRIGHTNESS)
            assert (brightness > 0.45) == is_light_text or 0.45 < brightness < 0.6  # grey is read on both
        assert page.locator("figcaption").first.evaluate(BRIGHTNESS) < 0.45  # figures stay white
        pictures = page.locator("img").evaluate_all("all => all.map(img => img.naturalWidth)")
        assert len(pictures) == 3
        assert all(pictures)
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (400, "light")])
def test_it_can_be_read_by_everyone_and_on_a_telephone(visit, page_file, width, scheme):
    page = visit(page_file, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    assert faults(page) == []
    assert overflow(page) == 0
