"""Models from a stand-in for the Hub on the loopback: what comes, and what is said where something does not."""

import json
import os
import subprocess
import sys

import pytest

from tests.lens.hub import serving

pytestmark = pytest.mark.long
CHILD = """
import json, sys, torch
from lmm_lens import Lens, shapes

example = shapes.examples(1)[0]
for name in sys.argv[1:]:
    try:
        lens = Lens.from_pretrained(name)
        prompt = lens.prompt(example.question, images=example.image)
        said = ["ok", lens.run(prompt, logits="last").logits[0, 0, :5].tolist()]
    except Exception as error:
        said = [type(error).__name__, str(error)]
    print("SAID", json.dumps([name, *said]), flush=True)
"""
NAMES = ("open", "gated", "cut", "without-weights", "without-processor", "slow", "missing")


def opened(*names, **environment):
    """What a process of its own says of some models: by name (kind of error or "ok", text or logits)."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *names],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line.removeprefix("SAID ")) for line in done.stdout.splitlines() if line.startswith("SAID ")]
    return {name: (kind, what) for name, kind, what in said}, done.stderr


@pytest.fixture(scope="module")
def found(tmp_path_factory, lens):
    """With the stand-in, then offline with what it gave, then without it; and what it was asked."""
    root = tmp_path_factory.mktemp("hub")
    lens.model.save_pretrained(root / "models" / "demo")
    lens.processor.save_pretrained(root / "models" / "demo")
    with serving(root / "models") as (address, hub):
        environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(root / "cache")}
        first, told = opened(*(f"{kind}/demo" for kind in NAMES), **environment)
        n_asked = len(hub.asked)
        offline, _ = opened("open/demo", "other/demo", **{**environment, "HF_HUB_OFFLINE": "1"})
        assert len(hub.asked) == n_asked  # it was not asked
    return first, offline, hub.asked, told


def test_a_model_of_the_hub_is_the_model(found, lens):
    from lmm_lens import shapes

    first, offline, *_ = found
    example = shapes.examples(1)[0]
    expected = lens.run(lens.prompt(example.question, images=example.image), logits="last").logits[0, 0, :5].tolist()
    for name in ("open/demo", "cut/demo", "slow/demo"):
        assert first[name] == ("ok", pytest.approx(expected, abs=1e-4)), name
    assert offline["open/demo"] == ("ok", pytest.approx(expected, abs=1e-4))


def test_a_download_that_broke_off_is_finished(found):
    _, _, asked, told = found
    weights = [ask for ask in asked if ask[1].startswith("/cut/") and ask[1].endswith("model.safetensors")]
    assert [method for method, *_ in weights].count("GET") == 2
    assert "Trying to resume download" in told


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gated/demo", "its terms are to be accepted first, at https://huggingface.co/gated/demo; then log in"),
        ("without-weights/demo", "does not appear to have a file named"),
        ("without-weights/demo", "the weights are missing: an upload that is not finished"),
        ("without-processor/demo", "the processor in 'without-processor/demo' cannot be opened"),
        ("without-processor/demo", "give processor=..."),
        ("missing/demo", "is not a local folder and is not a valid model identifier"),
        ("missing/demo", "give a Hub name or a folder written by save_pretrained"),
    ],
)
def test_what_is_said_where_something_is_missing(found, name, message):
    kind, said = found[0][name]
    assert kind == "ModelError"
    assert message in said
    assert len(said.splitlines()) <= 3


def test_what_is_said_without_a_network(found):
    kind, said = found[1]["other/demo"]
    assert kind == "ModelError"
    assert "'other/demo' cannot be opened as an image-text-to-text model" in said
    assert "or HF_HUB_OFFLINE=1 forbids it, and this model is not in its cache" in said
    assert "`hf download other/demo` puts it there" in said
