"""The shape annotations of the mathematics, checked at run time by beartype in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = (
    *(f"core/test_{name}.py" for name in ("kernels", "spatial", "var_kernel")),
    "prompts/test_rows.py",
    "scoring/test_bundled.py",
)


def test_shapes_are_as_annotated():
    paths = [f"tests/{name}" for name in FILES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *paths],
        cwd=ROOT,
        env={**os.environ, "LMM_LENS_CHECK_SHAPES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "jaxtyping" not in done.stderr
