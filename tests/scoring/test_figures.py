"""What the figures show, read off the artists: numbers, places and outlines, not looks."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from lmm_lens import HeadScores, HeadSet, Lens
from lmm_lens.adapters import Generic
from lmm_lens.bundled import shapes
from lmm_lens.errors import HookError, LensError, PromptError
from lmm_lens.figures import draw_over_image
from lmm_lens.scoring.figures import attention_over_image, head_heatmap
from tests.support.eager import Eager

TABLE = HeadScores("concentration", "answer", torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def example():
    return shapes.examples(1, kinds=("color",), seed=2)[0]


@pytest.fixture(scope="module")
def prompt(lens, example):
    return lens.prompt(example.question, images=example.image)


@pytest.fixture(scope="module")
def wide(lens, example):
    """A picture of 100 x 60 pixels: scaled to 80 x 48, of which the middle 48 x 48 are seen, pixels 20 to 80."""
    return lens.prompt(example.question, images=example.image.resize((100, 60)))


def outlines(ax) -> list[tuple[float, ...]]:
    """Centre and size of every rectangle drawn on the axes."""
    boxes = [patch.get_bbox() for patch in ax.patches]
    return [((b.x0 + b.x1) / 2, (b.y0 + b.y1) / 2, b.width, b.height) for b in boxes]


def is_blank(path) -> bool:
    pixels = np.asarray(Image.open(path).convert("L"))
    return bool(pixels.std() < 5)


# ---------------------------------------------------------------------- heat maps


def test_the_heat_map_shows_the_mean_of_every_head_layer_0_on_top():
    ax = head_heatmap(TABLE)
    (image,) = ax.images
    np.testing.assert_allclose(image.get_array(), TABLE.per_prompt.numpy().mean(0), rtol=1e-6)
    left, right, bottom, top = image.get_extent()
    assert (left, right, top, bottom) == (-0.5, 3.5, -0.5, 2.5)
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("head", "layer")


def test_the_heat_map_says_what_it_shows():
    ax = head_heatmap(TABLE)
    for word in ("concentration", "answer", "5"):
        assert word in ax.get_title()
    labels = [other.get_ylabel() for other in ax.figure.axes if other is not ax]
    assert labels == ["concentration (0 even, 1 one patch)"]


def test_marked_heads_are_outlined_each_in_its_own_cell():
    heads = HeadSet([(0, 3), (2, 0), (1, 1)], 3, 4)
    drawn = outlines(head_heatmap(TABLE, mark=heads))
    assert [(round(y, 6), round(x, 6)) for x, y, _, _ in drawn] == list(heads)
    assert all(0.8 <= size <= 1 for _, _, *sizes in drawn for size in sizes)
    assert outlines(head_heatmap(TABLE)) == []


def test_a_heat_map_can_be_drawn_into_a_figure_of_the_users():
    ax = Figure().subplots()
    assert head_heatmap(TABLE, ax) is ax
    assert TABLE.plot(ax) is ax
    assert len(ax.images) == 2


def test_layers_without_heads_are_left_empty():
    values = TABLE.per_prompt.clone()
    values[:, 1] = torch.nan
    ax = head_heatmap(HeadScores("visual_mass", "last", values))
    shown = np.ma.masked_invalid(ax.images[0].get_array())
    assert shown.mask[1].all()
    assert not shown.mask[[0, 2]].any()


def test_a_large_model_gets_readable_ticks():
    ax = head_heatmap(HeadScores("visual_mass", "last", torch.rand(1, 40, 64)))
    assert len(ax.get_xticks()) <= 33
    assert len(ax.get_yticks()) <= 33


def test_the_saved_heat_map_is_a_picture(tmp_path):
    TABLE.plot().figure.savefig(tmp_path / "heads.png")
    assert not is_blank(tmp_path / "heads.png")


# ---------------------------------------------------------------------- overlays


def overlay(ax):
    """(extent of the picture, extent of the patches, their weights, their opacity)"""
    picture, heat = ax.images
    return picture.get_extent(), heat.get_extent(), np.asarray(heat.get_array()), np.asarray(heat.get_alpha())


@pytest.mark.parametrize(
    ("which", "size", "seen"), [("prompt", (48, 48), (0, 0, 48, 48)), ("wide", (100, 60), (20, 0, 80, 60))]
)
def test_each_patch_is_drawn_where_it_lies_with_its_attention(lens, request, which, size, seen):
    prompt = request.getfixturevalue(which)
    ax = attention_over_image(lens, prompt, 3, 5)
    picture, patches, weights, alpha = overlay(ax)
    row = torch.tensor(Eager(lens.model).prefill(prompt.inputs).row(3, 0, 5, -1))
    expected = row[2:38].reshape(6, 6).numpy()
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert tuple(picture) == (0, size[0], size[1], 0)
    assert tuple(patches) == pytest.approx((seen[0], seen[2], seen[3], seen[1]))
    assert ax.get_xlim() == (0, size[0])
    assert ax.get_ylim() == (size[1], 0)
    order = expected.flatten().argsort()
    assert (np.diff(alpha.flatten()[order]) >= -1e-6).all()  # more attention, more opaque
    assert 0 <= alpha.min() < alpha.max() <= 1
    assert alpha.argmax() == expected.argmax()
    assert ax.get_title().startswith(f"L3H5: {float(row[2:38].sum()):.0%}")


def test_another_query_token_can_be_chosen(lens, prompt):
    _, _, weights, _ = overlay(attention_over_image(lens, prompt, 3, 1, query=40))
    row = torch.tensor(Eager(lens.model).prefill(prompt.inputs).row(3, 0, 1, 40))
    np.testing.assert_allclose(weights, row[2:38].reshape(6, 6).numpy(), atol=1e-6)


def test_row_and_picture_of_a_padded_batch_are_the_ones_asked_for(lens, example):
    other = shapes.examples(1, kinds=("list",), seed=9)[0]
    batch = lens.prompt([other.question, example.question], images=[other.image, [example.image, other.image]])
    single = lens.prompt(example.question, images=[example.image, other.image])
    for image in (0, 1):
        ax = attention_over_image(lens, batch, 3, 1, row=1, image=image)
        _, _, alone, _ = overlay(attention_over_image(lens, single, 3, 1, image=image))
        assert alone.max() > 0.01
        np.testing.assert_allclose(overlay(ax)[2], alone, atol=1e-5)


def test_the_picture_lies_under_the_patches_in_its_colours_and_is_to_be_seen(lens, prompt, example):
    ax = attention_over_image(lens, prompt, 0, 0)
    np.testing.assert_array_equal(ax.images[0].get_array(), np.asarray(example.image.convert("RGB")))
    assert float(np.max(ax.images[1].get_alpha())) == pytest.approx(0.6)


def test_a_colour_bar_says_how_much_the_brightest_patch_gets(lens, prompt):
    ax = attention_over_image(lens, prompt, 3, 5)
    (bar,) = [each for each in ax.figure.axes if each is not ax]
    assert bar.get_ylabel() == "attention"
    assert bar.get_ylim() == pytest.approx((0, float(np.max(ax.images[1].get_array()))))
    alone = Figure().subplots()
    draw_over_image(alone, prompt, torch.ones(prompt.n_tokens), label=None)
    assert alone.figure.axes == [alone]


def test_nearly_even_attention_is_called_so_and_looks_so(lens, prompt):
    pattern = {head: overlay(attention_over_image(lens, prompt, 0, head))[2] for head in range(8)}
    for head, weights in pattern.items():
        title = attention_over_image(lens, prompt, 0, head).get_title()
        assert title.endswith(", nearly even") == (weights.max() < 2 * weights.mean())
    ax = Figure().subplots()
    draw_over_image(ax, prompt, torch.full((prompt.n_tokens,), 0.02))
    assert np.ptp(np.asarray(ax.images[1].get_alpha())) == 0


def test_sinks_are_outlined_at_their_patches(lens, wide):
    ax = attention_over_image(lens, wide, 0, 0, sinks=[2, 37, 9])
    drawn = np.array(outlines(ax))
    np.testing.assert_allclose(drawn, [(25, 5, 10, 10), (75, 55, 10, 10), (35, 15, 10, 10)])


def test_weights_of_nothing_can_be_drawn(prompt):
    ax = Figure().subplots()
    draw_over_image(ax, prompt, torch.zeros(prompt.n_tokens))
    assert float(np.max(ax.images[1].get_alpha())) == 0


def test_the_saved_overlay_is_a_picture(lens, wide, tmp_path):
    attention_over_image(lens, wide, 0, 0).figure.savefig(tmp_path / "overlay.png")
    assert not is_blank(tmp_path / "overlay.png")


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layer": 6}, "layer 6 is out of range: the model has layers 0 to 5"),
        ({"head": 8}, "head 8 of layer 0 is out of range: the layer has heads 0 to 7"),
        ({"query": "answer"}, "query must be \"last\" or a position of the prompt, given 'answer'"),
        ({"query": 99}, "positions [99] lie outside the prompt"),
        ({"row": 1}, "row 1 is out of range: the prompt has rows 0 to 0"),
        ({"row": -1}, "row -1 is out of range"),
        ({"image": 1}, "row 0 has no picture 1 to draw on: it was given 1"),
        ({"image": -1}, "row 0 has no picture -1 to draw on"),
        ({"sinks": [0]}, "the token at position 0 of row 0 is not a visual token"),
    ],
)
def test_what_is_not_there_cannot_be_drawn(lens, prompt, options, text):
    with pytest.raises((HookError, PromptError)) as caught:
        attention_over_image(lens, prompt, **{"layer": 0, "head": 0, **options})
    assert text in str(caught.value)


def test_without_the_picture_there_is_nothing_to_draw_on(lens, prompt):
    from_tensors = lens.prompt(inputs=prompt.inputs)
    for blind in (from_tensors, lens.prompt("what is one plus two?")):
        with pytest.raises(PromptError, match="no picture 0 to draw on: it was given 0"):
            attention_over_image(lens, blind, 0, 0)


@pytest.mark.parametrize("n_pictures", [1, 2])
def test_a_family_of_unknown_layout_is_refused(lens, example, n_pictures):
    generic = Lens(lens.model, lens.processor, adapter=Generic(lens.model, lens.processor))
    prompt = generic.prompt(example.question, images=[example.image] * n_pictures)
    with pytest.raises(LensError, match="the layout of these visual tokens is not known"):
        attention_over_image(generic, prompt, 0, 0)


def test_a_plot_shows_itself_as_the_last_value_of_a_notebook_cell(lens):
    from IPython.core.formatters import DisplayFormatter

    from lmm_lens.figures import new_axes

    formatter = DisplayFormatter()
    formatter.active_types = ["text/plain", "image/png"]
    data, _ = formatter.format(new_axes(2, 1))
    assert data["image/png"][:8] == b"\x89PNG\r\n\x1a\n" or data["image/png"].startswith("iVBOR")
