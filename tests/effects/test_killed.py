"""Nothing is lost: a sweep killed at any moment ends with the numbers of one that was not; on a cluster too."""

import os
import pickle
import random
import signal
import time

import pytest
import torch

from lmm_lens import HeadEffects, Lens, data, head_effects
from lmm_lens.effects.ablations import Ablation, units_of
from lmm_lens.effects.work import MakeEffectsWork
from lmm_lens.errors import LensError
from lmm_lens.lens.travelling import TravellingLens
from lmm_lens.runs import RunFolder

N = 12


@pytest.fixture(scope="module")
def lens() -> Lens:
    return Lens.demo()


@pytest.fixture(scope="module")
def whole(lens) -> HeadEffects:
    return head_effects(lens, data.shapes(n=N, seed=2), rows="after_image")


def same(one: HeadEffects, other: HeadEffects) -> bool:
    tensors = (
        (getattr(one.outcomes, name), getattr(other.outcomes, name)) for name in ("logits", "log_sum", "said", "marks")
    )
    return one.ids == other.ids and all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in tensors)


@pytest.mark.attack
def test_a_sweep_killed_at_random_moments_ends_with_the_same_numbers(lens, whole, tmp_path, record_property):
    folder, draw, kills, finished = tmp_path / "run", random.Random(0), 0, [0]
    longest = 0.05  # seconds that a process may live; more whenever none got anything done, however slow the machine is
    while True:
        child = os.fork()
        if child == 0:  # a process of its own, with the model already loaded
            try:
                torch.set_num_threads(1)
                head_effects(lens, data.shapes(n=N, seed=2), rows="after_image", folder=folder, seconds_per_part=0.05)
                os._exit(0)
            finally:
                os._exit(1)
        deadline = time.monotonic() + draw.uniform(0, longest)
        while time.monotonic() < deadline and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        try:
            os.kill(child, signal.SIGKILL)
            kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        except (ProcessLookupError, ChildProcessError):
            pass
        if (folder / "manifest.json").exists():
            opened = RunFolder.open(folder)
            finished.append(opened.n_items)
            if opened.finished:
                break
        longest *= 1.0 if len(finished) > 1 and finished[-1] > finished[-2] else 1.2
        assert kills < 200
    assert kills >= 5
    record_property("kills survived", kills)
    assert finished == sorted(finished), "what was finished once stays finished"
    assert same(HeadEffects.open(folder), whole)


def test_a_worker_without_the_device_of_the_sweep_is_an_error_not_slow(lens):
    make = MakeEffectsWork(TravellingLens(None, "cuda", Lens.demo), Ablation(units_of(lens, None)), None)
    with pytest.raises(LensError, match=r"on cuda here and on cpu in a Ray worker.*\n  give each .* num_gpus=1"):
        pickle.loads(pickle.dumps(make))()
