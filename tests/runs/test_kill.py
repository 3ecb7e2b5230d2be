"""SIGKILL at any moment: nothing that was finished is lost, and the end is the same to the last bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import killed

pytestmark = pytest.mark.attack


def test_a_sweep_killed_again_and_again_ends_with_the_same_numbers(tmp_path, record_property):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", killed.__name__, str(tmp_path)]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["kills"] >= killed.KILLS
    assert found["in_write"] >= 5
    assert found["same"] == found["ends"] >= 1
    assert found["lost"] == 0
    record_property("kills survived", found["kills"])
