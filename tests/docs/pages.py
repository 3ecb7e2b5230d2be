"""The code blocks of the documentation, and how a reader would run them: top to bottom, one namespace a page.

A block is Python to be run, Python marked `.no-run` with a title that says what it needs, or the output of the block
before it, marked `.output`. `python -m tests.docs.pages --write docs/index.md` writes the outputs anew.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import linecache
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent.parent / "docs"
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        info: what stands behind the fence, as "python" or "{.text .output}".
        code: its lines, without the indentation of the fence.
        line: number of its first line in the page.
        span: where the lines stand in the page.
        indent: of the fence.
    """

    info: str
    code: str
    line: int
    span: tuple[int, int]
    indent: str

    @property
    def language(self) -> str:
        found = re.match(r"\{?\s*\.?(\w*)", self.info)
        return found[1] if found else ""

    @property
    def is_run(self) -> bool:
        return self.language == "python" and ".no-run" not in self.info

    @property
    def is_output(self) -> bool:
        return ".output" in self.info


def pages() -> list[Path]:
    """Every page, by name."""
    return sorted(DOCS.rglob("*.md"))


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            found["info"].strip(),
            textwrap.dedent(found["code"]),
            text.count("\n", 0, found.start()) + 2,
            found.span("code"),
            found["indent"],
        )
        for found in FENCE.finditer(text)
    ]


def run(page: Path) -> Iterator[tuple[Block, str]]:
    """Each Python block that runs, with what it prints, in a folder of its own."""
    names: dict[str, Any] = {"__name__": "__main__"}
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for block in blocks(page):
                if block.is_run:
                    yield block, _printed(block, page, names)
        finally:
            os.chdir(before)


def _printed(block: Block, page: Path, names: dict[str, Any]) -> str:
    file = f"{page.relative_to(DOCS.parent)}:{block.line}"
    # nnsight reads the source of its blocks there
    linecache.cache[file] = (len(block.code), None, block.code.splitlines(keepends=True), file)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(compile(block.code, file, "exec"), names)
    except Exception as error:
        error.add_note(f"in the block at {file}:\n{block.code}")
        raise
    return out.getvalue()


def expected(page: Path) -> dict[int, str]:
    """What the page says that blocks print, by the line of the block."""
    listed = blocks(page)
    return {above.line: below.code for above, below in itertools.pairwise(listed) if above.is_run and below.is_output}


def write(page: Path) -> None:
    """Put what blocks print into the output blocks below them."""
    listed = blocks(page)
    below = {above.line: out for above, out in itertools.pairwise(listed) if out.is_output}
    text = page.read_text(encoding="utf-8")
    for block, printed in reversed(list(run(page))):
        if block.line in below:
            out = below[block.line]
            clean = "\n".join(line.rstrip() for line in printed.rstrip().splitlines())
            shown = textwrap.indent(clean + "\n", out.indent)
            text = text[: out.span[0]] + shown + text[out.span[1] :]
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for name in [each for each in sys.argv[1:] if each != "--write"]:
        if "--write" in sys.argv:
            write(Path(name).resolve())
        else:
            for block, printed in run(Path(name).resolve()):
                print(f"--- line {block.line}", block.code, "->", printed, sep="\n")
