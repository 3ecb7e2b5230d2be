"""The adapters of the page on remote code, as a reader would paste them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "remote-code.md"


@cache
def sources() -> tuple[str, ...]:
    """The blocks of the page that run."""
    return tuple(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))


@cache
def adapters() -> dict[str, Any]:
    """What the blocks define, by name."""
    names: dict[str, Any] = {}
    for source in sources():
        exec(compile(source, PAGE.name, "exec"), names)
    return names
