"""The built site: no warning, no dead link, every page reachable, nothing loaded from elsewhere."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import expect

from tests.docs.pages import DOCS, pages
from tests.support.axe import faults, overflow

sys.path.insert(0, str(DOCS))
import doctests
import made
import tables

pytestmark = pytest.mark.long
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}


class Page(HTMLParser):
    """The tags and ids of a page, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.ids = {attributes["id"] for _, attributes in self.tags if "id" in attributes}

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data):
        self.text += data

    def links(self):
        return [attributes["href"] for tag, attributes in self.tags if tag == "a" and "href" in attributes]


read = cache(Page)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The output of mkdocs and the folder of the site."""
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=DOCS.parent, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr, folder


@pytest.fixture(scope="module")
def site(built):
    return built[1]


def html(site: Path) -> list[Path]:
    """The pages that are built; the atlas is put beside them as it is, and has tests of its own."""
    return sorted(page for page in site.rglob("*.html") if page.name != "atlas.html")


def test_it_builds_without_a_warning(built):
    assert "built in" in built[0]
    assert not re.search("WARNING|ERROR|Deprecat", built[0])


def test_every_page_is_built_and_reached_from_the_first(site):
    reached, todo = set(), [site / "index.html"]
    while todo:
        page = todo.pop()
        if page in reached or page.suffix != ".html":
            continue
        reached.add(page)
        todo += [(page.parent / unquote(urlsplit(link).path)).resolve() for link in read(page).links() if _inside(link)]
    expected = {site / page.relative_to(DOCS).with_suffix(".html") for page in pages()}
    expected |= {(site / name).with_suffix(".html") for name in made.made() if name.endswith(".md")}
    assert expected | {site / "atlas.html"} <= reached
    assert {page for page in html(site) if page.name != "404.html"} == expected


def test_every_link_and_anchor_leads_somewhere(site):
    dead = []
    for page in html(site):
        for link in read(page).links() if page.name != "404.html" else ():
            if not _inside(link):
                continue
            path, anchor = unquote(urlsplit(link).path), unquote(urlsplit(link).fragment)
            target = (page.parent / path).resolve() if path else page
            if not target.is_file() or (anchor and target.suffix == ".html" and anchor not in read(target).ids):
                dead.append(f"{page.relative_to(site)}: {link}")
    assert not dead


def test_nothing_is_loaded_from_elsewhere(site):
    for page in html(site):
        for tag, attributes in read(page).tags:
            loaded = attributes.get(LOADING.get(tag, ""), "")
            assert not loaded.startswith(("http", "//")) or attributes.get("rel") == "canonical", (
                f"{page.name}: {loaded}"
            )
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


def test_every_picture_is_there_and_says_what_it_shows(site):
    shown = set()
    for page in html(site):
        for tag, attributes in read(page).tags if page.name != "404.html" else ():  # its links are from the root
            if tag == "img":
                picture = (page.parent / unquote(attributes["src"][:200])).resolve()
                if not attributes["src"].startswith("data:"):
                    assert picture.is_file(), attributes["src"]
                    shown.add(picture.name)
                assert len(attributes.get("alt", "")) > (3 if picture.name == "logo.svg" else 30), attributes["src"][
                    :99
                ]
    ours = {picture.name for picture in (DOCS / "pictures").iterdir()}
    ours |= {Path(name).name for name in made.made() if name.endswith(".png")}
    assert shown == ours, "a picture that no page shows"


def test_the_search_finds_common_words_inside_code(site, chromium):
    page = chromium.new_page()
    page.goto((site / "index.html").as_uri())
    for word in ("mass", "dims", "pre", "pandas"):  # of nonsink_mass, sink_dims, resid_pre, to_pandas
        page.fill("[data-md-component=search-query]", word)
        told = re.compile(r"^\d{2,} matching documents")  # ten or more
        expect(page.locator(".md-search-result__meta")).to_have_text(told, timeout=60_000)
        expect(page.locator(".md-search-result__item mark").first).to_be_attached()


def test_pages_can_be_read_by_everyone_and_on_a_telephone(site, chromium):
    found = []
    for name in (
        "index",
        "new",
        "gallery",
        "methods/sinks",
        "howto/share",
        "reference/scoring",
        "tutorials/03_a_circuit",
    ):
        for width, scheme in ((1200, "light"), (1200, "dark"), (400, "light")):
            page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.goto((site / f"{name}.html").as_uri())
            found += [(name, width, scheme, fault) for fault in faults(page, without=("landmark-unique",))]
            if overflow(page):
                found.append((name, width, scheme, "wider than the window"))
            page.close()
    assert found == []


def test_a_wide_screen_shows_tables_and_code_whole_and_short_lines_of_text(site, chromium):
    page = chromium.new_page(viewport={"width": 4000, "height": 2000})
    for name in ("comparison", "howto/viewer"):
        page.goto((site / f"{name}.html").as_uri())
        cut = "found => found.filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent.slice(0, 80))"
        assert page.locator(".md-typeset pre > code, .md-typeset__scrollwrap").evaluate_all(cut) == []
        assert page.locator(".md-main__inner").bounding_box()["width"] > 0.6 * 4000
        widest = """found => Math.max(...found.map((e) =>
            e.getBoundingClientRect().width / parseFloat(getComputedStyle(e).fontSize)))"""
        assert page.locator(".md-content p").evaluate_all(widest) < 62  # ems, about 110 letters


def test_comments_and_outputs_have_a_contrast_of_seven(site, chromium):
    enhanced = ("color-contrast-enhanced",)
    for scheme in ("light", "dark"):
        page = chromium.new_page(color_scheme=scheme)
        page.goto((site / "index.html").as_uri())
        told = [each for each in faults(page, enhanced) if re.search(r"\.c1|\.output", each)]
        assert told == []
        page.close()


def test_notebooks_are_pages_with_their_outputs(site):
    for path in made.notebooks():
        text, pictures = made.page_of(path)
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        shown = " ".join(read(site / "tutorials" / f"{path.stem}.html").text.split())
        for cell in cells:
            for output in cell.get("outputs", ()):
                if output["output_type"] == "stream":
                    assert " ".join("".join(output["text"]).split()) in shown
        assert len(pictures) == sum("image/png" in o.get("data", ()) for c in cells for o in c.get("outputs", ()))
        assert all(f"]({name})" in text for name in pictures)
        assert "<iframe" not in text
    assert "Keep a Changelog" in read(site / "changelog.html").text


def test_every_table_is_made_from_its_source_and_used(site):
    used = re.findall(r"<!-- table: ([\w ]+) -->", "".join(page.read_text(encoding="utf-8") for page in pages()))
    assert sorted(used) == sorted(tables.TABLES)
    assert not [page for page in html(site) if "<!-- table:" in page.read_text(encoding="utf-8")]
    assert "Pixtral's layout" in read(site / "support.html").text
    assert "a lens made, none open" in read(site / "benchmarks.html").text
    assert read(site / "errors.html").text.count("did you mean") > 5


def test_formulas_are_drawn_by_the_browser_itself(site):
    n = 0
    for page in html(site):
        text = page.read_text(encoding="utf-8")
        n += sum(tag == "math" for tag, _ in read(page).tags)
        assert "arithmatex" not in text
        assert not re.search(r"\\(frac|sum|text|in|quad|tau|rho)\b", read(page).text), page.name
    assert n > 50


def test_tables_keep_bars_inside_a_cell():
    assert tables.rows(("a", "b"), [("x|y", 1)]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |"


def test_code_in_docstrings_is_fenced_and_sections_are_left_alone():
    plain = "Adds.\n\n    sum = add(1, 1)\n\nThen:\n\n>>> add(1, 1)\n2\n>>> add(1, 2)\n3\n\nArgs:\n    one: first."
    assert doctests.fenced(plain) == (
        "Adds.\n\n```python\nsum = add(1, 1)\n```\n\nThen:\n\n```pycon\n>>> add(1, 1)\n2\n>>> add(1, 2)\n3\n```\n\n"
        "Args:\n    one: first."
    )
    assert doctests.fenced("One line.") == "One line."


def _inside(link: str) -> bool:
    return not urlsplit(link).scheme and not link.startswith("//")
