"""Open a model and its processor by name; what is heavy is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import LensError, ModelError


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn transformers' long errors of loading into one that says what was tried."""
    try:
        yield
    except LensError:
        raise
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{name!r} cannot be opened as an image-text-to-text model: {str(error).strip().splitlines()[0]}\n"
            "  give a Hub name or a folder written by save_pretrained"
        ) from error


def open_model(name: str, backend: str, remote: bool | str, **options: Any) -> tuple[Any, Any]:
    """A model and its processor; for a server the model's shape alone, in nnsight's wrapping.

    Raises:
        ModelError: there is no such model, or it is no image-text-to-text model.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with loading(name):
        processor = AutoProcessor.from_pretrained(name)
        if remote and backend == "nnsight":
            from ..backends.nnsight.wrap import opened

            return opened(name, processor, **options), processor
        return AutoModelForImageTextToText.from_pretrained(name, **options).eval(), processor
