"""Training of emoji-llava: what was cut goes on as if it had not been, and rates are those of the recipe."""

from itertools import islice

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmm_lens.bundled.emoji import checkpoint
from training.emoji_llava.seeds import measured
from training.emoji_llava.train import RECIPE, Run, between, share


def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = Run("align", tmp_path / "whole", seed=0, steps=4)
    whole.train()
    first = Run("align", tmp_path / "cut", seed=0, steps=4)
    losses = first.losses

    def two():
        yield from islice(losses(), 2)
        first.state.save(first.file(".pt"))
        raise KeyboardInterrupt

    first.losses = two
    with pytest.raises(KeyboardInterrupt):
        first.train()
    again = Run("align", tmp_path / "cut", seed=0, steps=4)
    assert again.state.step == 2
    again.train()
    assert again.state.step == whole.state.step == 4
    for name, value in whole.state.trained.items():
        assert torch.equal(again.state.trained[name], value), name
    assert again.state.cpu > 0


def test_another_seed_sees_other_pictures_and_begins_elsewhere(tmp_path):
    one, other = (Run("align", tmp_path, seed=seed, steps=4) for seed in (0, 1))
    assert one.state.rng.random() != other.state.rng.random()
    name = next(each for each in one.state.trained if each.endswith("patch_embedding.weight"))
    assert not torch.equal(one.state.trained[name], other.state.trained[name])


def test_the_rate_rises_stays_and_falls_to_nothing():
    recipe = RECIPE["frozen"] | {"warm_up": 10, "decay": 0.25}
    rates = [share(step, recipe, 100) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert set(rates[9:76]) == {1.0}
    assert rates[75:78] == pytest.approx([1.0, 24 / 25, 23 / 25])
    assert rates[-1] == pytest.approx(1 / 25)


def test_a_weight_moves_from_one_end_to_the_other():
    assert [between([2.0, 1.0], step, 4) for step in (0, 1, 2, 4, 9)] == [2.0, 1.75, 1.5, 1.0, 1.0]


def test_the_adapted_stage_begins_with_the_frozen_variant_that_is_in_the_box_or_its_own(tmp_path):
    expected = load_file(checkpoint("frozen"))
    boxed = Run("adapted", tmp_path, seed=0, steps=1).state.trained
    for name, value in expected.items():
        assert torch.equal(boxed[name], value.float()), name
    assert all(bool((value == 0).all()) for name, value in boxed.items() if name.endswith(".B"))
    save_file({name: value + 1 for name, value in expected.items()}, tmp_path / "frozen.safetensors")
    own = Run("adapted", tmp_path, seed=0, steps=1).state.trained
    for name, value in expected.items():
        assert torch.equal(own[name], (value + 1).float()), name


def test_the_nearest_word_is_that_of_the_largest_cosine_from_the_mean(tmp_path):
    alignment = Run("align", tmp_path, seed=0, steps=1).alignment
    visual = torch.randn(2, 36, alignment.embedded.shape[1], generator=torch.Generator().manual_seed(0))
    visual[0, :3] = 7 * (alignment.embedded[[5, 98, 104]] - alignment.mean) + alignment.mean  # longer, the same way
    found = alignment.nearest(visual)
    assert found[0, :3].tolist() == [5, 98, 104]
    for patch in range(36):
        cosines = [
            torch.cosine_similarity(visual[1, patch] - alignment.mean, word - alignment.mean, dim=0)
            for word in alignment.embedded
        ]
        assert found[1, patch] == torch.stack(cosines).argmax()


def test_seeds_are_measured_on_things_and_on_what_is_behind_them(tmp_path):
    run = Run("align", tmp_path, seed=0, steps=1)
    trained = load_file(checkpoint("frozen"))
    with torch.no_grad():
        for name, value in run.state.trained.items():
            value.copy_(trained[name])
    found = measured(run, 20)
    assert list(found) == ["things", "background", "things kept from the language model"]
    assert min(found.values()) > 0.9  # the card has .98
    with torch.no_grad():
        for value in run.state.trained.values():
            value.zero_()
    assert max(measured(run, 5).values()) < 0.3  # all patches are alike: at most one of ten colours is right
