"""Patching in the vision tower: each cell against a run with the intervention that a user would write."""

from dataclasses import replace

import pytest
import torch

from lmm_lens import AblateHeads, PatchHeads, PatchResidual, PatchScores, activation_patching
from lmm_lens.bundled import shapes
from lmm_lens.errors import ScoreError
from tests.support.color_pairs import batch


@pytest.fixture(scope="module")
def pair(lens):
    ((clean, corrupt),) = shapes.color_pairs(1, seed=0)
    return batch(lens, [clean]), batch(lens, [corrupt])


def difference(lens, logits, ids):
    right, wrong = ids
    return float(logits[0, -1, right].double() - logits[0, -1, wrong].double())


@pytest.mark.parametrize("by", ["span", "head", "patch"])
def test_every_cell_is_a_run_with_that_one_activation(lens, pair, by, tmp_path):
    clean, corrupt = pair
    site = "vision.z" if by == "head" else "vision.resid_post"
    layers = [1] if by == "patch" else None
    scores = activation_patching(lens, clean, corrupt, site, by, layers=layers)
    source = lens.run(clean, read=[site])
    below = lens.run(corrupt).logits
    ids = int(source.logits[0, -1].argmax()), int(below[0, -1].argmax())
    low, high = difference(lens, below, ids), difference(lens, source.logits, ids)
    masks = {"image": "image", "class": "class"}
    for place, layer in enumerate(scores.layers):
        for number, unit in list(enumerate(scores.units))[:: 6 if by == "patch" else 1]:
            if by == "head":
                patch = PatchHeads([(layer, int(unit))], source, part="vision")
            else:
                rows = masks[unit] if by == "span" else [int(unit)]
                patch = PatchResidual([layer], source, rows, "resid_post", part="vision")
            found = difference(lens, lens.run(corrupt, [patch]).logits, ids)
            assert float(scores.per_pair[0, place, number]) == pytest.approx((found - low) / (high - low), abs=1e-4)
    assert "the vision tower is not replayed" in scores.how
    scores.save(tmp_path / "scores.safetensors")
    assert torch.equal(PatchScores.load(tmp_path / "scores.safetensors", lens).per_pair, scores.per_pair)


def test_all_patches_of_the_last_layer_bring_the_whole_answer_back(lens, pair):
    scores = activation_patching(lens, *pair, "vision.resid_post", "span")
    assert scores.units == ("image", "class")
    assert float(scores.per_pair[0, -1, 0]) == pytest.approx(1, abs=1e-4)
    assert float(scores.per_pair[0, -1, 1]) == pytest.approx(0, abs=1e-4)


def test_the_whole_path_is_one_figure(lens, pair):
    tower = activation_patching(lens, *pair, "vision.resid_post", "span")
    decoder = activation_patching(lens, *pair, "resid_pre", "span")
    ax = decoder.plot(tower=tower)
    drawn = torch.from_numpy(ax.images[0].get_array().filled(torch.nan))
    names = ["image", "class", *(unit for unit in decoder.units if unit != "image")]
    assert [label.get_text().replace(" ", "_") for label in ax.get_xticklabels()] == names
    assert [label.get_text() for label in ax.get_yticklabels()] == ["V0", "V1", "V2", *map(str, range(6))]
    torch.testing.assert_close(drawn[:3, :2], tower.values.to(drawn))
    torch.testing.assert_close(drawn[3:, 0], decoder.values[:, decoder.units.index("image")].to(drawn))
    torch.testing.assert_close(drawn[3:, -1], decoder.values[:, -1].to(drawn))
    assert bool(drawn[:3, 2:].isnan().all())
    assert bool(drawn[3:, 1].isnan().all())
    ((clean, corrupt),) = shapes.color_pairs(1, seed=5)
    other = activation_patching(lens, batch(lens, [clean]), batch(lens, [corrupt]), "resid_pre", "span")
    with pytest.raises(ScoreError, match="of other pairs, or of another model"):
        other.plot(tower=tower)
    with pytest.raises(ScoreError, match=r"both by span\n  given resid_pre by span and vision.resid_post by span"):
        tower.plot(tower=decoder)


def test_its_best_heads_are_heads_of_the_tower(lens, pair, tmp_path):
    scores = activation_patching(lens, *pair, "vision.z", "head")
    scores.save(tmp_path / "scores.safetensors")
    for each in (scores, PatchScores.load(tmp_path / "scores.safetensors", lens)):
        best = each.top(2)
        assert (best.n_layers, best.n_heads, best.part) == (3, 4, "vision")
        assert lens.run(pair[0], [AblateHeads(best)]).reports[0].n_edits == 2 * 37


def test_tokens_of_the_tower_are_not_laid_over_the_picture(lens, pair):
    scores = activation_patching(lens, *pair, "vision.resid_post", "patch", layers=[2])
    with pytest.raises(ScoreError, match=r"tokens of the vision tower.*\n  lens.vision.patches\(prompt\) says"):
        scores.plot_over_image(pair[0], 2)
    tiles = replace(scores, units=tuple(f"0:{unit}" for unit in scores.units))
    assert tiles.to_pandas()["patch"][0].startswith("0:")


@pytest.mark.parametrize(
    ("site", "by", "options", "message"),
    [
        ("vision.z", "span", {}, "z is patched by head"),
        ("vision.resid_post", "head", {}, "resid_post cannot be patched by head"),
        ("vision.resid_post", "span", {"tokens_per_pass": 64}, "takes no checkpoint or tokens_per_pass"),
        ("vision.resid_post", "span", {"layers": []}, "no layers were given"),
    ],
)
def test_what_does_not_go_together_is_refused(lens, pair, site, by, options, message):
    with pytest.raises(ScoreError, match=message):
        activation_patching(lens, *pair, site, by, **options)
