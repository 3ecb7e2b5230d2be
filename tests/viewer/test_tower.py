"""The vision tower on a page: against eager attention, the library's maps and scores; what it refuses."""

import copy

import numpy as np
import pytest
import torch

from lmm_lens import HeadSet, Lens, LensError, Read, attention_map, score_heads
from lmm_lens.bundled import shapes
from lmm_lens.errors import HookError, PromptError
from lmm_lens.viewer import tower_reading, view
from lmm_lens.viewer.tower_reading import MAX_TOWER_VALUES
from tests.support.eager_tower import eager_tower
from tests.support.families import lens_of, prompt_of
from tests.viewer.pages import Shown

TOLERANCE = 2e-5
N_VISUAL = 36  # of the bundled model, behind two tokens; in the tower behind a class token


@pytest.fixture(scope="module")
def asked(lens):
    example = shapes.examples(1, kinds=("color",), seed=1)[0]
    return lens.prompt(example.question, images=example.image)


@pytest.fixture(scope="module")
def eager(asked):
    return eager_tower(asked).numpy()


@pytest.fixture(scope="module")
def made(lens, asked):
    return view(asked, lens, tower=True)


@pytest.fixture(scope="module")
def tower(made):
    return Shown(made.html, 1)


def refused(error, text, *arguments, **options):
    with pytest.raises(error) as caught:
        view(*arguments, **options)
    assert str(caught.value) == text
    assert len(text.splitlines()) <= 3


# ---------------------------------------------------------------------- the numbers


def test_every_query_of_the_page_is_the_towers_own_attention(tower, eager):
    assert (tower.about["part"], tower.about["layers"], tower.about["heads"]) == ("vision", [0, 1, 2], [0, 1, 2, 3])
    assert tower.about["positions"] == [*range(2, 38), None]
    assert tower.about["roles"] == ["image"] * N_VISUAL + ["class"]
    assert tower.about["queries"] == [*range(N_VISUAL + 1), None]
    assert tower.about["queryNames"] == [None] * N_VISUAL + ["class token", "all patches"]
    as_keys = np.concatenate([eager[..., 1:], eager[..., :1]], -1)  # the class token behind the patches
    for patch in range(N_VISUAL):
        np.testing.assert_allclose(tower.weights[patch], as_keys[:, :, 1 + patch], atol=TOLERANCE)
    np.testing.assert_allclose(tower.weights[N_VISUAL], as_keys[:, :, 0], atol=TOLERANCE)
    np.testing.assert_allclose(tower.weights[-1], as_keys[:, :, 1:].mean(2), atol=TOLERANCE)


def test_the_numbers_of_all_patches_are_the_scores_of_the_heads(lens, asked, tower, eager):
    for metric in ("distance", "entropy", "class_mass"):
        expected = score_heads(lens, asked, metric, part="vision").values.numpy()
        np.testing.assert_allclose(tower.map(metric)[-1], expected, atol=1e-5)
    rows = eager[:, :, 1:]
    np.testing.assert_allclose(tower.map("visual_mass")[:N_VISUAL], rows[..., 1:].sum(-1).transpose(2, 0, 1), atol=1e-5)
    np.testing.assert_allclose(
        tower.map("entropy")[:N_VISUAL], -(rows * np.log(rows)).sum(-1).transpose(2, 0, 1), atol=1e-4
    )
    x, y = (np.arange(N_VISUAL) % 6 + 0.5) / 6, (np.arange(N_VISUAL) // 6 + 0.5) / 6
    far = np.hypot(x[:, None] - x, y[:, None] - y) / np.sqrt(2)  # in diagonals of the square picture
    on_patches = rows[..., 1:] / rows[..., 1:].sum(-1, keepdims=True)
    np.testing.assert_allclose(
        tower.map("distance")[:N_VISUAL], (on_patches * far).sum(-1).transpose(2, 0, 1), atol=1e-5
    )


@pytest.mark.parametrize("family", ["llava", "internvl", "qwen2_vl", "llava_next"])
def test_a_page_shows_what_an_attention_map_does(family):
    """Tiles, merged patches, packed pictures: the maps of `attention_map`, and nothing of a row is lost."""
    lens, prompt = lens_of(family), prompt_of(family)
    shown = Shown(view(prompt, lens, layers=[0], tower="image").html, 1)
    visual = prompt.mask("visual")[0].nonzero().flatten().tolist()
    assert shown.about["positions"][: len(visual)] == visual
    n_layers, n_heads = len(shown.about["layers"]), len(shown.about["heads"])
    assert n_layers == lens.vision.n_used
    heads = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    for query, rows in ((-1, None), (0, visual[:1]), (len(visual) // 2, [visual[len(visual) // 2]])):
        found = attention_map(lens, prompt, rows=rows, heads=heads, reduce=None, part="vision").weights[0][:, visual]
        given = shown.weights[query][..., : len(visual)].reshape(n_layers * n_heads, -1)
        np.testing.assert_allclose(given, found, atol=TOLERANCE)
    np.testing.assert_allclose(shown.weights.sum(-1), 1, atol=1e-3)


def test_every_backend_reads_the_same():
    """And what the features do not come through is left out, and said to be."""
    shown = [
        Shown(view(prompt_of("llava"), lens_of("llava", backend), layers=[0], tower=True).html, 1)
        for backend in ("native", "transformer_lens", "nnsight")
    ]
    assert shown[0].about["omitted"] == "Left out: layers [1] of the tower, behind what the decoder is given."
    for other in shown[1:]:
        np.testing.assert_allclose(other.weights, shown[0].weights, atol=TOLERANCE)


# ---------------------------------------------------------------------- what is on the page


def test_a_page_without_the_tower_is_as_it_was(lens, asked, made):
    decoder = Shown(made.html, 0)
    alone = Shown(view(asked, lens).html)
    assert decoder.about == alone.about
    assert np.array_equal(decoder.weights, alone.weights)
    assert (made.tower_shape, view(asked, lens).tower_shape) == ((3, 4), None)
    assert repr(made).startswith("View of 1 query, 6 layers x 8 heads, 45 tokens, and of the vision tower: 0.")


def test_a_large_tower_makes_the_decoders_weights_no_coarser(lens, asked, monkeypatch):
    from lmm_lens.viewer import packing

    monkeypatch.setattr(packing, "MAX_FINE", 6 * 8 * 45)
    made = view(asked, lens, tower=True)
    assert [Shown(made.html, part).about["steps"] for part in (0, 1)] == [65535, 255]
    assert made.error == 1 / 255
    assert np.array_equal(Shown(made.html, 0).weights, Shown(view(asked, lens).html).weights)


def test_half_precision_is_added_up_in_whole(lens, asked, tower):
    half = Lens(copy.deepcopy(lens.model).to(torch.bfloat16), lens.processor)
    shown = Shown(view(half.prompt(asked.texts[0], images=asked.images[0]), half, tower=True).html, 1)
    np.testing.assert_allclose(shown.weights.sum(-1), 1, atol=4e-3)
    np.testing.assert_allclose(shown.weights[-1], tower.weights[-1], atol=2e-2)


def test_queries_can_be_named(lens, asked):
    shown = Shown(view(asked, lens, tower=[5, 9]).html, 1)
    assert shown.about["queries"] == [3, 7, 36, None]
    assert shown.about["omitted"] == ""


def test_too_many_patches_are_thinned_out_and_the_page_says_so(lens, asked, monkeypatch):
    one = 3 * 4 * (N_VISUAL + 3)  # layers, heads, keys with the three that may be there
    monkeypatch.setattr(tower_reading, "MAX_TOWER_VALUES", one * (9 + 2))
    shown = Shown(view(asked, lens, tower=True).html, 1)
    assert shown.about["queries"] == [6 * row + column for row in (1, 3, 5) for column in (1, 3, 5)] + [36, None]
    assert (
        shown.about["omitted"]
        == "Of 36 visual tokens 9 are queries, one in 2 of each row and column: a click takes the nearest."
    )
    monkeypatch.setattr(tower_reading, "MAX_TOWER_VALUES", one * 2)
    shown = Shown(view(asked, lens, tower=True).html, 1)
    assert shown.about["queries"] == [36, None]
    assert "queries of single patches, of which 36 visual tokens are too many for a page" in shown.about["omitted"]


def test_a_large_tower_stays_within_its_share_of_a_page():
    """CLIP ViT-L/14-336 beside a decoder: 24 layers x 16 heads over 576 patches."""
    from lmm_lens.prompts.spans import Box, Span

    class Large:
        spans = ((Span("image", tuple(range(5, 581)), 0, grid=(24, 24), region=Box(0, 0, 336, 336)),),)

        def mask(self, name):
            return torch.ones(1, 576, dtype=torch.bool)

    one = 24 * 16 * (576 + 3)
    chosen, said = tower_reading._spread(Large(), MAX_TOWER_VALUES // one - 2)
    assert len(chosen) == 25
    assert said.startswith("Of 576 visual tokens 25 are queries, one in 5 of each row")


def test_scores_and_marks_of_the_tower_are_on_its_map(lens, asked):
    scores = score_heads(lens, asked, "entropy", part="vision")
    made = view(asked, scores, lens=lens, mark=scores.top(2))
    tower, decoder = Shown(made.html, 0), Shown(made.html, 1)  # what is asked about comes first
    assert [each.about["part"] for each in (tower, decoder)] == ["vision", "decoder"]
    assert (made.shape, made.model_shape, made.tower_shape) == ((1, 6, 8, 45), (6, 8), (3, 4))
    assert tower.about["maps"][0]["label"] == "scores: entropy"
    assert tower.about["maps"][0]["meaning"] == "entropy of a patch's attention; mean of 1 prompt, query patches"
    np.testing.assert_allclose(tower.map("scores")[0], scores.values, atol=1e-6)
    assert tower.about["mark"] == [list(head) for head in scores.top(2)]
    assert decoder.about["mark"] == []
    assert "scores" not in [each["name"] for each in decoder.about["maps"]]
    both = view(asked, lens, tower=True, mark=HeadSet([(5, 7)], 6, 8))
    assert (Shown(both.html, 0).about["mark"], Shown(both.html, 1).about["mark"]) == ([[5, 7]], [])


# ---------------------------------------------------------------------- refusals


def test_what_has_no_tower_to_show_is_refused(lens, asked):
    example = shapes.examples(1, seed=3)[0]
    batch = lens.prompt([example.question] * 2, images=[example.image] * 2)
    refused(
        PromptError,
        "the vision tower is shown of one prompt, given a batch of 2 rows\n"
        "  ask the row on its own: view(lens.prompt(text, images=...), lens, tower=True)",
        batch,
        lens,
        tower=True,
    )
    run = lens.run(asked, read=[Read("pattern", rows="last")])
    refused(
        LensError,
        "the vision tower is shown with a lens, not beside runs\n  view(prompt, lens, tower=True)",
        asked,
        run,
        lens=lens,
        tower=True,
    )
    with pytest.raises(PromptError, match="layout of these visual tokens is not known"):
        view(prompt_of("blip-2"), lens_of("blip-2"), tower=True)


def test_queries_and_marks_that_do_not_go_with_it_are_refused(lens, asked):
    for queries in ([0, 3], "last"):
        with pytest.raises(HookError, match="are not all visual tokens, which alone are made of patches"):
            view(asked, lens, tower=queries)
    heads = HeadSet([(0, 1)], 3, 4, part="vision")
    with pytest.raises(
        HookError, match=r"a view without its vision tower \(tower=True shows it\) takes heads of the dec"
    ):
        view(asked, lens, mark=heads)
    with pytest.raises(HookError, match="are of 4 layers x 4 heads, the vision tower has 3 x 4"):
        view(asked, lens, tower=True, mark=HeadSet([(3, 1)], 4, 4, part="vision"))
