"""The map of rooms in CONTRIBUTING.md, made from the imports themselves: `python docs/rooms.py CONTRIBUTING.md`.

A room is a package of lmm_lens, or a module beside them; adapters/ is one too, installed as lmm_lens.adapters. Every
import counts: inside functions, and for type checkers alone. Rooms stand in the order of these imports, so that each
imports only rooms below it; where imports run in a circle there is no such order, and that is an error.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tables import rows

ROOT = Path(__file__).parent.parent
LIBRARY = "lmm_lens"
BEGIN, END = "<!-- rooms: written by `make readme` from the imports -->", "<!-- end of rooms -->"
EVERYWHERE = ("errors", "warnings")
"""Rooms that any other may import; left out of the column of imports."""


@dataclass(frozen=True)
class Room:
    """One room.

    Attributes:
        name: as in `lmm_lens.NAME`; `lmm_lens` itself is the front, whose names are those that users import.
        place: its folder or file, from the root of the repository.
        what: the first sentence of its docstring.
        imports: names of the rooms that it imports.
    """

    name: str
    place: str
    what: str
    imports: frozenset[str]


def rooms(root: Path = ROOT) -> list[Room]:
    """Every room, the highest first; rooms of one height by name.

    Raises:
        ValueError: imports run in a circle; names the rooms of it.
    """
    modules = dict(_modules(root))
    imports: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = {_room(target) for target in _imported(name, path, modules)}
        imports.setdefault(_room(name), set()).update(found - {_room(name)})
    height = _heights(imports)
    return [
        Room(name, *_described(name, modules, root), frozenset(imports[name]))
        for name in sorted(imports, key=lambda name: (-height[name], name))
    ]


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Every module by its name, with its file."""
    for package, folder in ((LIBRARY, root / LIBRARY), (f"{LIBRARY}.adapters", root / "adapters")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path


def _imported(module: str, path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    """The modules of the library that one of them imports, wherever in its file."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == LIBRARY)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            if source.split(".")[0] == LIBRARY:
                inside = (f"{source}.{alias.name}" for alias in node.names)
                yield from (name if name in modules else source for name in inside)


def _room(module: str) -> str:
    return ".".join(module.split(".")[1:2]) or LIBRARY


def _heights(imports: Mapping[str, set[str]]) -> dict[str, int]:
    """How many rooms stand below each, counted along the longest way down."""
    try:
        order = list(TopologicalSorter(imports).static_order())
    except CycleError as circle:
        raise ValueError(f"imports run in a circle: {' -> '.join(reversed(circle.args[1]))}") from None
    height: dict[str, int] = {}
    for name in order:
        height[name] = 1 + max((height[below] for below in imports[name]), default=-1)
    return height


def _described(name: str, modules: Mapping[str, Path], root: Path) -> tuple[str, str]:
    """Where a room is, and the first sentence of its docstring."""
    path = modules[LIBRARY if name == LIBRARY else f"{LIBRARY}.{name}"]
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    place = path.parent if path.name == "__init__.py" else path
    return place.relative_to(root).as_posix(), text.partition("\n")[0].partition(". ")[0].rstrip(".")


def markdown(root: Path = ROOT) -> str:
    """The table, the front left out: nothing may import it."""
    inside = [room for room in rooms(root) if room.name != LIBRARY]
    order = [room.name for room in inside]
    return rows(
        ("room", "what is in it", "imports"),
        (
            (
                f"[{room.name}]({room.place})",
                room.what,
                ", ".join(sorted(room.imports.difference(EVERYWHERE), key=order.index)) or "–",
            )
            for room in inside
        ),
    )


def within(text: str, root: Path = ROOT) -> str:
    """A text with the table between its two marks brought up to date."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown(root)}\n{END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(within(page.read_text(encoding="utf-8")), encoding="utf-8")
