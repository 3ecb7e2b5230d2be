"""`lmm-lens view`: the page it writes, and what it refuses."""

import webbrowser

import pytest

from lmm_lens import LensError
from lmm_lens.bundled import shapes
from lmm_lens.cli.view import run
from lmm_lens.errors import HookError
from lmm_lens.viewer import view
from tests.viewer.pages import Shown

QUESTION = "what color is the triangle?"


@pytest.fixture
def picture(tmp_path):
    shapes.examples(1, kinds=("color",), seed=1)[0].image.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def opened(monkeypatch):
    """The addresses that a browser would have been started with."""
    addresses = []
    monkeypatch.setattr(webbrowser, "open", lambda address: addresses.append(address) or False)
    return addresses


def test_it_writes_the_page_of_a_view_into_a_new_folder(lens, picture, opened, tmp_path, capsys):
    out = tmp_path / "new" / "view.html"
    run("demo", [picture], QUESTION, "question", False, out, False, "auto")
    expected = view(lens.prompt(QUESTION, images=picture), lens, queries="question")
    assert out.read_text(encoding="utf-8") == expected.html
    assert f"wrote {out}" in capsys.readouterr().out
    assert opened == []


def test_it_opens_the_page_and_says_so_where_no_browser_starts(picture, opened, tmp_path, capsys):
    out = tmp_path / "view.html"
    run("demo", [picture], QUESTION, "last", False, out, True, "auto")
    assert opened == [out.as_uri()]
    assert "open the file in one" in capsys.readouterr().out
    assert len(Shown(out.read_text(encoding="utf-8")).about["queries"]) == 1


def test_it_shows_the_vision_tower_if_asked(lens, picture, opened, tmp_path):
    out = tmp_path / "view.html"
    run("demo", [picture], QUESTION, "last", True, out, False, "auto")
    expected = view(lens.prompt(QUESTION, images=picture), lens, tower=True)
    assert out.read_text(encoding="utf-8") == expected.html


def test_it_refuses_before_a_model_is_loaded(picture, tmp_path):
    with pytest.raises(LensError, match=r"unknown dtype 'float99'"):
        run("NONSENSE", [picture], QUESTION, "last", False, tmp_path / "x.html", False, "float99")
    with pytest.raises(HookError, match=r"unknown row scope 'lsat', did you mean 'last'"):
        run("NONSENSE", [picture], QUESTION, "lsat", False, tmp_path / "x.html", False, "auto")
    with pytest.raises(LensError, match=r"is a folder\n  give the name of the page"):
        run("NONSENSE", [picture], QUESTION, "last", False, tmp_path, False, "auto")


def test_it_refuses_what_is_no_picture_and_no_model(tmp_path, picture):
    with pytest.raises(LensError, match="cannot be opened as an image"):
        run("demo", [tmp_path / "missing.png"], QUESTION, "last", False, tmp_path / "x.html", False, "auto")
    with pytest.raises(LensError, match="'NONSENSE' cannot be opened as an image-text-to-text model"):
        run("NONSENSE", [picture], QUESTION, "last", False, tmp_path / "x.html", False, "auto")
