"""Ctrl-C at any moment leaves no edit on a model, and is raised all the same."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from lmm_lens.backends.interrupts import InterruptGuard
from tests.backends import interrupted


@pytest.mark.attack
def test_an_interrupt_at_any_moment_is_raised_and_leaves_nothing(record_property):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", interrupted.__name__, "120"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = json.loads(ended.stdout)
    assert found["struck"] >= 120, ended.stderr
    assert found["left"] == []
    assert found["raised"] == found["struck"]
    assert found["same"]
    record_property("interrupts raised that left nothing", found["struck"])


def test_outside_the_main_thread_nothing_is_held_back():
    guard, before = InterruptGuard(), signal.getsignal(signal.SIGINT)
    worker = threading.Thread(target=guard.open)
    worker.start()
    worker.join()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("theirs", ["SIG_IGN", "SIG_DFL"])
def test_a_process_that_ignores_interrupts_goes_on_ignoring_them(theirs):
    before = signal.signal(signal.SIGINT, getattr(signal, theirs))
    try:
        guard = InterruptGuard()
        guard.open()
        assert signal.getsignal(signal.SIGINT) == getattr(signal, theirs)
        guard.close()
        assert signal.getsignal(signal.SIGINT) == getattr(signal, theirs)
    finally:
        signal.signal(signal.SIGINT, before)
