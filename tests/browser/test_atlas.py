"""The atlas in a browser: models are chosen, maps compared, tables downloaded; readable in light, dark and small."""

import csv
import io
import json

import pytest

from lmm_lens import Lens
from lmm_lens.data import shapes
from lmm_lens.errors import ScoreError
from lmm_lens.reports.atlas import write_atlas
from lmm_lens.studies import HeadSettings, Record, SinkSettings, heads, sinks
from tests.support.axe import faults, overflow

DATA = {"color": shapes(2, kinds="color")}


@pytest.fixture(scope="module")
def folder(lens, tmp_path_factory):
    """Studies of two models, one of sinks beside them."""
    path = tmp_path_factory.mktemp("atlas")
    for name in ("heads", "sinks"):
        (path / name).mkdir()
    settings = HeadSettings(ks=(1, 2), controls=1)
    heads({"planted": lens, "plain": lambda: Lens.demo("plain")}, DATA, settings=settings, folder=path / "heads")
    sinks(
        {"planted": lens},
        DATA,
        settings=SinkSettings(metric="log_prob", fractions=(0.6,), ratios=(0.8,)),
        folder=path / "sinks",
    )
    return path


@pytest.fixture(scope="module")
def page_file(folder):
    return write_atlas([folder / "heads", folder / "sinks"], folder / "atlas.html")


def test_maps_of_chosen_models_stand_side_by_side_with_their_numbers(visit, page_file, folder):
    page = visit(page_file)
    assert page.title() == "lmm-lens: atlas of studies"
    assert page.locator("#maps figcaption").all_inner_texts() == [
        "plain: 6 layers x 8 heads",
        "planted: 6 layers x 8 heads",
    ]
    page.select_option("#metric", "visual_mass")
    canvas = page.locator("#maps canvas").nth(1)
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] * 4.5 / 8, "y": box["height"] * 3.5 / 6})
    record = Record.load(folder / "heads" / "planted")
    value = record["maps"]["color"]["last"]["visual_mass"]["mean"][3][4]
    assert page.locator("#said").inner_text() == f"planted L3H4: {float(f'{value:.3g}'):g}"
    page.uncheck("#models input[value=plain]")
    assert page.locator("#maps canvas").count() == 1
    assert page.locator("#profile polyline").count() == 1
    claims = page.locator("#claims tbody tr").all_inner_texts()
    assert len(claims) == len(record["claims"])
    assert all("planted" in row for row in claims)


def test_a_study_of_sinks_and_downloads(visit, page_file, folder):
    page = visit(page_file)
    with page.expect_download() as download:
        page.get_by_role("button", name="maps.csv").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert len(rows) == 2 * 48
    record = Record.load(folder / "heads" / "plain")
    metric = rows[0]["metric"]
    expected = record["maps"]["color"]["last"][metric]["mean"]
    assert [float(row["value"]) for row in rows[:48]] == [value for row in expected for value in row]
    with page.expect_download() as download:
        page.get_by_role("button", name="planted.json").click()
    assert json.loads(download.value.path().read_text()) == Record.load(folder / "heads" / "planted").content
    page.select_option("#study", "sinks")
    assert page.locator("#curves").inner_text() == ""
    assert "VAR in the paper's setting improves answers" in page.locator("#claims").inner_text()
    assert page.get_by_role("button", name="conditions.csv").count() == 1


def test_it_fits_a_telephone_and_is_readable_in_the_dark(visit, page_file):
    for scheme in ("light", "dark"):
        page = visit(page_file, color_scheme=scheme)
        assert faults(page) == []
        page.set_viewport_size({"width": 390, "height": 800})
        assert overflow(page) == 0


def test_names_are_texts_whatever_they_hold(visit, folder, tmp_path):
    content = dict(Record.load(folder / "heads" / "plain").content)
    name = '</script><img src=x onerror="alert(1)">'
    Record({**content, "name": name}).save(tmp_path)
    page = visit(write_atlas([tmp_path], tmp_path / "atlas.html"))
    assert name in page.locator("#maps figcaption").inner_text()
    assert page.locator("img").count() == 0


def test_two_studies_of_one_name_are_refused(folder, tmp_path):
    content = dict(Record.load(folder / "heads" / "plain").content)
    Record({**content, "versions": {**content["versions"], "torch": "1"}}).save(tmp_path)
    with pytest.raises(ScoreError, match="two different studies of heads call their model 'plain'"):
        write_atlas([folder / "heads", tmp_path], tmp_path / "atlas.html")
    with pytest.raises(ScoreError, match="an atlas is made of at least one study's folder"):
        write_atlas([], tmp_path / "atlas.html")
