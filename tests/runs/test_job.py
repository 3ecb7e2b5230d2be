"""Items one after the other, the next one prepared while this one is done."""

import threading

import pytest
import torch

from lmm_lens import data
from lmm_lens.answers.items import Items
from lmm_lens.effects.ablations import Ablation, units_of
from lmm_lens.effects.work import EffectsWork
from lmm_lens.replay.batches import Batches
from lmm_lens.runs.job import Job, do_all
from tests.support.sweeps import assert_same


class Prepared:
    """Work on item i waits until item i + 1 is being prepared, so it hangs where nothing is prepared ahead."""

    def __init__(self, n):
        self.started = [threading.Event() for _ in range(n + 1)]
        self.started[n].set()
        self.threads = set()

    def prepare(self, item):
        self.threads.add(threading.get_ident())
        self.started[item].set()
        return item * 10

    def __call__(self, item):
        number = item // 10 if item else 0
        assert self.started[number + 1].wait(60)
        return {"x": torch.tensor(item)}


def jobs(items):
    return [Job(index, f"item {index}", item) for index, item in enumerate(items)]


def test_the_next_item_is_prepared_while_this_one_is_done():
    work = Prepared(4)
    assert [int(done.tensors["x"]) for done in do_all(jobs(range(4)), work, "trying")] == [0, 10, 20, 30]
    assert threading.get_ident() not in work.threads


def test_an_error_comes_after_what_was_done_before_it_and_names_its_item():
    def work(item):
        return {"x": torch.tensor(1 // item)}

    work.prepare = lambda item: item
    found = []
    with pytest.raises(ZeroDivisionError) as caught:
        found.extend(do_all(jobs([1, 1, 0, 1]), work, "dividing"))
    assert [done.index for done in found] == [0, 1]
    assert caught.value.__notes__ == ["while dividing, item 2 ('item 2')"]


def test_a_sweep_over_heads_finds_the_same_with_prompts_made_ahead(lens):
    samples = list(data.shapes(n=4, seed=3))
    items = list(Items(samples, None, ""))

    def work():
        return EffectsWork(lens, Ablation(units_of(lens, None)), Batches(64, lens.device))

    ahead = [done.tensors for done in do_all(jobs(items), work(), "sweeping")]
    one_by_one = work()
    assert one_by_one.prepare(items[1]).prompt is not None
    for found, item in zip(ahead, items, strict=True):
        assert_same(found, one_by_one(item))


def test_a_row_that_gives_no_prompt_is_left_to_its_turn(lens):
    (item,) = Items([data.Sample("a", "what is this?", images=("/no/such/picture.png",), answer="red")], None, "")
    work = EffectsWork(lens, Ablation(units_of(lens, None)), Batches(64, lens.device))
    assert work.prepare(item) is item
    with pytest.raises(Exception, match="picture"):
        work(item)
