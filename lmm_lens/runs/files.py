"""Result files: one safetensors file, tensors in its body and everything else as JSON in its header. Never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..backends.identity import AROUND, differences, in_words, is_comparable, not_comparable, shortened
from ..errors import ScoreError

KEY = "lmm_lens"
SHAPE = ("model", "n_layers", "n_heads")
"""What identities have said of a model in every version."""


def write(path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a result.

    Args:
        path: of the file; its folder must exist.
        kind: what it holds, as in "head scores".
        tensors: its numbers.
        about: what else belongs to it, of JSON types.

    Raises:
        ScoreError: there is no such folder.
    """
    from safetensors.torch import save_file

    if not Path(path).parent.is_dir():
        raise ScoreError(f"there is no folder {str(Path(path).parent)!r} to save {kind} in")
    body = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(body, path, {KEY: json.dumps({"format": f"lmm-lens {kind} 1", **about})})
    Path(path).chmod(0o644)  # safetensors writes files that nobody else can read


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
        ScoreError: no such file, a truncated one, or one of another kind.
    """
    from safetensors import SafetensorError, safe_open

    name = Path(path).name
    if not Path(path).is_file():
        raise ScoreError(f"there is no file of {kind} {name!r}")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "{}"))
            stored = set(file.keys())
            known = isinstance(about, dict) and about.get("format") == f"lmm-lens {kind} 1"
            missing = [x for x in names or () if x not in stored] + [x for x in fields if not known or x not in about]
            if not known or missing:
                raise ScoreError(f"{name!r} holds no {kind}: expected a file written by their own save()")
            tensors = {tensor: file.get_tensor(tensor) for tensor in (stored if names is None else names)}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ScoreError(
            f"{name!r} is truncated or no safetensors file: {error}\n  compute the {kind} again and save anew"
        ) from error
    return tensors, about


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
