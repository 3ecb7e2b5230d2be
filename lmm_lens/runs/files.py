"""Result files: one safetensors file, tensors in its body and everything else as JSON in its header. Never pickle.

Each is sealed: a checksum of every number and every word tells a file that is not what was written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backends.identity import AROUND, differences, in_words, is_comparable, not_comparable, shortened
from ..errors import LensError, ScoreError
from . import disk

KEY = "lmm_lens"
SEAL = "sha256"
SHAPE = ("model", "n_layers", "n_heads")
"""What identities have said of a model in every version."""


def write(path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a result, whole or not at all.

    Args:
        path: of the file; its folder must exist.
        kind: what it holds, as in "head scores".
        tensors: its numbers.
        about: what else belongs to it, of JSON types.

    Raises:
        ScoreError: there is no such folder, or it cannot be written.
    """
    if not Path(path).parent.is_dir():
        raise ScoreError(f"there is no folder {str(Path(path).parent)!r} to save {kind} in")
    with disk.told(f"the {kind} could not be written to {Path(path).name!r}", "what was there before is as it was"):
        disk.replace(Path(path), packed(kind, tensors, about))


def packed(kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """A result as a sealed file."""
    from safetensors.torch import save

    body = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = json.loads(json.dumps({"format": _format(kind), **about}))
    return save(body, {KEY: json.dumps({**header, SEAL: _seal(body, header)})})


def _format(kind: str) -> str:
    return f"lmm-lens {kind} 2"


def _seal(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """Of everything that must come back: each name, shape and bit of the numbers, and the header."""
    shapes = {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors.items()}
    found = hashlib.sha256(disk.canonical([header, shapes]).encode())
    for name in sorted(tensors):
        found.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def read(
    path: str | os.PathLike[str], kind: str, names: tuple[str, ...] | None, fields: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a result back.

    Args:
        path: of a file that `write` has written.
        kind: what it must hold.
        names: the tensors it must have; None for all it has.
        fields: the entries that its header must have.

    Returns:
        The tensors and the header.

    Raises:
        ScoreError: no such file, a truncated one, one of another kind, or not what was written.
    """
    from safetensors import SafetensorError, safe_open

    name = Path(path).name
    if not Path(path).is_file():
        raise ScoreError(f"there is no file of {kind} {name!r}")
    again = f"compute the {kind} again and save anew"
    try:
        with disk.told(f"{name!r} cannot be read"), safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "{}"))
            tensors = {tensor: file.get_tensor(tensor) for tensor in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ScoreError(f"{name!r} is truncated or no safetensors file: {_short(error)}\n  {again}") from error
    if isinstance(about, dict) and about.get("format") == f"lmm-lens {kind} 1":
        raise ScoreError(f"{name!r} was written before such files had a checksum\n  {again}")
    known = isinstance(about, dict) and about.get("format") == _format(kind)
    if not known or not {*fields, SEAL} <= about.keys() or not tensors.keys() >= set(names or ()):
        raise ScoreError(f"{name!r} holds no {kind}: expected a file written by their own save()")
    if about.pop(SEAL) != _seal(tensors, about):
        raise ScoreError(
            f"{name!r} does not have the checksum it was written with: it was damaged, or changed\n  {again}"
        )
    return {tensor: tensors[tensor] for tensor in (sorted(tensors) if names is None else names)}, about


def _short(error: Exception) -> str:
    """A sentence of an error, which may quote a whole file."""
    return str(error).strip()[:200] or type(error).__name__


@contextmanager
def understood(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Inside, what a header says is made use of: what it cannot mean is a ScoreError."""
    try:
        yield
    except ScoreError:
        raise
    except (
        AttributeError,
        IndexError,
        KeyError,
        LensError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise ScoreError(
            f"{Path(path).name!r} holds {kind} that do not fit together: {type(error).__name__} {_short(error)}\n"
            f"  compute the {kind} again and save anew"
        ) from error


def check_numbers(path: str | os.PathLike[str], name: str, tensor: Tensor, shape: Mapping[str, int | None]) -> None:
    """ScoreError unless a tensor of a file has the shape that belongs there and is not without any number.

    Args:
        path: of the file.
        name: of the tensor.
        tensor: from the file.
        shape: each dimension by name, its size where that is known.
    """
    file = Path(path).name
    sizes = list(shape.values())
    fits = tensor.ndim == len(sizes) and all(n in (None, m) for n, m in zip(sizes, tensor.shape, strict=True))
    if not fits or 0 in tensor.shape:
        expected = ", ".join(word if n is None else f"{word} {n}" for word, n in shape.items())
        raise ScoreError(f"{name} in {file!r} has the shape {list(tensor.shape)}, expected [{expected}]")
    if tensor.is_floating_point() and not bool(tensor.isfinite().any()):
        what = "NaN" if bool(tensor.isnan().any()) else "infinite"
        raise ScoreError(f"{name} in {file!r} holds no number: every entry is {what}")


def check_model(path: str | os.PathLike[str], saved: Mapping[str, Any], lens: Mapping[str, Any]) -> None:
    """ScoreError unless a result's model is the lens's; both are identities as in `Lens.identity`."""
    check_same_model(repr(Path(path).name), saved, lens, "compute it again, or load it without a lens")


def check_same_model(what: str, saved: Mapping[str, Any], lens: Mapping[str, Any], otherwise: str = "") -> None:
    """ScoreError unless two identities are the same, with what differs.

    Args:
        what: was made with the first.
        saved: the first.
        lens: the lens's.
        otherwise: what to do where the first cannot be compared.
    """
    found = differences(saved, lens) if is_comparable(saved) else [x for x in SHAPE if saved.get(x, lens[x]) != lens[x]]
    if not found and not is_comparable(saved):
        raise ScoreError(f"{what} {not_comparable(saved)}" + f"\n  {otherwise}" * bool(otherwise))
    if found:
        made = "the same weights, but" if set(found) <= AROUND else "another model:"
        raise ScoreError(
            f"{what} was made with {made} {in_words(found)}\n"
            f"  made with: {_said(saved, found)}\n  lens:      {_said(lens, found)}"
        )


def _said(model: Mapping[str, Any], differing: Sequence[str]) -> str:
    """The class and size of a model and the ingredients that differ, digests cut short."""
    size = " x ".join(str(model[name]) for name in SHAPE[1:] if name in model)
    parts = [f"{name} {shortened(model.get(name))}" for name in differing if name not in SHAPE]
    return ", ".join([f"{model.get('model', 'unknown')} {size}".strip(), *parts])
