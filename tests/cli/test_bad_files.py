"""Files, folders and names that mean harm, or are harmed: a sentence each, nothing written elsewhere."""

from pathlib import Path

import pytest

from lmm_lens.errors import LensError
from lmm_lens.warnings import warn

SMALL = "model: demo\nn: 4\nheads: [[1, 4]]\ndata: {kind: shapes, n: 4, kinds: [color]}\n"


@pytest.fixture
def sweep(cli, tmp_path):
    """The folder of a finished sweep."""
    (tmp_path / "sweep.yaml").write_text(SMALL + f"out: {tmp_path / 'out'}\n", encoding="utf-8")
    assert cli("sweep", tmp_path / "sweep.yaml").status == 0
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("", "is empty, and a sweep of everything is hardly meant"),
        ("# nothing but words\n", "is empty, and a sweep of everything is hardly meant"),
        ("[" * 5_000 + "]" * 5_000, "is no YAML"),
        ("n: " + "9" * 5_000, "is no YAML"),
        ('out: "a\\0b"\n' + SMALL, "no folder can be called 'a\\x00b': it holds a NUL character"),
        (SMALL.replace("n: 4, kinds", "n: 4, template: '{question:>1000000000}', kinds"), "error: "),
    ],
    ids=["empty", "comments", "nested", "a long number", "NUL", "an option that there is not"],
)
def test_configs_that_mean_harm(cli, tmp_path, monkeypatch, config, text):
    (tmp_path / "sweep.yaml").write_text(config, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    result = cli("sweep", tmp_path / "sweep.yaml")
    assert result.status == 2
    assert text in result.err
    assert "Traceback" not in result.err
    assert len(result.err) < 800


def test_a_report_that_cannot_be_written_is_a_sentence(cli, sweep):
    (sweep / ".effects.csv.new").mkdir()
    result = cli("report", sweep)
    assert result.status == 2
    assert "the report cannot be written into 'out': Is a directory\n  what the sweep found is safe" in result.err


def test_a_report_does_not_write_through_links(cli, sweep, tmp_path):
    for name in ("effects.csv", "report.html", "sorted_effects.png"):
        (tmp_path / name).write_text("not yours", encoding="utf-8")
        (sweep / name).unlink()
        (sweep / name).symlink_to(tmp_path / name)
    assert cli("report", sweep).status == 0
    for name in ("effects.csv", "report.html", "sorted_effects.png"):
        assert (tmp_path / name).read_text(encoding="utf-8") == "not yours"
        assert not (sweep / name).is_symlink()


def test_names_do_not_move_the_cursor(cli, tmp_path):
    result = cli("report", tmp_path / "a \x1b[2J\x07\x9b31m folder")
    assert result.status == 2
    assert "\\x1b[2J\\x07\\x9b31m" in result.err
    assert not set(result.err) & {"\x07", "\x9b"}
    assert str(LensError("a\x1b[2Jb\n  c\td")) == "a\\x1b[2Jb\n  c\td"
    with pytest.warns(UserWarning, match=r"^a\\x1b\[2Jb$"):
        warn("a\x1b[2Jb")


def test_errors_of_files_and_memory_are_sentences(cli, tmp_path, monkeypatch):
    from lmm_lens.cli import report

    (tmp_path / "manifest.json").touch()
    for error, text in (
        (PermissionError(13, "Permission denied", "x.html"), "'x.html' cannot be read or written: Permission denied"),
        (OSError(28, "No space left on device"), "cannot be read or written: No space left on device"),
        (MemoryError(), "memory ran out\n  give --n, a smaller dtype"),
    ):

        def fails(folder: Path, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(report, "run", fails)
        result = cli("report", tmp_path)
        assert result.status == 2
        assert text in result.err
        assert "Traceback" not in result.err
