"""HTML pages that hold everything they show and fetch nothing, so that one file can be sent alone."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any


def render(template: str, **values: Any) -> str:
    """A page from a template of this package; what comes from outside is escaped, and a missing value is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lmm_lens.reports", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template).render(**values)


def inline(path: Path) -> str:
    """A PNG file as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
