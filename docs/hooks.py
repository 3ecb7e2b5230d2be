"""What mkdocs runs beside itself: tables from their sources, formulas as MathML, the packages as they are installed.

- `<!-- table: NAME -->` on a page becomes a table or a list that `tables.py` makes, so that nothing is copied by hand.
- Formulas become MathML, which browsers draw themselves: no script and no font is loaded from anywhere.
- The notebooks and the changelog become pages, as `made.py` makes them; every page names the version that it is of.
- lmm_lens and adapters lie in two folders and are one package; the reference is read from a copy where they are.
"""

from __future__ import annotations

import html
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
import made
import tables

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "build" / "reference"
TABLE = re.compile(r"^<!-- table: ([\w ]+) -->$", re.MULTILINE)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


REFERENCE.mkdir(parents=True, exist_ok=True)  # mkdocstrings looks once, before anything is built


def on_config(config: Any) -> None:
    """Say at the foot of every page which version it is of."""
    config.copyright = f"lmm-lens {version('lmm-lens')} · MIT licence"


def on_files(files: Any, config: Any) -> None:
    """Add the pages that are made."""
    for place, content in made.made().items():
        files.append(File.generated(config, place, content=content))


def on_pre_build(config: Any) -> None:
    """Put the packages together."""
    ignored = shutil.ignore_patterns("__pycache__", "checkpoints")
    shutil.rmtree(REFERENCE, ignore_errors=True)
    shutil.copytree(ROOT / "lmm_lens", REFERENCE / "lmm_lens", ignore=ignored)
    shutil.copytree(ROOT / "adapters", REFERENCE / "lmm_lens" / "adapters", ignore=ignored)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill in the tables; KeyError for one that there is not."""
    return TABLE.sub(lambda found: tables.TABLES[found[1]](), markdown)


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Turn the formulas of a page into MathML."""
    return FORMULA.sub(_formula, content)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Give the theme's search a name, for those who hear the page."""
    return output.replace('role="dialog">', 'role="dialog" aria-label="Search">')


def _formula(found: re.Match[str]) -> str:
    tag, bracket, tex = found.groups()
    display = "block" if bracket == "[" else "inline"
    reached = ' tabindex="0"' if tag == "div" else ""  # where it is wider than the page, keys move it
    return f'<{tag} class="formula"{reached}>{convert(html.unescape(tex).strip(), display=display)}</{tag}>'
