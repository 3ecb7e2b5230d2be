"""Doctests and indented code of docstrings as code blocks, which the reference would else show as running text."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

DOCTEST = re.compile(r"(?:^>>> .*\n?(?:(?!>>> |\s*$).+\n?)*)+", re.MULTILINE)
CODE = re.compile(r"(?<=\n\n)(?:^ {4}.*\n?(?:\n(?= {4}))?)+", re.MULTILINE)
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$", re.MULTILINE)


class Doctests(griffe.Extension):
    """Fences what is code in every docstring."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """A docstring with its indented code, and its doctests wherever they stand, in fences."""
    heading = SECTION.search(text)
    prose, rest = (text, "") if heading is None else (text[: heading.start()], text[heading.start() :])
    prose = CODE.sub(lambda found: _fence("python", textwrap.dedent(found[0])), prose)
    return DOCTEST.sub(lambda found: _fence("pycon", found[0]), prose + rest).strip("\n")


def _fence(language: str, code: str) -> str:
    return f"```{language}\n{code.strip(chr(10))}\n```\n"
