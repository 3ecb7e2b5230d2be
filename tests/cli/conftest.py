"""The command line, run inside the test process: fast, and with what it prints caught."""

import re
import sys
from types import SimpleNamespace

import pytest

from lmm_lens.bundled import shapes


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs `lmm-lens` with some arguments: (exit status, what it printed, what it printed as an error)."""
    from lmm_lens.cli import main

    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lmm-lens", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err, heads=heads_in(out))

    return run


def heads_in(text: str) -> list[tuple[str, float, float, float]]:
    """The rows `L2H3 | 0.852 | 0.845 to 0.859` of the tables in a text."""
    rows = re.findall(r"(L\d+H\d+)\W+([\d.]+)\W+([\d.]+) to ([\d.]+)", text)
    return [(head, *map(float, numbers)) for head, *numbers in rows]


@pytest.fixture
def picture(tmp_path):
    """A picture in a file."""
    shapes.examples(1, seed=3)[0].image.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"
