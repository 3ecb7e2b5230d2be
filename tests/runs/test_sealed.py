"""Files that the library reads back are sealed: a bit that has turned over never becomes another number."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from lmm_lens import (
    HeadEffects,
    HeadScores,
    HeadSet,
    Lens,
    PatchScores,
    activation_patching,
    data,
    head_effects,
    score_heads,
)
from lmm_lens.bundled import shapes
from lmm_lens.errors import ScoreError
from lmm_lens.runs import files
from lmm_lens.runs.checkpoint import Checkpoint
from tests.support.color_pairs import batch

N_FLIPS = 150
Load = Callable[[Path], Any]


@pytest.fixture(scope="module")
def made(lens: Lens, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Load]]:
    """A file of each kind that the library reads back, and what reads it."""
    folder = tmp_path_factory.mktemp("sealed")
    samples = data.shapes(n=3, seed=1)
    score_heads(lens, [sample.prompt(lens) for sample in samples]).save(folder / "scores")
    head_effects(lens, samples, rows="last", heads=HeadSet([(1, 4), (3, 4)], 6, 8)).save(folder / "effects")
    pairs = shapes.color_pairs(2)
    clean, corrupt = (batch(lens, [pair[i] for pair in pairs]) for i in (0, 1))
    answers = [(one.answer, other.answer) for one, other in pairs]
    activation_patching(lens, clean, corrupt, "z", "head", answers=answers).save(folder / "patching")
    checkpoint = Checkpoint(lens, "test", {"x": 1}, folder / "checkpoint")
    checkpoint.put(a=torch.randn(3, 4), b=torch.arange(5))

    def again(path: Path) -> dict[str, torch.Tensor]:
        return Checkpoint(Lens(lens.model, lens.processor), "test", {"x": 1}, path).parts

    return {
        "scores": (folder / "scores", HeadScores.load),
        "effects": (folder / "effects", HeadEffects.load),
        "patching": (folder / "patching", PatchScores.load),
        "checkpoint": (folder / "checkpoint", again),
    }


def numbers(loaded: Any) -> bytes:
    """Every number and word of what was read."""
    if isinstance(loaded, dict):
        return b"".join(f"{name}{x.dtype}{x.shape}".encode() + x.numpy().tobytes() for name, x in loaded.items())
    return repr([_plain(value) for value in vars(loaded).values()]).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    return [_plain(each) for each in vars(value).values()] if type(value).__name__ == "Outcomes" else value


@pytest.mark.attack
@pytest.mark.parametrize("kind", ["scores", "effects", "patching", "checkpoint"])
def test_a_bit_that_has_turned_over_is_seen(made, kind, tmp_path, record_property):
    path, load = made[kind]
    whole, right, chance = path.read_bytes(), numbers(load(path)), random.Random(0)
    refused = 0
    for _ in range(N_FLIPS):
        flipped, bit = bytearray(whole), chance.randrange(8 * len(whole))
        flipped[bit // 8] ^= 1 << bit % 8
        other = tmp_path / path.name
        other.write_bytes(flipped)
        try:
            found = load(other)
        except ScoreError:
            refused += 1
        else:  # a bit that says nothing, as in the case of a letter of an escape sequence
            assert numbers(found) == right, bit
    assert refused > 0.98 * N_FLIPS
    record_property("bits turned over in files that became no other number", N_FLIPS)


@pytest.mark.parametrize("kind", ["scores", "effects", "patching"])
@pytest.mark.parametrize(
    "craft",
    [
        lambda about: about.get("about", about).update(model=None),
        lambda about: about.get("about", about).update(model=[1, 2]),
        lambda about: about.update(about=None, answers=None, settings=None),
        lambda about: about.update(model=3, about=3, layers=3, ids=3),
        lambda about: about.update(metric=["visual_mass"], units=[[["x"]]], about={"units": 1, "shape": [2]}),
        lambda about: about.update(ids=["a"] * 99, answers=[["a", "b"]] * 99, model={"n_layers": 2**60, "n_heads": 1}),
        lambda about: about.update(about={"units": [[[10**30, 0]]], "shape": [6, 8]}, units=[], settings="no"),
    ],
)
def test_a_sealed_file_whose_header_means_nothing_is_refused_with_a_sentence(made, kind, craft, tmp_path):
    path, load = made[kind]
    names = {"scores": "head scores", "effects": "head effects", "patching": "patch scores"}
    tensors, about = files.read(path, names[kind], None, ())
    before = json.dumps(about)
    craft(about)
    assert json.dumps(about) != before
    about.pop("format")
    (tmp_path / "crafted").write_bytes(files.packed(names[kind], tensors, about))
    with pytest.raises(ScoreError) as refusal:
        load(tmp_path / "crafted")
    assert "'crafted'" in str(refusal.value)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("scores", lambda x: x * torch.nan, "per_prompt in 'crafted' holds no number: every entry is NaN"),
        ("scores", lambda x: torch.full_like(x, torch.inf), "holds no number: every entry is infinite"),
        ("scores", lambda x: x[:, :, :-1], r"has the shape \[3, 6, 7\], expected \[prompt, layer 6, head 8\]"),
        ("scores", lambda x: x[:0], r"has the shape \[0, 6, 8\], expected"),
        ("scores", lambda x: x[0], r"has the shape \[6, 8\], expected"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_name(made, name, change, text, tmp_path):
    path, load = made[name]
    tensors, about = files.read(path, "head scores", None, ())
    about.pop("format")
    (tmp_path / "crafted").write_bytes(files.packed("head scores", {n: change(x) for n, x in tensors.items()}, about))
    with pytest.raises(ScoreError, match=text):
        load(tmp_path / "crafted")


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 7 + b"\x0f",  # 2^60 bytes of header
        b"\x10\x00\x00\x00\x00\x00\x00\x00" + b"{" * 16,
        (20_000).to_bytes(8, "little") + b"[" * 20_000,
        save({"x": torch.zeros(1)}, {"lmm_lens": "[" * 5_000 + "]" * 5_000}),
        save({"x": torch.zeros(1)}, {"lmm_lens": '{"format": ' + "9" * 5_000 + "}"}),
        save({"x": torch.zeros(1)}, {"lmm_lens": '{"format": 1e999}'}),
    ],
    ids=["a long header", "braces", "brackets", "nested", "a long number", "infinity"],
)
def test_crafted_headers_get_a_sentence(made, header, tmp_path):
    (tmp_path / "crafted").write_bytes(header)
    for _, load in made.values():
        with pytest.raises(ScoreError, match=r"'crafted' (is truncated or no safetensors file|holds no )"):
            load(tmp_path / "crafted")


def test_a_file_of_before_is_not_taken_for_a_sealed_one(tmp_path):
    about = {"format": "lmm-lens head scores 1", "metric": "visual_mass", "query": "last", "model": {}, "settings": {}}
    (tmp_path / "old").write_bytes(save({"per_prompt": torch.zeros(1, 2, 2)}, {"lmm_lens": json.dumps(about)}))
    with pytest.raises(ScoreError, match=r"'old' was written before such files had a checksum\n  compute the head sc"):
        HeadScores.load(tmp_path / "old")


def test_a_file_is_replaced_whole_or_not_at_all(made, tmp_path, lens):
    scores = HeadScores.load(made["scores"][0])
    scores.save(tmp_path / "x")
    before = (tmp_path / "x").read_bytes()
    (tmp_path / ".x.new").write_bytes(b"left by a save that was killed")
    scores.save(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
