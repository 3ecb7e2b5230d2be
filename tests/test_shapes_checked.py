"""Every signature of the library that names shapes is checked while the tests run."""

import ast
import importlib.util
import inspect
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

from lmm_lens.core.kernels import mass
from tests.support.shapes import CHECKED, KINDS, has_shape

ROOT = Path(__file__).parents[1]
FOLDERS = {"lmm_lens": ROOT / "lmm_lens", "lmm_lens.adapters": ROOT / "adapters"}


NEEDS = {"lmm_lens.harnesses.lmms_eval_models": "lmms_eval", "lmm_lens.harnesses.vlmevalkit": "vlmeval"}
"""Modules that import a package which nothing else needs; `make harness` installs the first."""


def modules() -> list[str]:
    names = []
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            if name not in NEEDS or importlib.util.find_spec(NEEDS[name]) is not None:
                names.append(name)
    return names


def written(tree: ast.AST, qualname: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every function and class of a module with its qualified name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{qualname}{node.name}"
            yield name, node
            yield from written(node, f"{name}." if isinstance(node, ast.ClassDef) else f"{name}.<locals>.")
        else:
            yield from written(node, qualname)


def annotations(node: ast.AST) -> list[ast.expr]:
    """Of a function, or of the fields of a class."""
    if isinstance(node, ast.ClassDef):
        return [line.annotation for line in node.body if isinstance(line, ast.AnnAssign)]
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [hint for hint in (*(arg.annotation for arg in every), node.returns) if hint is not None]


def names_shapes(hint: ast.expr, module: ModuleType) -> bool:
    """Whether an annotation has a shape in it, written out or by the name of a type that has."""
    return any(
        (isinstance(part, ast.Subscript) and ast.unparse(part.value) in KINDS)
        or (isinstance(part, ast.Name) and has_shape(vars(module).get(part.id)))
        for part in ast.walk(hint)
    )


def found(module: ModuleType, qualname: str) -> Any:
    """The function that a name stands for; of a class, its constructor."""
    outer, _, name = qualname.rpartition(".")
    value: Any = vars(found_class(module, outer) if outer else module)[name]
    if isinstance(value, type):
        return vars(value).get("__init__", vars(value).get("__new__"))
    return value


def found_class(module: ModuleType, qualname: str) -> Any:
    value: Any = module
    for name in qualname.split("."):
        value = vars(value)[name]
    return value


def inside(value: Any) -> Any:
    if isinstance(value, property):
        return value.fget
    if isinstance(value, cached_property):
        return value.func
    return getattr(value, "__func__", value)


@pytest.mark.parametrize("name", modules())
def test_every_signature_with_shapes_is_checked(name):
    module = importlib.import_module(name)
    unchecked = []
    for qualname, node in written(ast.parse(inspect.getsource(module))):
        if not any(names_shapes(hint, module) for hint in annotations(node)):
            continue
        if "<locals>" in qualname or inside(found(module, qualname)) not in CHECKED:
            unchecked.append(qualname)
    assert unchecked == []


def test_a_wrong_shape_is_an_error():
    pattern, keys = torch.rand(2, 3, 4, 5), torch.ones(2, 5, dtype=torch.bool)
    assert mass(pattern, keys).shape == (2, 3, 4)
    with pytest.raises(TypeCheckError, match=r"parameter 'keys'"):
        mass(pattern, keys[:1])
    with pytest.raises(TypeCheckError, match=r"parameter 'keys'"):
        mass(pattern, keys.float())
