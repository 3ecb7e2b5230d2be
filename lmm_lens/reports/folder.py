"""What lies in a sweep's folder, by name; imports nothing, so that a wrong folder is refused at once."""

from __future__ import annotations

from pathlib import Path

from ..errors import ScoreError

CONFIG = "config.yaml"
EFFECTS = "effects"
CONTROLS = "controls"
"""In a sweep's folder: what it was told, the run of the heads, that of the chosen set and its random controls."""


def has_parts(folder: Path) -> bool:
    """Whether it is the folder of `lmm-lens sweep`, or else a run folder of `head_effects(..., folder=...)`.

    Raises:
        ScoreError: it is neither.
    """
    parts = (folder / EFFECTS).is_dir()
    if not parts and not (folder / "manifest.json").is_file():
        raise ScoreError(
            f"{str(folder)!r} is no folder of a sweep: it holds neither {EFFECTS}/ nor manifest.json\n"
            "  give the folder that `lmm-lens sweep` or head_effects(..., folder=...) wrote"
        )
    return parts
