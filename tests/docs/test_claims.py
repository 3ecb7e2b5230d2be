"""The commands on the page of claims name tests, benchmarks and targets that exist."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"`((?:pytest|python|make) [^`]+)`", PAGE)


def test_there_are_ten_claims_and_more():
    assert PAGE.count("\n| ") - 1 >= 10
    assert len(COMMANDS) >= 10


def test_every_command_names_what_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in COMMANDS:
        program, *arguments = command.split()
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", makefile, re.MULTILINE), command
        elif program == "python":
            assert arguments[0] == "-m", command
            assert importlib.util.find_spec(arguments[1]), command
        else:
            paths = [each for each in arguments if each.startswith("tests/")]
            assert all((ROOT / path).exists() for path in paths), command
            if "-k" in arguments:
                (path,), name = paths, arguments[arguments.index("-k") + 1]
                assert f"def test_{name}" in (ROOT / path).read_text(encoding="utf-8"), command
