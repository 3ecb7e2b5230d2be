"""What pages and notebooks name exists, and what they import is public."""

import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lmm_lens
from tests.docs.pages import DOCS, FENCE

sys.path.insert(0, str(DOCS))
import made

ROOT = DOCS.parent
FOLDERS = ("adapters", "benchmarks", "docs", "lmm_lens", "tests", "training", "tutorials")
MADE_UP = ("NAME", "FILE")  # for the reader to fill in
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md")))
    if page.name != "CHANGELOG.md" and "results" not in page.parts  # one tells of old names, the other was measured
)
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def code_of(path: Path) -> list[str]:
    if path.suffix != ".ipynb":
        return [found["code"] for found in FENCE.finditer(text_of(path)) if "python" in found["info"]]
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def is_there(dotted: str) -> bool:
    """Whether a dotted name leads to a module or to something in one."""
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError as error:
            # a module of ours that imports a harness, which is not installed here
            if error.name in ("lmms_eval", "vlmeval") and n == len(parts):
                return True
            continue
        for part in parts[n:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def module_of(dotted: str) -> str:
    """The module that a name of the reference is in."""
    parts = dotted.split(".")
    while len(parts) > 1:
        parts.pop()
        try:
            importlib.import_module(".".join(parts))
            return ".".join(parts)
        except ModuleNotFoundError:
            pass
    return dotted


def public_modules() -> set[str]:
    """Those that the reference names, beside the front itself."""
    pages = (page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    names = [name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]
    return {module_of(name) for name in names} | {"lmm_lens.shapes", "lmm_lens.emoji"}


PUBLIC = public_modules()


def imported(code: str) -> Iterator[tuple[str, str]]:
    """(module, name) of every import from the library."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "lmm_lens")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lmm_lens":
            yield from ((node.module or "", alias.name) for alias in node.names)


def is_public(module: str, name: str) -> bool:
    if module == "lmm_lens":
        return name in {"", *lmm_lens.__all__} or f"lmm_lens.{name}" in PUBLIC
    return module in PUBLIC or module.startswith("lmm_lens.adapters.")


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=named)
def test_every_file_that_it_names_exists(page):
    prose = FENCE.sub("", text_of(page))
    for name in re.findall(r"`([\w./*-]+)`", prose):
        if any(word in name for word in MADE_UP):
            continue
        if name.split("/")[0] in FOLDERS and "/" in name:
            assert list(ROOT.glob(name.rstrip("/"))), name
        elif name.endswith(".py"):
            assert any(list((ROOT / folder).rglob(name)) for folder in FOLDERS), name


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_that_it_links_exists(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", FENCE.sub("", text_of(page))):
        if not target.startswith(("http", "file:")):
            place = (page.parent / target).resolve()
            assert place.exists() or (place.is_relative_to(DOCS) and place.relative_to(DOCS).as_posix() in MADE), target


MADE = frozenset(made.made())
DOTTED = re.compile(r"(?<![\w./-])lmm_lens(?:\.[A-Za-z]\w*)+")


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=named)
def test_every_module_that_it_names_exists(page):
    for name in sorted(set(DOTTED.findall(text_of(page) + "".join(code_of(page))))):
        if not any(word in name for word in MADE_UP):
            assert is_there(name), name


def test_every_module_that_the_library_names_exists():
    files = [path for folder in ("lmm_lens", "adapters") for path in (ROOT / folder).rglob("*.py")]
    names = {name for file in files for name in DOTTED.findall(file.read_text(encoding="utf-8"))}
    assert len(names) > 20
    assert not [name for name in sorted(names) if not is_there(name)]


@pytest.mark.parametrize(
    "page", [page for page in (*PAGES, *NOTEBOOKS) if page.name not in ("UPSTREAM.md", "CONTRIBUTING.md")], ids=named
)
def test_what_it_imports_is_public(page):
    for code in code_of(page):
        for module, name in imported(code):
            assert is_public(module, name), f"from {module} import {name}"


def test_the_table_of_a_folder_lists_all_of_its_files():
    folder = ROOT / "lmm_lens" / "backends" / "nnsight"
    listed = re.findall(r"^\| `(\w+\.py)` \|", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in folder.glob("*.py") if path.name != "__init__.py")


def test_every_public_name_is_on_a_page_of_the_reference():
    pages = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    shown = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", pages, re.MULTILINE)}
    assert set(lmm_lens.__all__) - {"__version__"} <= shown


def parameters(thing: object) -> list[str]:
    """The names that a public function or class is called with."""
    try:
        return [name for name in inspect.signature(thing).parameters if not name.startswith("_")]
    except ValueError:
        return []


@pytest.mark.parametrize("name", sorted(set(lmm_lens.__all__) - {"__version__", "LensError"}))
def test_the_reference_says_of_every_public_name_what_each_parameter_is(name):
    thing = getattr(lmm_lens, name)
    said = inspect.getdoc(thing) or ""
    missing = [each for each in parameters(thing) if not re.search(rf"\b{each}\b", said)]
    assert not missing, f"the docstring of {name} does not say what these are: {missing}"


def test_names_that_moved_are_found_out():
    assert is_there("lmm_lens.prompts.prompt.MASKS")
    assert not is_there("lmm_lens.prompt.MASKS")
    assert module_of("lmm_lens.hooks.results.Run") == "lmm_lens.hooks.results"
    assert is_public("lmm_lens", "shapes")
    assert is_public("lmm_lens.core.taps", "Tap")
    assert not is_public("lmm_lens", "replay")
    assert not is_public("lmm_lens.lens.lens", "Lens")
    assert list(imported("from lmm_lens.core import taps\nimport lmm_lens.data, torch")) == [
        ("lmm_lens.core", "taps"),
        ("lmm_lens.data", ""),
    ]
