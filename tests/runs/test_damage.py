"""Damaged parts and full disks: told, and survived."""

import os
import warnings

import pytest
import torch

from lmm_lens.errors import ScoreError
from lmm_lens.runs import RunFolder, RunPart, stream
from lmm_lens.runs.disk import DamagedError
from lmm_lens.runs.part import file_name, read
from tests.support.sweeps import assert_same, expected, key_of, make_work, work

N = 12
SECOND = file_name(range(4, 8))


@pytest.fixture
def path(tmp_path):
    """A finished run in three parts."""
    with RunFolder(tmp_path / "run", "test", {}) as folder:
        for first in range(0, N, 4):
            items = range(first, first + 4)
            folder.write(first, list(map(key_of, items)), expected(items))
        folder.finish(N)
    return tmp_path / "run"


def truncated(data):
    return data[: len(data) // 2]


def without_its_end(data):
    return data[:-1]


def flipped(data):
    return data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]


def garbage(data):
    return os.urandom(len(data))


def empty(data):
    return b""


def zeros(data):
    return bytes(len(data))


@pytest.mark.parametrize("damage", [truncated, without_its_end, flipped, garbage, empty, zeros])
def test_a_damaged_part_is_named_moved_aside_and_computed_again(path, damage):
    file = path / "parts" / SECOND
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=f"'{SECOND}' in the run folder 'run' is damaged: .*left out"):
        assert RunFolder.open(path).ranges == (range(4), range(8, 12))
    assert file.exists()  # who only reads changes nothing
    with pytest.warns(UserWarning, match=f"'{SECOND}' .* is damaged: .*its items will be computed again") as told:
        folder = RunFolder(path, "test", {})
    assert len(told) == 1
    assert not folder.finished
    assert file.with_name(f"{SECOND}.corrupt").exists()
    done = []

    def make_watched():
        return lambda item: done.append(item) or work(item)

    stream(range(N), make_watched, key_of, folder)
    assert done == [4, 5, 6, 7]
    assert_same(RunFolder(path, "test", {}).tensors(), expected(range(N)))  # with no more warnings


@pytest.mark.attack
def test_every_single_flipped_bit_is_noticed_or_changes_nothing(tmp_path, record_property):
    part = RunPart(3, ("a", "b"), {"x": torch.tensor([[0.5], [-2.0]]), "n": torch.tensor([1, 2])})
    data, file = part.to_bytes(), tmp_path / "part"
    noticed = 0
    for place in range(len(data)):
        for bit in range(8):
            file.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            try:
                found = read(file)
            except DamagedError:
                noticed += 1
                continue
            assert (found.first, found.keys) == (3, ("a", "b"))
            assert_same(found.tensors, part.tensors)
    assert noticed > 7 * len(data)  # unnoticed are a few blanks of the header
    record_property("bits turned over in files that became no other number", 8 * len(data))


def test_a_part_with_the_name_of_another_is_damaged(path):
    parts = path / "parts"
    (parts / SECOND).write_bytes((parts / file_name(range(4))).read_bytes())
    with pytest.warns(UserWarning, match="its name is not that of items 0 to 3"):
        assert RunFolder(path, "test", {}).ranges == (range(4), range(8, 12))


def test_of_parts_that_overlap_the_first_stays(path):
    extra = RunPart(3, ("x", "y"), expected([3, 4]))
    (path / "parts" / file_name(range(3, 5))).write_bytes(extra.to_bytes())
    with pytest.warns(UserWarning, match="it overlaps the part before it"):
        assert_same(RunFolder(path, "test", {}).tensors(), expected(range(N)))


def test_a_part_of_other_tensors_is_damaged(path):
    other = RunPart(12, ("x",), {"effect": torch.zeros(1, 2)})
    (path / "parts" / file_name(range(12, 13))).write_bytes(other.to_bytes())
    with pytest.warns(UserWarning, match="its tensors are others"):
        assert RunFolder(path, "test", {}).n_items == N


def test_a_part_that_is_damaged_while_it_is_in_use_is_an_error(path):
    folder = RunFolder(path, "test", {})
    file = path / "parts" / SECOND
    file.write_bytes(flipped(file.read_bytes()))
    with pytest.raises(ScoreError, match=rf"(?s)'{SECOND}' .* was damaged while it was in use.*run the same command"):
        folder.tensors()


def test_a_damaged_state_is_told_and_the_parts_stay(path):
    (path / "state.json").write_bytes(b"{")
    with pytest.warns(UserWarning, match=r"'state.json' .* is damaged: no JSON .* its notes are lost"):
        folder = RunFolder(path, "test", {})
    assert (folder.finished, folder.n_items) == (False, N)
    folder.finish(N)
    assert RunFolder.open(path).finished


# ---------------------------------------------------------------------- a full disk


def full(file):
    """The system's own full disk behind the name under which a file would be written."""
    os.symlink("/dev/full", file.with_name(f".{file.name}.new"))


def test_a_full_disk_is_told_and_survived(tmp_path):
    path = tmp_path / "run"

    def make_filling():
        def filling(item):
            if item == 5:
                full(path / "parts" / file_name(range(5, 6)))
            return work(item)

        return filling

    with pytest.raises(ScoreError) as caught:
        stream(range(N), make_filling, key_of, RunFolder(path, "test", {}), seconds_per_part=0)
    assert str(caught.value).splitlines() == [
        "items 5 to 5 could not be written to the run folder 'run': No space left on device",
        "  the 5 items that were written before are safe",
        "  free space, or make the folder writable, and run the same command again",
    ]
    assert not hasattr(caught.value, "__notes__")
    assert RunFolder.open(path).ranges == (range(5),)
    again = stream(range(N), make_work, key_of, RunFolder(path, "test", {}), seconds_per_part=0)
    assert_same(again.tensors(), expected(range(N)))


def test_a_disk_that_is_full_from_the_start_or_at_the_end_is_told(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    full(path / "manifest.json")
    with pytest.raises(ScoreError, match="the run folder 'run' cannot be made: No space left on device"):
        RunFolder(path, "test", {})
    folder = RunFolder(path, "test", {})
    folder.note(rows=4)
    full(path / "state.json")
    with pytest.raises(ScoreError, match="the state of the run folder 'run' could not be written: No space left"):
        folder.finish(0)
    assert (folder.finished, RunFolder.open(path).state) == (False, {"rows": 4})
    folder.finish(0)
    assert RunFolder.open(path).finished


def test_an_error_of_the_work_comes_first_also_on_a_full_disk(tmp_path):
    path = tmp_path / "run"

    def make_failing():
        def failing(item):
            if item == 3:
                full(path / "parts" / file_name(range(3)))
                raise KeyError("the work's own")
            return work(item)

        return failing

    with pytest.raises(KeyError) as caught:
        stream(range(N), make_failing, key_of, RunFolder(path, "test", {}))
    notes = caught.value.__notes__
    assert notes[0] == "while sweeping, item 3 ('item-3')"
    assert "No space left on device" in notes[1]


def test_warnings_are_told_where_the_folder_was_opened(path):
    (path / "state.json").write_bytes(b"")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        RunFolder(path, "test", {})
    assert told[0].filename == __file__
