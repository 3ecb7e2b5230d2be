"""What the forward of an attention module calls the things that are read and edited: labels, found in its source.

An attention function is fetched from transformers' registry and called under a name of the forward's own; keys and
values come out of a cache, or have a name; and where a sequence is packed, queries, keys and values are cut into parts.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Sequence

from torch import nn

from ...errors import HookError
from ..sources import READING, source_of
from .labels import Labels, dotted

REGISTRY = "ALL_ATTENTION_FUNCTIONS"  # transformers', from which each attention forward takes its function
INTERFACE = "attention_interface"  # what forwards of transformers call the function that they are given
LOOPS = (ast.ListComp, ast.GeneratorExp, ast.For, ast.While)


def operations_of(attention: type[nn.Module], labels: Sequence[str]) -> tuple[str | None, str | None]:
    """The labels of the call of the attention function and of the cache's update; None where there is none.

    Args:
        attention: the class of attention.
        labels: nnsight's, of the operations of its forward, in order.

    Raises:
        HookError: there is no source to read.
    """
    try:
        with READING:
            tree = ast.parse(textwrap.dedent(source_of(attention.forward)))
    except (OSError, TypeError) as error:
        raise HookError(f"the source of {attention.__name__}.forward cannot be read: {error}") from error
    names = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None and _mentions(node.value, REGISTRY)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    calls = [label for label in labels if label.rpartition("_")[0] in names]
    updates = [label for label in labels if label.rpartition("_")[0].endswith("past_key_values_update")]
    # bindings of the name come before the call of what is bound to it, so the call has the last number
    return calls[-1] if calls else None, updates[-1] if updates else None


def _mentions(node: ast.AST, name: str) -> bool:
    return any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node))


def attends_by_part(attention: type[nn.Module]) -> bool:
    """Whether a forward goes over the parts of a packed sequence, each attending by itself."""
    loops = (node for node in ast.walk(_tree(attention)) if isinstance(node, LOOPS))
    calls = (each for node in loops for each in ast.walk(node) if isinstance(each, ast.Call))
    return any("attention" in ast.unparse(each.func) for each in calls)


def values_of(attention: type[nn.Module]) -> str:
    """nnsight's label of the assignment of the values that an attention function is given; "" where there is none."""
    try:
        tree = _tree(attention)
    except (OSError, TypeError, SyntaxError):
        return ""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and dotted(node.func).endswith(INTERFACE)]
    names = {each.args[3].id for each in calls if len(each.args) > 3 and isinstance(each.args[3], ast.Name)}
    return _assigned(tree, names.pop()) if len(names) == 1 else ""


def packed_in(attention: type[nn.Module]) -> tuple[str, ...]:
    """The labels that `LayerEnvoys.packed` has of a class that attends part by part; () where some have no name."""
    tree = _tree(attention)
    for node in (each for each in ast.walk(tree) if isinstance(each, ast.ListComp)):
        cut, over = node.elt, node.generators[0].iter  # [split(x, lengths.tolist()) for x in (query, key, value)]
        if isinstance(cut, ast.Call) and dotted(cut.func).endswith("split") and isinstance(over, ast.Tuple):
            lengths = [each for each in ast.walk(cut.args[1]) if isinstance(each, ast.Name)]
            names = [each.id for each in (*over.elts, *lengths) if isinstance(each, ast.Name)]
            put_together = [each for each in ast.walk(tree) if isinstance(each, ast.Assign) and _joins(each.value)]
            out = Labels.in_tree(tree).of.get(id(put_together[0]), "") if len(put_together) == 1 else ""
            found = (*(_assigned(tree, name) for name in names), out)
            return found if len(found) == 5 and all(found) else ()
    return ()


def _tree(attention: type[nn.Module]) -> ast.stmt:
    with READING:
        (tree,) = ast.parse(textwrap.dedent(source_of(attention.forward))).body
    return tree


def _joins(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and dotted(value.func) == "torch_cat"


def _assigned(tree: ast.stmt, name: str) -> str:
    """The label of the last assignment to a name alone; "" where there is none."""
    bound = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and [each.id for each in node.targets if isinstance(each, ast.Name)] == [name]
    ]
    last = max(bound, key=lambda node: node.lineno, default=None)
    return "" if last is None else Labels.in_tree(tree).of.get(id(last), "")
