"""TransformerLens and nnsight are imported when a lens asks for one of them, and either may be missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ModelError
from .sources import READING

REQUIREMENTS = {"transformer_lens": "transformer-lens>=4.3,<5", "nnsight": "nnsight>=0.8,<0.9"}
"""What each backend needs, as in pyproject.toml."""


@contextmanager
def importing(backend: str) -> Iterator[None]:
    """Inside, a backend and its framework are imported, one thread at a time: they read sources as they go.

    Raises:
        ModelError: the framework, or something that it depends on, is missing or of another version.
    """
    requirement = REQUIREMENTS[backend]
    with READING:
        try:
            yield
        except (ImportError, AttributeError) as error:
            raise ModelError(
                f"backend={backend!r} needs {requirement}, which cannot be loaded: {error}\n"
                f"  pip install '{requirement}', or use backend='native', which needs no framework"
            ) from error
