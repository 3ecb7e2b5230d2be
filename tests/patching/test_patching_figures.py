"""What the figures of patching show, read off the artists, and that nothing of them is cut off."""

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from lmm_lens import Lens
from lmm_lens.adapters import Generic
from lmm_lens.bundled import shapes
from lmm_lens.errors import PromptError
from lmm_lens.patching import activation_patching
from lmm_lens.patching.figures import LABEL
from tests.support.patch_scores import NAN, PER_PAIR, made, refused


def colorbars(ax) -> list[str]:
    return [other.get_ylabel() for other in ax.figure.axes if other is not ax]


def test_the_heat_map_shows_every_mean_centred_at_no_effect():
    ax = made().plot()
    (image,) = ax.images
    np.testing.assert_allclose(image.get_array().filled(NAN), made().values.numpy(), equal_nan=True)
    low, high = image.get_clim()
    assert (low, high) == (-0.75, 0.75)
    assert colorbars(ax) == [LABEL] == ["effect (0 corrupt, 1 clean)"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["3", "5"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("head", "layer")
    assert ax.get_title() == "patching of z, rows last, 2 pairs"
    written = {tuple(round(v) for v in text.get_position()): text.get_text() for text in ax.texts}
    assert written == {(0, 0): "0.25", (1, 0): "0.62", (2, 0): "-0.12", (0, 1): "0.75"}, "what rounds to 0 is blank"


def test_the_colour_bar_begins_at_0_where_nothing_is_destroyed():
    for per_pair, low in ((PER_PAIR.abs(), 0.0), (PER_PAIR, -0.75)):
        ax = made(per_pair).plot()
        (bar,) = [each for each in ax.figure.axes if each is not ax]
        assert bar.get_ylim() == pytest.approx((low, ax.images[0].get_clim()[1]))


def test_what_is_not_defined_looks_unlike_no_effect():
    (image,) = made().plot().images
    assert tuple(image.cmap(image.norm(np.ma.masked_invalid([NAN])))[0]) != tuple(image.cmap(image.norm([0.0]))[0])


def test_effects_that_are_noise_stay_pale():
    (image,) = made(PER_PAIR.nan_to_num() * 1e-4).plot().images
    assert image.get_clim() == (-0.02, 0.02)


def test_spans_are_named_under_the_columns():
    ax = made(by="span", rows="", units=("bos", "before_image", "image 0"), site="resid_pre").plot()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["bos", "before image", "image 0"]
    assert ax.get_title() == "patching of resid_pre, 2 pairs"


def test_a_large_model_gets_readable_ticks_and_no_numbers():
    layers, units = tuple(range(40)), tuple(str(i) for i in range(64))
    ax = made(torch.rand(1, 40, 64), layers=layers, units=units).plot()
    assert len(ax.get_xticks()) <= 33
    assert len(ax.get_yticks()) <= 33
    assert not ax.texts


def test_nothing_is_clipped_and_a_users_axes_are_used(tmp_path):
    ax = made(by="span", rows="", units=("bos", "before_image", "a long name of a group")).plot()
    ax.figure.savefig(tmp_path / "x.png")
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
    assert pixels.std() > 5
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()
    mine = Figure().subplots()
    assert made().plot(mine) is mine


@pytest.fixture(scope="module")
def patches(lens):
    """One pair by patch, and its clean prompt."""
    clean, corrupt = shapes.color_pairs(1, seed=3)[0]
    prompts = [lens.prompt(e.question, images=e.image) for e in (clean, corrupt)]
    return activation_patching(lens, *prompts, by="patch", layers=[0, 4]), prompts[0]


def test_each_patch_is_drawn_where_it_lies_with_its_effect(patches):
    scores, prompt = patches
    ax = scores.plot_over_image(prompt, 4)
    picture, heat = ax.images
    assert tuple(picture.get_extent()) == tuple(heat.get_extent()) == (0, 48, 48, 0)
    effects = scores.per_pair[0, 1].reshape(6, 6).numpy()
    np.testing.assert_allclose(heat.get_array(), effects)
    limit = float(scores.per_pair.abs().max())  # of both layers, so that their pictures can be compared
    assert heat.get_clim() == pytest.approx((-limit, limit))
    order = np.abs(effects).flatten().argsort()
    assert (np.diff(np.asarray(heat.get_alpha()).flatten()[order]) >= -1e-6).all()
    assert colorbars(ax) == [LABEL]
    correct, incorrect = scores.answers[0]
    assert ax.get_title() == f"resid_pre of layer 4, pair 0:\n{correct!r} clean, {incorrect!r} corrupt"


def test_what_cannot_be_drawn_over_a_picture_is_refused(lens, patches):
    scores, prompt = patches
    draw = scores.plot_over_image
    assert refused(draw, prompt, 1) == "layer 1 was not patched: the scores have layers [0, 4]"
    assert refused(draw, prompt, 0, 1) == "row 1 is out of range: the scores have pairs 0 to 0"
    assert refused(draw, prompt, 0, image=1, kind=PromptError).startswith("row 0 has no picture 1 to draw on")
    two = lens.prompt(["what color is the star?"] * 2, images=[prompt.images[0][0]] * 2)
    assert refused(draw, two, 0) == "the scores have 1 pairs, but the prompt has 2 rows"
    double = lens.prompt("what color is the star?", images=[prompt.images[0][0]] * 2)
    assert refused(draw, double, 0) == "the scores have 36 patches, but row 0 has 72 visual tokens"
    text = refused(made().plot_over_image, prompt, 3)
    assert text == "only effects by patch lie in the picture, these are by head: run it with by='patch'"
    empty = dataclasses.replace(scores, per_pair=torch.full_like(scores.per_pair, NAN))
    assert "pair 0 has no effect to draw" in refused(empty.plot_over_image, prompt, 0)
    tensors = lens.prompt(inputs=prompt.inputs)
    assert refused(draw, tensors, 0, kind=PromptError).startswith("row 0 has no picture 0 to draw on: it was given 0")
    generic = Lens(lens.model, lens.processor, adapter=Generic(lens.model, lens.processor))
    blind = generic.prompt("what color is the star?", images=prompt.images[0][0])
    assert "the layout of these visual tokens is not known" in refused(draw, blind, 0, kind=PromptError)
