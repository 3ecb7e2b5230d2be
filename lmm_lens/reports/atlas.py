"""The atlas of studies: one static page that compares any models' head maps, curves, sinks and claims.

It holds every record that it was made of, fetches nothing, and works from a file. Records of others are merged by being
given: nothing is averaged over models, so each stays what its seal says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ScoreError
from ..runs import disk
from ..studies import Record, Study
from .html import render

TEMPLATE = "atlas.html.j2"
SCRIPT = "atlas.js"


def write_atlas(folders: Sequence[str | os.PathLike[str]], path: str | os.PathLike[str]) -> Path:
    """Write the page.

    Args:
        folders: of models' studies, or of whole studies, of heads or of sinks, anybody's.
        path: of the page; its folder must exist.

    Raises:
        ScoreError: a folder without a study, a study that is damaged, two of one name that differ, or the page cannot
            be written.
    """
    if not folders:
        raise ScoreError("an atlas is made of at least one study's folder")
    records: dict[tuple[str, str], Record] = {}
    for folder in folders:
        for record in Study.load(folder).records:
            before = records.setdefault((record.study, record.name), record)
            if before.content != record.content:
                raise ScoreError(
                    f"two different studies of {record.study} call their model {record.name!r}\n"
                    "  give one of them another name in its config and run it again, which computes nothing anew"
                )
    script = (Path(__file__).parent / SCRIPT).read_text(encoding="utf-8")
    page = render(
        TEMPLATE,
        records=_embedded([dict(each.content) for each in records.values()]),
        script=script,
        models=sorted({name for _, name in records}),
    )
    with disk.told(f"the atlas could not be written to {str(path)!r}"):
        disk.replace(Path(path), page.encode("utf-8"))
    return Path(path)


def _embedded(records: list[dict[str, Any]]) -> str:
    """JSON that can stand inside a script element, whatever its texts hold."""
    text = json.dumps(records, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028")
