"""Where the residual stream enters a decoder layer, as operations of its forward that hold nothing else.

nnsight's `layer.input` is one of the arguments of the layer, which are served together, the key-value cache among them.
NDIF runs a block in a process of its own, which is sent copies of what it reads, and the copies are written back: from
then on the layer fills a cache that is not the model's, and what is generated is wrong. So the forward is read for
whatever uses the stream:

    residual = hidden_states                               an assignment: its output is the stream
    hidden_states = self.input_layernorm(hidden_states)    a call of it alone: its input is

A read takes the first of them; an edit goes into all of them, so that what is carried around the attention is edited
like what the attention gets. Where a call has more arguments, `self.self_attn(hidden_states=..., past_key_values=...)`
in models without a first norm, the forward of what is called is read in the same way.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..sources import READING, source_of
from .labels import Labels

PLAIN = ("shape", "dtype", "device", "ndim", "size", "dim")  # what is asked of a tensor besides its values


@dataclass(frozen=True)
class Entry:
    """One operation that uses the residual stream as it enters a layer.

    Attributes:
        module: in whose forward it is.
        label: nnsight's, of the operation.
        end: "input" of a call, its first argument; "output" of an assignment.
    """

    module: nn.Module
    label: str
    end: str


class _OtherUseError(Exception):
    """The stream is used in another way, which nnsight does not serve by itself."""


def entries_of(layer: nn.Module) -> tuple[Entry, ...]:
    """All uses of the residual stream as it enters a layer, in the order in which they run.

    None at all, where one of them is not served by nnsight by itself.
    """
    try:
        with READING:
            return tuple(_Forward(layer).uses())
    except (_OtherUseError, OSError, TypeError, SyntaxError):
        return ()


class _Forward:
    """One module's forward, and an argument of it.

    Args:
        module: whose forward.
        argument: its name, or its place where it is given by place; the first by default.
    """

    def __init__(self, module: nn.Module, argument: str | int = 0) -> None:
        self.module = module
        (tree,) = ast.parse(textwrap.dedent(source_of(type(module).forward))).body
        if not isinstance(tree, ast.FunctionDef):
            raise _OtherUseError
        self.tree = tree
        names = [each.arg for each in (*self.tree.args.posonlyargs, *self.tree.args.args, *self.tree.args.kwonlyargs)]
        if argument not in names and not (isinstance(argument, int) and argument + 1 < len(names)):
            raise _OtherUseError
        self.name = names[argument + 1] if isinstance(argument, int) else argument
        self.labels = Labels()
        self.labels.visit(self.tree)

    def uses(self) -> Iterator[Entry]:
        """Its uses, until the name is bound to something else."""
        n_uses = 0
        for entry in self._of_block(self.tree.body):
            if entry is None:
                break
            n_uses += 1
            yield entry
        if not n_uses:
            raise _OtherUseError

    def _of_block(self, statements: list[ast.stmt]) -> Iterator[Entry | None]:
        """The uses in statements; None where the name stops to mean the argument, or the forward ends."""
        for statement in statements:
            if not self._mentions(statement) and not isinstance(statement, ast.Return):
                continue
            if isinstance(statement, ast.If):
                yield from self._of(statement.test)
                yield from self._of_block(statement.body if self._holds(statement.test) else statement.orelse)
            elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                if self._is_it(statement.value):
                    if len(targets) != 1 or not isinstance(targets[0], ast.Name):
                        raise _OtherUseError
                    yield Entry(self.module, self.labels.of[id(statement)], "output")
                elif statement.value is not None:
                    yield from self._of(statement.value)
                if any(isinstance(each, ast.Name) and each.id == self.name for t in targets for each in ast.walk(t)):
                    yield None
            elif isinstance(statement, ast.Expr):
                yield from self._of(statement.value)
            elif isinstance(statement, ast.Return):
                if statement.value is not None:
                    yield from self._of(statement.value)
                yield None
            else:  # loops and the like
                raise _OtherUseError

    def _of(self, expression: ast.AST) -> Iterator[Entry]:
        """The uses in an expression."""
        if self._is_it(expression):
            raise _OtherUseError
        if isinstance(expression, ast.Attribute) and self._is_it(expression.value):
            if expression.attr not in PLAIN:
                raise _OtherUseError
            return
        if isinstance(expression, (ast.Lambda, ast.comprehension)) and self._mentions(expression):
            raise _OtherUseError
        if isinstance(expression, ast.IfExp):
            yield from self._of(expression.test)
            taken_part = expression.body
            if self._mentions(expression.body) or self._mentions(expression.orelse):
                taken_part = expression.body if self._holds(expression.test) else expression.orelse
            yield from self._of(taken_part)
            return
        if not isinstance(expression, ast.Call):
            for child in ast.iter_child_nodes(expression):
                yield from self._of(child)
            return
        called, given = expression.func, [*expression.args, *(keyword.value for keyword in expression.keywords)]
        converts = isinstance(called, ast.Attribute) and called.attr == "to" and self._is_it(called.value)
        for each in given if converts else (called, *given):
            if not self._is_it(each):
                yield from self._of(each)
        if converts:
            yield Entry(self.module, self.labels.of[id(expression)], "output")
            return
        taken = [each for each in given if self._is_it(each)]
        if len(taken) == 1 and len(given) == 1:
            yield Entry(self.module, self.labels.of[id(expression)], "input")
        elif taken:
            by_place = [place for place, each in enumerate(expression.args) if self._is_it(each)]
            by_name = [keyword.arg for keyword in expression.keywords if self._is_it(keyword.value)]
            (argument,) = by_place + by_name if len(taken) == 1 else [None]
            if argument is None:
                raise _OtherUseError
            yield from _Forward(self._module_at(called), argument).uses()

    def _module_at(self, called: ast.expr) -> nn.Module:
        """The module that is called as self.a.b(...)."""
        text = ast.unparse(called)
        try:
            if text.startswith("self."):
                return self.module.get_submodule(text.removeprefix("self."))
        except AttributeError:
            pass
        raise _OtherUseError

    def _holds(self, test: ast.expr) -> bool:
        """Whether a condition holds that depends on nothing but the module."""
        others = {each.id for each in ast.walk(test) if isinstance(each, ast.Name)} - {"self"}
        if others or any(isinstance(each, ast.Call) for each in ast.walk(test)):
            raise _OtherUseError
        try:
            return bool(eval(compile(ast.Expression(test), "<forward>", "eval"), {"self": self.module}))
        except Exception:
            raise _OtherUseError from None

    def _is_it(self, expression: ast.AST | None) -> bool:
        return isinstance(expression, ast.Name) and expression.id == self.name

    def _mentions(self, node: ast.AST) -> bool:
        return any(self._is_it(each) for each in ast.walk(node))
