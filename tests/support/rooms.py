"""The rooms of the library in their order, and the arrows between them as the sources draw them.

A room is a package or a module of `lmm_lens`; `adapters/` is one, installed as `lmm_lens.adapters`. Every import
counts, also inside functions and for type checkers alone.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
ORDER = """
errors
warnings
core
prompts
adapters
figures
hooks
sinks
interventions
backends
bundled
lens
runs statistics
data
answers steering
replay
scoring
patching comparisons checks flow readouts
effects
circuits
studies
viewer harnesses
reports
cli
"""
"""Lowest first. A room imports from the lines above its own, and nothing else: a new one gets its place here."""
LINES = {room: line for line, rooms in enumerate(ORDER.split("\n")) for room in rooms.split()}


@dataclass(frozen=True)
class Arrow:
    """One import of the library's own: from a module, at a line of its file, to a module."""

    source: str
    target: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"


def room(module: str) -> str:
    """The room of a module; "" for the front, `lmm_lens` itself."""
    return ".".join(module.split(".")[1:2])


@cache
def modules() -> dict[str, Path]:
    """Every module of the library by name."""
    found = {}
    for package, folder in (("lmm_lens", ROOT / "lmm_lens"), ("lmm_lens.adapters", ROOT / "adapters")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


@cache
def arrows() -> list[Arrow]:
    """Every import between modules of the library."""
    return [arrow for name, path in modules().items() for arrow in drawn(name, path, modules())]


def drawn(module: str, path: Path, known: dict[str, Path]) -> Iterator[Arrow]:
    """The imports of one file."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            inside = [f"{base}.{alias.name}" for alias in node.names]
            targets = [name if name in known else base for name in inside]
        else:
            continue
        for target in dict.fromkeys(targets):
            if target.partition(".")[0] == "lmm_lens" and target != module:
                yield Arrow(module, target, _shown(path), node.lineno)


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def upwards(found: list[Arrow]) -> list[Arrow]:
    """The arrows between rooms that point to no lower line; the front stands above all."""
    top = max(LINES.values()) + 1
    height = {"": top, **LINES}
    return [
        arrow
        for arrow in found
        if room(arrow.source) != room(arrow.target) and height[room(arrow.target)] >= height[room(arrow.source)]
    ]
