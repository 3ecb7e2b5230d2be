"""Which of a server's values go into the user's variables: those that the block saved, under its own names."""

from __future__ import annotations

import ast
from typing import Any

VALUES = dict[str, Any]


class NotAskedForError(Exception):
    """Values came that the block does not name, or one that it saved did not come."""


def values_asked_for(values: VALUES, block: ast.With | ast.AsyncWith) -> VALUES:
    """The values of an answer that belong into the frame that the block stands in.

    nnsight writes whatever names come back into that frame. A name that the block binds or saves may be written; one
    that it only reads keeps the value it has here (a server sends it back where it happens to be the same object as a
    saved value, a small number for one); any other was not asked for.

    Args:
        values: by name, as they came.
        block: the source of the `with` block.

    Raises:
        NotAskedForError: others came, or one that the block certainly saves did not.
    """
    found = _Names()
    for statement in block.body:
        found.visit(statement)
    others = sorted(values.keys() - found.named)
    if others:
        raise NotAskedForError(f"it sent {', '.join(others)[:200]}, which the block does not name")
    certain = {
        target.id
        for statement in block.body
        if isinstance(statement, ast.Assign) and _is_save(statement.value)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    missing = sorted(name for name in certain - values.keys() if found.times_bound[name] == 1)
    if missing:
        raise NotAskedForError(f"it did not send {', '.join(missing)}, which the block saves")
    return {name: value for name, value in values.items() if name in found.times_bound or name in found.saved}


class _Names(ast.NodeVisitor):
    """The names in a block: all of them, how often each is bound, and those that it saves by name."""

    def __init__(self) -> None:
        self.named, self.saved, self.times_bound = set[str](), set[str](), dict[str, int]()

    def visit_Name(self, node: ast.Name) -> None:
        self.named.add(node.id)
        if not isinstance(node.ctx, ast.Load):
            self.times_bound[node.id] = self.times_bound.get(node.id, 0) + 1

    def visit_Call(self, node: ast.Call) -> None:
        if _is_save(node):
            function = node.func
            base = function.value if isinstance(function, ast.Attribute) else None
            self.saved |= {each.id for each in (base, *node.args) if isinstance(each, ast.Name)}
        self.generic_visit(node)


def _is_save(node: ast.expr) -> bool:
    """Whether it is `value.save()`, `nnsight.save(value)` or `save(value)`."""
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    return (isinstance(function, ast.Attribute) and function.attr == "save") or (
        isinstance(function, ast.Name) and function.id == "save"
    )
