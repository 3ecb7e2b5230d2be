"""Warnings are told at the user's line, whatever lies between it and ours."""

import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import lmm_lens
from lmm_lens import VAR
from lmm_lens.warnings import LensWarning, NothingChangedWarning, warn
from tests.support.cases import case

LIBRARY = Path(lmm_lens.__file__).parent


def told(call) -> warnings.WarningMessage:
    with pytest.warns(LensWarning) as found:
        call()
    (one,) = found
    return one


def test_a_run_that_changed_nothing_is_told_where_it_was_called():
    llava = case("llava")
    never = VAR(sink_dims=(0,), sink_threshold=7.99, min_visual_mass=1.0, first_layer=0)
    run = lambda: llava.lens.run(llava.prompt, [never])  # noqa: E731
    found = told(run)
    assert str(found.message).startswith("VAR(")
    assert "changed nothing: no head met" in str(found.message)
    assert found.category is NothingChangedWarning
    assert (found.filename, found.lineno) == (__file__, run.__code__.co_firstlineno)


def test_a_context_and_a_module_between_are_passed_through(monkeypatch):
    ours = {"__name__": "lmm_lens.some", "warn": warn, "contextmanager": contextmanager, "Module": torch.nn.Module}
    exec(
        "@contextmanager\ndef opened():\n    warn('opened')\n    yield\n"
        "class Layer(Module):\n    def forward(self):\n        warn('called')\n"
        "def in_context():\n    with opened():\n        pass\n",
        ours,
    )
    for call in (ours["in_context"], ours["Layer"]()):
        assert told(lambda call=call: call()).filename == __file__


def test_where_no_user_is_to_be_seen_it_is_our_own_line():
    ours = {"__name__": "lmm_lens.some", "warn": warn}
    exec(compile("def work():\n    warn('alone')\n", str(LIBRARY / "some.py"), "exec"), ours)

    def call():
        thread = threading.Thread(target=ours["work"])
        thread.start()
        thread.join()

    found = told(call)
    assert (found.filename, found.lineno) == (str(LIBRARY / "some.py"), 2)
