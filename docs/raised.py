"""Every error that the library raises on purpose, read off its source: class, text as a template, room.

A template is the text of the error with what differs from case to case in angle quotes: `head ‹head› of layer ‹layer›
is out of range`. Nothing is run, so an error that no test and no example meets is listed too.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("lmm_lens", "adapters")
GAP = re.compile("‹[^›]*›")
LEAST = 4
"""Letters of its own that a text must have; with fewer, what stands in its gaps is looked up."""


@dataclass(frozen=True)
class Raised:
    """One error.

    Attributes:
        kind: its class.
        text: its template, a line or up to three.
        file: where it stands, from the root of the repository.
    """

    kind: str
    text: str
    file: str

    def matches(self, message: str) -> bool:
        """Whether a message that a user sees can be this error."""
        parts = (re.escape(part) for part in GAP.split(self.text))
        return re.fullmatch(".*".join(parts), message, re.DOTALL) is not None


def kinds() -> tuple[str, ...]:
    """The error classes of the library, in the order of their file."""
    tree = ast.parse((ROOT / "lmm_lens" / "errors.py").read_text(encoding="utf-8"))
    return tuple(node.name for node in tree.body if isinstance(node, ast.ClassDef))


@cache
def everything() -> tuple[Raised, ...]:
    """Each text once, by file and line."""
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    found = [raised for path in files for raised in _in_file(path)]
    return tuple({(raised.kind, raised.text): raised for raised in reversed(found)}.values())[::-1]


def _in_file(path: Path) -> Iterator[Raised]:
    file = path.relative_to(ROOT).as_posix()
    known = (*kinds(), "RowError")  # the reason why a row of a data set is bad; becomes the text of a ScoreError
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for scope in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))]:
        named = {
            target.id: node.value
            for node in ast.walk(scope)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in _own(scope):
            if isinstance(node, ast.Call) and node.args and _name(node.func) in known:
                kind = _name(node.func).replace("RowError", "ScoreError")
                for text in _texts(node.args[-1], named):
                    yield Raised(kind, text, file)


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """What stands in a module or a function, without the functions inside it."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, ast.FunctionDef):
            yield child
            yield from _own(child)


def _texts(node: ast.expr, named: dict[str, ast.expr]) -> list[str]:
    """The templates of an error's text: of both sides of a choice, of a name, of what a function returns."""
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body, named), *_texts(node.orelse, named)]
    if isinstance(node, ast.Name) and node.id in named:
        return _texts(named[node.id], {})
    if isinstance(node, ast.Call) and _name(node.func) in _returned():
        return [text for value in _returned()[_name(node.func)] for text in _texts(value, {})]
    if isinstance(node, ast.JoinedStr) and len(_bare(_text(node))) < LEAST:
        parts = ([_text(p)] if isinstance(p, ast.Constant) else _inside(p, named) for p in node.values)
        return [text for text in map("".join, itertools.product(*parts)) if _bare(text)]
    text = _text(node)
    return [text] if _bare(text) else []


def _inside(part: ast.expr, named: dict[str, ast.expr]) -> list[str]:
    """What can stand in a gap."""
    assert isinstance(part, ast.FormattedValue)
    return _texts(part.value, named) or [_text(part)]


def _bare(text: str) -> str:
    """What a template says beside its gaps."""
    return GAP.sub("", text).strip()


@cache
def _returned() -> dict[str, list[ast.expr]]:
    """What functions return that make a text."""
    found: dict[str, list[ast.expr]] = {}
    for path in [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name) and node.returns.id == "str":
                texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Return)]
                found.setdefault(node.name, []).extend(t for t in texts if isinstance(t, (ast.JoinedStr, ast.Constant)))
    return {name: texts for name, texts in found.items() if texts and name != "unknown"}


def _text(node: ast.expr) -> str:
    """The template of an expression that gives a text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return f"‹{_gap(node.value)}›"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.Call) and _name(node.func) == "unknown":
        return f"unknown {_text(node.args[0])} ‹given›‹, did you mean …?›\n  valid: ‹all names›"
    return f"‹{_gap(node)}›"


def _gap(node: ast.expr) -> str:
    """What stands in a gap, in a word or two."""
    if isinstance(node, ast.Name):
        return node.id.strip("_").replace("_", " ")
    if isinstance(node, ast.Attribute):
        return "its class" if node.attr == "__name__" else node.attr.strip("_").replace("_", " ")
    if isinstance(node, ast.Subscript):
        return _gap(node.value)
    if isinstance(node, ast.Call):
        inner = next((a for a in node.args if not isinstance(a, (ast.Starred, ast.Lambda))), None)
        called = _name(node.func)
        if inner is None:
            return _gap(node.func) if called not in vars(builtins) else "…"
        return f"number of {_gap(inner)}" if called == "len" else _gap(inner)
    return "…"


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


if __name__ == "__main__":
    for each in everything():
        print(each.kind, each.file, each.text, sep="\n", end="\n\n")
