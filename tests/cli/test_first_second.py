"""What a user sees before anything heavy is there: in a process where importing torch ends it."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(sys.executable).parent / "lmm-lens"
TORCH = 77
"""The status with which the process ends where torch is imported."""


@pytest.fixture
def early(tmp_path):
    """Runs `lmm-lens` where torch cannot be imported, on a terminal or in pipes: its status and what it showed."""
    (tmp_path / "torch.py").write_text(f"import os\nos._exit({TORCH})\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TERM": "xterm", "HF_HUB_OFFLINE": "1"}

    def run(*arguments, terminal=False):
        ours, theirs = pty.openpty() if terminal else os.pipe()
        try:
            done = subprocess.run(
                [SCRIPT, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                env=environment,
                cwd=tmp_path,
                timeout=120,
            )
        finally:
            os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # how a terminal ends
            pass
        os.close(ours)
        return SimpleNamespace(status=done.returncode, shown=shown.decode())

    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("score demo --image gone.png --question q", "'gone.png' cannot be opened as an image: No such file"),
        ("view demo --image text.png --question q", "'text.png' cannot be opened as an image: cannot identify"),
        ("sweep gone.yaml", "the config 'gone.yaml' cannot be read: No such file"),
        ("compare empty.yaml", "'empty.yaml' is empty, and a comparison needs conditions"),
        ("report gone", "'gone' is no folder of a sweep"),
    ],
)
def test_files_are_looked_at_before_torch_is_imported(early, tmp_path, arguments, said):
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "empty.yaml").write_text("")
    result = early(*arguments.split())
    assert result.status == 2, result.shown
    assert result.shown.startswith("error: ")
    assert said in result.shown


@pytest.mark.parametrize("command", ["score", "view"])
def test_there_is_a_word_on_a_terminal_before_torch_is_imported_and_none_in_a_pipe(early, picture, command):
    arguments = (command, "demo", "--image", picture, "--question", "q")
    shown = early(*arguments, terminal=True)
    assert shown.status == TORCH
    assert "starting" in shown.shown
    assert (piped := early(*arguments)).status == TORCH
    assert piped.shown == ""


WITHOUT_A_NETWORK = """
import os, socket

def unknown(host, port):
    asked.append((host, port))
    raise socket.gaierror(-2, "Name or service not known")

socket.getaddrinfo, asked = unknown, []
from lmm_lens.cli.network import stay_offline_if_unreached

for name in ("/gone/model", "../gone", "."):
    stay_offline_if_unreached(name)
os.environ["HTTPS_PROXY"] = "http://proxy:3128"
stay_offline_if_unreached("org/behind-a-proxy")
del os.environ["HTTPS_PROXY"]
print(asked, os.environ.get("HF_HUB_OFFLINE"))
stay_offline_if_unreached("org/model")
print(asked, os.environ.get("HF_HUB_OFFLINE"))
import huggingface_hub.constants
print(huggingface_hub.constants.HF_HUB_OFFLINE)
"""


def test_without_a_network_the_hub_is_not_asked_over_and_over():
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and name not in ("HF_HUB_OFFLINE", "HF_ENDPOINT")
    }
    command = [sys.executable, "-c", WITHOUT_A_NETWORK]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.splitlines() == ["[] None", "[('huggingface.co', 443)] 1", "True"], done.stderr
    assert done.stderr == "no network: 'org/model' is looked for among what was downloaded before\n"
