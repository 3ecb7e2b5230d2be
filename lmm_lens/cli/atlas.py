"""`lmm-lens atlas FOLDER...`: one page that compares studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console


def run(folders: Sequence[Path], out: Path) -> None:
    """Write the page.

    Raises:
        LensError: a folder without a study, or a page that cannot be written.
    """
    from ..reports.atlas import write_atlas

    written = write_atlas(folders, out)
    Console().print(f"atlas: {written}", markup=False, highlight=False, soft_wrap=True)
