"""nnsight's labels of the operations of a forward, found in its source as nnsight itself finds them."""

from __future__ import annotations

import ast


class Labels(ast.NodeVisitor):
    """nnsight's labels of calls and assignments: the dotted name, and how many of it came before in order of execution.

    Attributes:
        of: by id of the node; of an assignment to one name alone.
    """

    def __init__(self) -> None:
        self.of: dict[int, str] = {}
        self.counts: dict[str, int] = {}

    @classmethod
    def in_tree(cls, tree: ast.AST) -> Labels:
        """Those of all that is in a tree."""
        labels = cls()
        labels.visit(tree)
        return labels

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id == "super" and not (node.args or node.keywords):
            return
        self.generic_visit(node)
        self._label(dotted(node.func) or "call", node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)
        if len(node.targets) == 1:
            self._bound(node.targets[0], node.value, node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
            self._bound(node.target, node.value, node)

    def _bound(self, target: ast.expr, value: ast.expr, node: ast.stmt) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            if isinstance(value, (ast.Tuple, ast.List)) and len(target.elts) == len(value.elts):
                for each, its in zip(target.elts, value.elts, strict=True):
                    self._bound(each, its, node)
        elif name := dotted(target):
            self._label(name, node)

    def _label(self, name: str, node: ast.AST) -> None:
        n_before = self.counts.get(name, 0)
        self.counts[name] = n_before + 1
        self.of[id(node)] = f"{name}_{n_before}"


def dotted(expression: ast.expr) -> str:
    """The name of what is called or bound, its parts joined by underscores."""
    if isinstance(expression, ast.Subscript):
        return dotted(expression.value)
    if isinstance(expression, ast.Attribute):
        before = dotted(expression.value)
        return f"{before}_{expression.attr}" if before else expression.attr
    return expression.id if isinstance(expression, ast.Name) else ""
