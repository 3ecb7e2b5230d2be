"""The command line, run inside the test process: fast, and with what it prints caught."""

import sys
from types import SimpleNamespace

import pytest

from lmm_lens.bundled import shapes
from tests.cli.printed import heads_in


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


@pytest.fixture
def picture(tmp_path):
    """A picture in a file."""
    shapes.examples(1, seed=3)[0].image.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"
