"""The report as a page: what it is given appears in it, escaped, and nothing is fetched from elsewhere."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lmm_lens import HeadScores
from lmm_lens.bundled import shapes
from lmm_lens.reports.demo import write_report
from tests.support.page import Page

ROWS = [("nothing ablated", "0.914", "1.000"), ("<b>top</b> & more", "0.1 (0.0 to 0.2)", "0.9")]


class Row:
    def __init__(self, cells):
        self.cells = cells

    def row(self):
        return self.cells


def scores(metric, favoured, n_prompts=5):
    """Random scores below .5, and above it heads in an order of our choice."""
    values = 0.5 * torch.rand(n_prompts, 6, 8, generator=torch.Generator().manual_seed(1))
    for rank, (layer, head) in enumerate(favoured):
        values[:, layer, head] = 0.95 - 0.05 * rank
    return HeadScores(metric, "last", values)


@pytest.fixture(scope="module")
def written(lens, tmp_path_factory):
    """A report of made-up scores, into a folder that does not exist yet."""
    example = shapes.examples(1, kinds=("color",), seed=6)[0]
    prompt = lens.prompt(example.question, images=example.image)
    raw = scores("visual_mass", [(0, 0), (1, 1), (2, 2), (3, 3)])
    nonsink = scores("nonsink_mass", [(3, 3), (2, 2)])
    folder = tmp_path_factory.mktemp("report") / "a" / "b"
    told = {"question": example.question, "answer": "<i>red</i>", "expected": 'a "colour"'}
    best = (raw.top(3, layers=range(1, 6)), nonsink.top(3, layers=range(1, 6)))
    made = {"raw": raw, "nonsink": nonsink, "best": best, "first_layer": 1, "accuracy": [Row(row) for row in ROWS]}
    path = write_report(folder, lens, prompt, **told, **made)
    html = path.read_text(encoding="utf-8")
    return SimpleNamespace(
        path=path, folder=folder, html=html, page=Page(html), raw=raw, nonsink=nonsink, example=example
    )


def test_the_page_and_its_files_lie_in_the_folder(written):
    assert written.path == written.folder / "report.html"
    names = {path.name for path in written.folder.iterdir()}
    assert names >= {"report.html", "heads.png", "attention.png", "visual_mass.safetensors", "nonsink_mass.safetensors"}


def test_the_saved_scores_are_the_given_ones(written):
    for given in (written.raw, written.nonsink):
        saved = HeadScores.load(written.folder / f"{given.metric}.safetensors")
        assert torch.equal(saved.per_prompt, given.per_prompt)


def test_the_rankings_list_the_best_heads_with_mean_and_interval(written):
    tables = [[cells[0] for cells in table[1:]] for table in written.page.tables]
    assert ["L1H1", "L2H2", "L3H3"] in tables  # from first_layer on: what is listed is what was ablated
    assert any(table[:2] == ["L3H3", "L2H2"] and len(table) == 3 for table in tables)
    assert "0.950 (0.950 to 0.950)" in written.page.text


def test_the_accuracies_are_listed_as_given(written):
    rows = [row for table in written.page.tables for row in table]
    for cells in ROWS:
        assert list(cells) in rows


def test_question_answer_and_expectation_are_shown(written):
    shown = " ".join(written.page.text.split())
    assert written.example.question in shown
    assert "<i>red</i>" in shown
    assert 'a "colour"' in shown
    assert "5 questions" in shown


def test_what_comes_from_outside_is_escaped(written):
    assert "<i>red" not in written.html
    assert "<b>top" not in written.html
    assert "&lt;b&gt;top&lt;/b&gt; &amp; more" in written.html


def test_the_page_can_be_sent_alone(written):
    assert "http://" not in written.html
    assert "https://" not in written.html
    assert all(address.startswith("data:image/png;base64,") for address in written.page.fetched)
    assert len(written.html) < 2_000_000


def test_the_page_holds_both_figures_and_the_picture(written):
    pictures = written.page.pictures()
    assert len(pictures) == 3
    for name in ("heads.png", "attention.png"):
        figure = Image.open(written.folder / name)
        assert any(picture.size == figure.size and picture.tobytes() == figure.tobytes() for picture in pictures)
        assert np.asarray(figure.convert("L")).std() > 20


def test_a_report_is_written_over_an_earlier_one(lens, written):
    example = shapes.examples(1, kinds=("where",), seed=3)[0]
    prompt = lens.prompt(example.question, images=example.image)
    before = {path: path.read_bytes() for path in written.folder.iterdir()}
    try:
        best = (written.raw.top(2), written.nonsink.top(2))
        made = {"raw": written.raw, "nonsink": written.nonsink, "best": best, "first_layer": 0, "accuracy": []}
        write_report(written.folder, lens, prompt, example.question, "yes", "no", **made)
        assert "(expected: no)" in written.path.read_text()
        assert {path.name for path in written.folder.iterdir()} == {path.name for path in before}
    finally:
        for path, data in before.items():
            path.write_bytes(data)
