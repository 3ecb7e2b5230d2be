"""The map of rooms in CONTRIBUTING: it is that of the imports, wherever in a file they stand."""

import re
import sys
from itertools import pairwise

import pytest

from tests.docs.pages import DOCS

sys.path.insert(0, str(DOCS))
import rooms

CONTRIBUTING = (DOCS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def library(tmp_path):
    """A library of six rooms; `write(file, text)` changes it."""

    def write(file, text):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    write("lmm_lens/__init__.py", '"""The front."""\nfrom .top import one')
    write("lmm_lens/errors.py", '"""Errors. And how they are told."""')
    write("lmm_lens/low/__init__.py", '"""What is | below.\n\nMore of it."""')
    write("lmm_lens/low/deep/part.py", "from ...errors import LensError")
    write("lmm_lens/high/__init__.py", '"""What is above."""')
    write("lmm_lens/high/part.py", "def later():\n    from ..middle.part import two\n    from .. import errors")
    write("lmm_lens/middle/__init__.py", '"""What is between."""')
    write("lmm_lens/middle/part.py", "if TYPE_CHECKING:\n    from ..adapters import Adapter\nfrom . import other")
    write("lmm_lens/middle/other.py", "import torch\nimport lmm_lens.low.deep.part")
    write("lmm_lens/top/__init__.py", '"""The top."""\nfrom ..high.part import later')
    write("adapters/__init__.py", '"""Families."""')
    write("adapters/llava.py", "from lmm_lens.low import run")
    write.root = tmp_path
    return write


def test_the_committed_table_is_that_of_the_imports():
    assert CONTRIBUTING.count(rooms.BEGIN) == CONTRIBUTING.count(rooms.END) == 1
    assert rooms.within(CONTRIBUTING) == CONTRIBUTING, "run `make readme`"


def test_each_line_of_it_imports_only_what_stands_below():
    table = CONTRIBUTING.partition(rooms.BEGIN)[2].partition(rooms.END)[0]
    lines = re.findall(r"^\| \[(\w+)\]\(([\w/.]+)\) \| (.+) \| (.+) \|$", table, re.MULTILINE)
    order = [name for name, *_ in lines]
    assert len(order) > 20
    for name, place, what, imports in lines:
        assert (DOCS.parent / place).exists()
        assert len(what) > 10
        for other in imports.split(", ") if imports != "–" else ():
            assert order.index(other) > order.index(name), f"{name} imports {other}"


def test_imports_count_in_functions_and_for_type_checkers_and_however_they_are_written(library):
    found = {room.name: room.imports for room in rooms.rooms(library.root)}
    assert found == {
        "lmm_lens": {"top"},
        "top": {"high"},
        "high": {"middle", "errors"},
        "middle": {"adapters", "low"},
        "adapters": {"low"},
        "low": {"errors"},
        "errors": set(),
    }
    assert [room.name for room in rooms.rooms(library.root)] == list(found)


def test_the_table_says_what_a_room_is_and_what_it_imports(library):
    assert rooms.markdown(library.root).splitlines()[2:] == [
        "| [top](lmm_lens/top) | The top | high |",
        "| [high](lmm_lens/high) | What is above | middle |",
        "| [middle](lmm_lens/middle) | What is between | adapters, low |",
        "| [adapters](adapters) | Families | low |",
        "| [low](lmm_lens/low) | What is \\| below | – |",
        "| [errors](lmm_lens/errors.py) | Errors | – |",
    ]


def test_only_what_stands_between_the_marks_is_written(library):
    text = f"before\n{rooms.BEGIN}\nold\n{rooms.END}\nafter"
    written = rooms.within(text, library.root)
    assert written.startswith("before\n")
    assert written.endswith("\nafter")
    assert "old" not in written
    assert rooms.markdown(library.root) in written
    assert rooms.within(written, library.root) == written


def test_a_circle_is_refused_and_named(library):
    library("lmm_lens/low/deep/part.py", "def later():\n    from ...high.part import later")
    with pytest.raises(ValueError, match="imports run in a circle") as caught:
        rooms.rooms(library.root)
    circle = str(caught.value).partition(": ")[2].split(" -> ")
    assert circle[0] == circle[-1]
    assert {"low", "high", "middle"} <= set(circle)
    edges = {("low", "high"), ("high", "middle"), ("middle", "adapters"), ("middle", "low"), ("adapters", "low")}
    assert set(pairwise(circle)) <= edges


def test_a_room_that_imports_the_front_is_a_circle(library):
    library("lmm_lens/low/deep/part.py", "from lmm_lens import one")
    with pytest.raises(ValueError, match="lmm_lens"):
        rooms.rooms(library.root)
