"""The run folder: whose it is, what it keeps, and who may work in it."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import pytest
import torch

from lmm_lens.errors import ScoreError
from lmm_lens.runs import RunFolder

ABOUT = {"model": {"weights": "ab12", "n_layers": 6}, "arguments": {"ablation": "zero"}, "seed": 0}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


def made(path, about=ABOUT, kind="head effects") -> RunFolder:
    return RunFolder(path, kind, about)


def numbers(n, start=0):
    return {"effect": torch.arange(start, start + 2 * n).reshape(n, 2) / 7}


def refused(path, **changes) -> str:
    with pytest.raises(ScoreError) as caught:
        made(path, **changes)
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


# ---------------------------------------------------------------------- what it keeps


def test_parts_written_in_any_order_come_back_in_the_order_of_the_items(path):
    with made(path) as folder:
        folder.write(5, ["f", "g"], numbers(2, 10))
        folder.write(0, ["a", "b", "c"], numbers(3))
        assert folder.ranges == (range(3), range(5, 7))
        folder.write(3, ["d", "e"], numbers(2, 6))
    for again in (folder, made(path), RunFolder.open(path)):
        assert again.ranges == (range(7),)
        assert again.n_items == 7
        assert [again.key(index) for index in range(7)] == list("abcdefg")
        assert [part.first for part in again.parts()] == [0, 3, 5]
        assert torch.equal(again.tensors()["effect"], numbers(7)["effect"])


def test_every_bit_and_data_type_comes_back(path):
    given = {
        "half": torch.tensor([[1.5, torch.nan], [-0.0, torch.inf]], dtype=torch.bfloat16),
        "whole": torch.tensor([2**53 + 1, -1]),
        "yes": torch.tensor([True, False]),
        "none": torch.zeros(2, 0),
        "turned": torch.arange(12.0).reshape(2, 2, 3).transpose(1, 2),
    }
    with made(path) as folder:
        folder.write(0, ["a", "b"], given)
    found = made(path).tensors()
    assert set(found) == set(given)
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].flatten().view(torch.uint8).equal(tensor.contiguous().flatten().view(torch.uint8))


def test_keys_may_be_any_text(path):
    keys = ["", "日本語", 'quote " \\ \n', "\ud800", "x" * 5000]
    with made(path) as folder:
        folder.write(0, keys, numbers(5))
    again = made(path)
    assert [again.key(index) for index in range(5)] == keys


def test_a_part_is_on_the_disk_before_it_has_its_name_and_its_name_before_the_write_returns(path, monkeypatch):
    folder, calls = made(path), []

    def watched(name):
        real = getattr(os, name)

        def call(*given):
            target = given[0] if name == "replace" else os.readlink(f"/proc/self/fd/{given[0]}")
            calls.append((name, os.path.basename(target)))
            return real(*given)

        monkeypatch.setattr(os, name, call)

    watched("fsync")
    watched("replace")
    folder.write(0, ["a"], numbers(1))
    half = ".000000000-000000000.safetensors.new"
    assert calls == [("fsync", half), ("replace", half), ("fsync", "parts")]


def test_notes_and_what_a_run_ends_with_survive(path):
    with made(path) as folder:
        assert (folder.state, folder.results, folder.finished) == ({}, {}, False)
        folder.note(rows=8)
        folder.note(why="memory")
        folder.write(0, ["a", "b"], numbers(2))
        folder.finish(2, {"accuracy": 0.5})
    again = RunFolder.open(path, "head effects")
    assert again.state == {"rows": 8, "why": "memory"}
    assert (again.finished, again.n_items, again.results) == (True, 2, {"accuracy": 0.5})
    assert repr(again) == "RunFolder 'run' of head effects: 2 items, finished"


def test_a_run_of_no_items_can_be_finished(path):
    with made(path) as folder:
        folder.finish(0)
    assert made(path).finished
    assert made(path).tensors() == {}


def test_a_run_with_a_hole_is_not_finished(path):
    folder = made(path)
    folder.write(0, ["a"], numbers(1))
    folder.write(2, ["c"], numbers(1))
    with pytest.raises(ScoreError, match="a run of 3 items is not finished with items 0 to 0, 2 to 2"):
        folder.finish(3)
    assert not folder.finished


def test_items_are_written_once_and_alike(path):
    folder = made(path)
    folder.write(2, ["c", "d"], numbers(2))
    with pytest.raises(ScoreError, match="items 0 to 2 overlap those that are finished: 2 to 3"):
        folder.write(0, ["a", "b", "c"], numbers(3))
    with pytest.raises(ScoreError, match=r"other tensors.*\n.*finished: effect float32 \[2\]\n.*given: .*\[3\]"):
        folder.write(0, ["a"], {"effect": torch.zeros(1, 3)})
    with pytest.raises(ScoreError, match=r"each of its 2 keys, given effect \(3, 2\)"):
        folder.write(0, ["a", "b"], numbers(3))
    with pytest.raises(ScoreError, match="item 1 is not finished; finished are 2 to 3"):
        folder.key(1)
    assert folder.ranges == made(path).ranges == (range(2, 4),)


def test_the_folder_can_be_read_without_this_library(path):
    from safetensors import safe_open

    with made(path) as folder:
        folder.write(0, ["a", "b"], numbers(2))
    (file,) = (path / "parts").iterdir()
    assert file.name == "000000000-000000001.safetensors"
    with safe_open(file, "pt") as part:
        assert torch.equal(part.get_tensor("effect"), numbers(2)["effect"])
        header = json.loads(part.metadata()["lmm_lens"])
    assert (header["first"], header["keys"]) == (0, ["a", "b"])
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["about"] == ABOUT
    assert manifest["versions"][0]["torch"] == version("torch")


# ---------------------------------------------------------------------- whose it is


def test_another_run_is_refused_and_every_difference_named(path):
    made(path).close()
    other = {"model": {"weights": "x" * 100, "n_layers": 6}, "arguments": {}, "seed": 1}
    text = refused(path, about=other)
    assert "'run' belongs to another run: it differs in 4 fields" in text
    assert 'model.weights: "ab12" there, "' + "x" * 39 + "… here" in text
    assert 'arguments.ablation: "zero" there, nothing here' in text
    assert "seed: 0 there, 1 here" in text
    assert 'kind: "head effects" there, "patching" here' in refused(path, kind="patching")


def test_long_values_are_shown_where_they_differ(path):
    made(path, {"prompts": [*range(100)]}).close()
    text = refused(path, about={"prompts": [*range(99), 7]})
    assert "prompts: … 90, 91, 92, 93, 94, 95, 96, 97, 98, 99] there, …, 90, 91, 92, 93, 94, 95, 96, 97, 98, 7]" in text


def test_equal_things_said_differently_are_the_same_run(path):
    made(path, {"heads": ((1, 2),), "x": float("nan"), "by": {1: "a"}}).close()
    assert made(path, {"x": float("nan"), "by": {"1": "a"}, "heads": [[1, 2]]}).n_items == 0


def test_other_versions_are_told_once_and_recorded(path):
    made(path, ABOUT | {"versions": {"torch": "1.0"}}).close()
    with pytest.warns(UserWarning, match=r"numbers may differ in the last bits: torch: \"1.0\" before, \"2") as told:
        made(path).close()
    assert len(told) == 1
    again = made(path)  # a second warning would be an error
    assert [each["torch"] for each in again.manifest.versions] == ["1.0", version("torch")]
    assert again.about == ABOUT


def test_a_folder_of_other_things_is_refused_and_left_as_it_is(path):
    path.mkdir()
    (path / "thesis.tex").write_text("hard work")
    assert "it holds 'thesis.tex' and has no manifest.json" in refused(path)
    (path / "manifest.json").write_text('{"name": "a web page"}')
    assert "the manifest of the run folder 'run' is damaged: its checksum is wrong" in refused(path)
    assert sorted(os.listdir(path)) == ["manifest.json", "thesis.tex"]


@pytest.mark.parametrize("damage", [b"", b"\x00\xff", b"{", b"[]"])
def test_a_damaged_manifest_is_refused(path, damage):
    made(path).close()
    (path / "manifest.json").write_bytes(damage)
    assert "is damaged" in refused(path)
    with pytest.raises(ScoreError, match="is damaged"):
        RunFolder.open(path)


def test_any_changed_letter_of_the_manifest_is_noticed(path):
    made(path).close()
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    assert "its checksum is wrong" in refused(path, about=ABOUT | {"seed": 1})


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    assert "does not exist\n  make it first" in refused(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    assert "the run folder 'file' cannot be made: File exists" in refused(tmp_path / "file")
    assert "must be of JSON types" in refused(tmp_path / "run", about={"model": torch.zeros(1)})


def test_what_a_process_leaves_that_was_killed_while_it_made_the_folder_is_no_obstacle(path):
    (path / "parts").mkdir(parents=True)
    (path / "lock").write_text("process 1")
    (path / ".manifest.json.new").write_text("{")
    assert made(path).n_items == 0
    assert sorted(os.listdir(path)) == ["lock", "manifest.json", "parts"]


def test_half_files_are_removed(path):
    with made(path) as folder:
        folder.write(0, ["a"], numbers(1))
    (path / "parts" / ".000000001-000000001.safetensors.new").write_bytes(b"half")
    (path / ".state.json.new").write_bytes(b"half")
    assert made(path).ranges == (range(1),)
    assert not [file for file in path.rglob("*") if file.name.endswith(".new")]


# ---------------------------------------------------------------------- who may work in it

HOLD = "import fcntl, sys, time; f = open(sys.argv[1], 'r+'); fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB); "


def test_a_second_process_is_refused_until_the_first_is_killed(path):
    made(path).close()
    command = [sys.executable, "-c", HOLD + "print('held', flush=True); time.sleep(60)", path / "lock"]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        assert "the run folder 'run' is in use by process " in refused(path)
        assert RunFolder.open(path).n_items == 0  # reading goes on
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert made(path).n_items == 0
    finally:
        other.kill()
        other.stdout.close()


def test_the_folder_is_locked_while_it_is_open(path):
    folder = made(path)
    command = [sys.executable, "-c", HOLD, path / "lock"]
    assert b"BlockingIOError" in subprocess.run(command, capture_output=True).stderr
    folder.close()
    assert subprocess.run(command).returncode == 0


def test_a_forked_child_does_not_hold_the_lock_beyond_its_parent(path):
    folder = made(path)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, b"it runs, and has let go")
        time.sleep(60)
        os._exit(0)
    try:
        os.read(read, 1)  # on a busy machine a child may not have run at all yet
        folder.close()
        assert subprocess.run([sys.executable, "-c", HOLD, path / "lock"]).returncode == 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_the_same_process_may_begin_again_and_its_earlier_self_writes_no_more(path):
    before = made(path)
    before.write(0, ["a"], numbers(1))
    now = made(path)
    with pytest.raises(ScoreError, match="opened anew by this process"):
        before.write(1, ["b"], numbers(1))
    now.write(1, ["b"], numbers(1))
    assert made(path).n_items == 2


def test_an_error_that_is_kept_does_not_keep_the_lock(path):
    made(path).close()
    with pytest.raises(ScoreError) as kept:
        made(path, {})
    assert subprocess.run([sys.executable, "-c", HOLD, path / "lock"]).returncode == 0
    del kept


def test_what_was_opened_for_reading_cannot_be_written(path):
    made(path).close()
    folder = RunFolder.open(path)
    for write in (lambda: folder.write(0, ["a"], numbers(1)), lambda: folder.note(x=1), lambda: folder.finish(0)):
        with pytest.raises(ScoreError, match=r"was opened for reading only\n  open it with RunFolder"):
            write()
    with pytest.raises(ScoreError, match="holds head effects, expected patching"):
        RunFolder.open(path, "patching")
    with pytest.raises(ScoreError, match=r"'parts' is no run folder: it has no manifest.json"):
        RunFolder.open(path / "parts")
