"""A stream of items: every result, in order, whatever happens on the way."""

import io
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import rich
import torch
from rich.console import Console

from lmm_lens.errors import ScoreError
from lmm_lens.runs import RunFolder, saving, stream
from lmm_lens.runs.store import Memory
from tests.support.sweeps import assert_same, expected, key_of, make_work, work

N = 30


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


def opened(path) -> RunFolder:
    return RunFolder(path, "test", {})


def counting(do=work):
    """Work that remembers what it was asked."""
    asked = []

    def make():
        return lambda item: asked.append(item) or do(item)

    return make, asked


def failing_at(place, error):
    def do(item):
        if item == place:
            raise error
        return work(item)

    return lambda: do


# ---------------------------------------------------------------------- results


@pytest.mark.parametrize("seconds", [0, 0.002, 10])
def test_a_folder_memory_and_a_plain_loop_give_the_same_numbers(path, seconds):
    wanted = expected(range(N))
    kept = stream(iter(range(N)), make_work, key_of, None, seconds_per_part=seconds)
    written = stream(iter(range(N)), make_work, key_of, opened(path), seconds_per_part=seconds)
    assert isinstance(kept, Memory)
    assert isinstance(written, RunFolder)
    for store in (kept, written, RunFolder.open(path)):
        assert_same(store.tensors(), wanted)
        assert store.n_items == N
        assert [store.key(index) for index in range(N)] == list(map(key_of, range(N)))
        assert not store.finished  # that is for whoever knows what a run is


def test_parts_are_written_in_time_and_are_not_too_large(path):
    assert stream(range(N), make_work, key_of, opened(path), seconds_per_part=0).n_parts == N
    many = stream(range(600), lambda: lambda item: {"x": torch.zeros(1)}, str, None, seconds_per_part=1e9)
    assert [len(part.keys) for part in many.parts()] == [256, 256, 88]
    large = stream(range(5), lambda: lambda item: {"x": torch.zeros(8 * 2**20)}, str, None, seconds_per_part=1e9)
    assert [len(part.keys) for part in large.parts()] == [2, 2, 1]


@pytest.mark.parametrize(("seconds", "written"), [(15, [0, 0, 2, 2]), (10, [0, 1, 2, 3])])
def test_a_part_ends_with_the_item_that_passes_its_time(path, monkeypatch, seconds, written):
    folder = opened(path)
    now, seen = [0.0], []
    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def slow(item):
        seen.append(folder.n_items)
        now[0] += 10.0
        return work(item)

    stream(range(4), lambda: slow, key_of, folder, seconds_per_part=seconds)
    assert seen == written


def test_finished_items_are_not_computed_again_nor_the_work_made(path):
    with opened(path) as folder:
        stream(range(10), make_work, key_of, folder)
    make, asked = counting()
    stream(range(14), make, key_of, opened(path))
    assert asked == [10, 11, 12, 13]

    def never():
        raise AssertionError("the model was loaded for nothing")

    assert_same(stream(range(14), never, key_of, opened(path)).tensors(), expected(range(14)))


def test_holes_are_filled(path):
    with opened(path) as folder:
        for first in (2, 7):
            folder.write(first, [key_of(first)], expected([first]))
    make, asked = counting()
    found = stream(range(9), make, key_of, opened(path))
    assert asked == [0, 1, 3, 4, 5, 6, 8]
    assert_same(found.tensors(), expected(range(9)))
    assert found.ranges == (range(9),)


def test_an_empty_stream_gives_nothing(path):
    assert stream([], make_work, key_of, opened(path)).tensors() == {}
    assert stream([], make_work, key_of, None).n_items == 0


def test_results_are_copies_without_graph_or_hidden_storage():
    buffer = torch.zeros(1000, requires_grad=True)

    def do(item):
        with torch.no_grad():
            buffer[:2] = item
        return {"x": buffer[:2]}

    found = stream(range(3), lambda: do, str, None).tensors()["x"]
    assert found.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert not found.requires_grad


def test_items_are_taken_one_by_one_as_they_are_needed():
    taken = []
    make, asked = counting()
    stream((taken.append(len(asked)) or item for item in range(5)), make, key_of, None)
    assert taken == [0, 1, 2, 3, 4]


MEASURE = """
import gc, resource, sys, torch
from lmm_lens.runs import RunFolder, stream
torch.set_num_threads(1)
peaks = []

def items():
    for item in range(20_000):
        if item in (2_000, 19_999):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        yield item, bytes(50_000)  # a prompt with its picture

def work(item):
    return {"effect": torch.full((1024,), float(item[0]))}

folder = None if sys.argv[1] == "memory" else RunFolder(sys.argv[1], "test", {})
found = stream(items(), lambda: work, lambda item: f"{item[0]:064d}", folder)
assert found.n_items == 20_000
print(*peaks)
"""


def growth(where) -> float:
    """By which part the peak of memory grows between item 2,000 and item 20,000."""
    answer = subprocess.run([sys.executable, "-c", MEASURE, str(where)], capture_output=True, text=True, check=True)
    early, late = map(int, answer.stdout.split())
    return late / early - 1


@pytest.mark.long
def test_memory_does_not_grow_with_the_stream(path):
    assert growth(path) < 0.02
    assert RunFolder.open(path).tensors()["effect"][:, 5].tolist() == list(range(20_000))


# ---------------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize("error", [ValueError("bad picture"), KeyboardInterrupt(), SystemExit(3)])
def test_what_was_finished_before_an_error_is_written(path, error):
    with pytest.raises(type(error)) as caught:
        stream(range(N), failing_at(17, error), key_of, opened(path))
    assert caught.value is error
    if isinstance(error, ValueError):
        assert error.__notes__ == ["while sweeping, item 17 ('item-17')"]
    make, asked = counting()
    assert_same(stream(range(N), make, key_of, opened(path)).tensors(), expected(range(N)))
    assert asked == list(range(17, N))


def test_an_error_of_the_stream_itself_loses_nothing(path):
    def items():
        yield from range(5)
        raise OSError("the data set is gone")

    with pytest.raises(OSError, match="the data set is gone"):
        stream(items(), make_work, key_of, opened(path))
    assert RunFolder.open(path).ranges == (range(5),)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"effect": torch.zeros(3, 4)}, "now:    effect float32 [3, 4]"),
        ({"effect": torch.zeros(3, 5)}, "now:    effect float32 [3, 5]"),
        ({**work(0), "effect": torch.zeros(3, 5).half()}, "now:    effect float16 [3, 5], index int64 []"),
        ({**work(0), "more": torch.zeros(1)}, "now:    effect float32 [3, 5], index int64 [], more float32 [1]"),
    ],
)
def test_an_item_with_other_tensors_is_named(path, found, said):
    with pytest.raises(ScoreError) as caught:
        stream(range(N), lambda: lambda item: found if item == 6 else work(item), key_of, opened(path))
    assert str(caught.value).splitlines() == [
        "item 6 ('item-6') has other tensors than the items before it",
        "  before: effect float32 [3, 5], index int64 []",
        f"  {said}",
    ]
    assert RunFolder.open(path).ranges == (range(6),)


def test_tensors_other_than_those_in_the_folder_are_refused_too(path):
    with opened(path) as folder:
        stream(range(3), make_work, key_of, folder)
    with pytest.raises(ScoreError, match=r"item 3 \('item-3'\) has other tensors"):
        stream(range(4), lambda: lambda item: {"effect": torch.zeros(2)}, key_of, opened(path))


@pytest.mark.parametrize("found", [None, {}, torch.zeros(2), {"x": 1.0}])
def test_work_that_gives_no_tensors_is_refused(found):
    with pytest.raises(ScoreError, match=rf"item 0 \('item-0'\) gave {type(found).__name__}, expected a mapping"):
        stream(range(3), lambda: lambda item: found, key_of, None)


def test_keys_must_be_text():
    with pytest.raises(ScoreError, match="the key of item 0 must be text, given int"):
        stream(range(3), make_work, lambda item: item, None)


def test_a_changed_data_set_is_refused_and_the_item_named(path):
    with opened(path) as folder:
        stream(range(10), make_work, key_of, folder)
    make, asked = counting()
    with pytest.raises(ScoreError) as caught:
        stream([*range(7), 70, 8, 9, 10], make, key_of, opened(path))
    assert str(caught.value).splitlines() == [
        "the data set is not the one of RunFolder 'run' of test: 10 items, not finished: "
        "item 7 was 'item-7' and is now 'item-70'",
        "  give the items as they were, in their order, or another folder; or changed='recompute', which computes anew "
        "what changed",
    ]
    assert not asked
    with pytest.raises(ScoreError, match=r"it ended after 6 items, and item 9 \('item-9'\) was finished before"):
        stream(range(6), make, key_of, opened(path))


def test_a_finished_run_takes_no_more_items(path):
    with opened(path) as folder:
        stream(range(10), make_work, key_of, folder)
        folder.finish(10)
    make, asked = counting()
    with pytest.raises(ScoreError, match=r"the run is finished, and now there is item 10 \('item-10'\)"):
        stream(range(12), make, key_of, opened(path))
    assert not asked


# ---------------------------------------------------------------------- progress


def test_nothing_is_printed_unless_asked(path, capfd):
    stream(range(N), make_work, key_of, opened(path))
    assert capfd.readouterr() == ("", "")


def test_a_progress_bar_tells_how_far_how_fast_and_which_part(path, monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(rich, "_console", Console(file=text, force_terminal=True, width=100))

    def slow():
        return lambda item: time.sleep(0.02) or work(item)

    stream(range(N), slow, key_of, opened(path), progress=True, what="ablating heads", seconds_per_part=0.2)
    shown = text.getvalue()
    assert "ablating heads" in shown
    assert f"{N}/{N}" in shown
    assert re.search("items/s, part [2-9]", shown)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_stream_of_unknown_length_has_a_progress_bar_too(monkeypatch, hidden):
    text = io.StringIO()
    monkeypatch.setattr(rich, "_console", Console(file=text, force_terminal=True, width=100))

    class Lengthless:
        """Has a length if what it wraps has."""

        def __init__(self, items):
            self.items = items

        def __len__(self):
            return len(self.items)

        def __iter__(self):
            return self.items

    items = (item for item in range(N))
    stream(Lengthless(items) if hidden else items, make_work, key_of, None, progress=True)
    assert f"{N}/?" in text.getvalue()
