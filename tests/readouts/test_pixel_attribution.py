"""Pixel attribution: against the plain model's own gradients, in the picture, adding up, and telling something."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lmm_lens import (
    AblateHeads,
    AblateTokens,
    DeletionCurve,
    Lens,
    PixelAttribution,
    deletion_curve,
    pixel_attribution,
    shapes,
)
from lmm_lens.backends.entering import tower_off
from lmm_lens.errors import LensError, ModelError, PromptError, RemoteError, ScoreError
from lmm_lens.readouts.pixel_places import NOWHERE, places_of
from tests.support.families import EVERY, lens_of, prompt_of
from tests.support.families.tile_evidence import entering
from tests.support.quick import quick

QUICK = ("llava", "qwen2_vl", "pixtral", "internvl", "llava_next", "gemma3")
MIXED = ("idefics2", "blip-2", "instructblip", "mllama")
"""Families in which no pixel belongs to one visual token alone."""
DISCRETE = ("emu3", "chameleon")
PARTLY = ("step3p7", "unlimited_ocr", "got_ocr2", "pp_chart2table")
"""Towers whose convolutions mix neighbouring patches, so that only some pixels belong to one token."""


def question(lens, seed=0):
    example = shapes.examples(1, ["color"], seed=seed)[0]
    return lens.prompt(example.question, images=example.image)


@pytest.fixture(scope="module")
def prompt(lens):
    return question(lens)


@pytest.fixture(scope="module")
def integrated(lens, prompt):
    return pixel_attribution(lens, prompt)


def slopes(lens, prompt, pixels, name, ids):
    """The gradient of the plain model's logits by its pixels, by torch alone."""
    leaf = pixels.detach().clone().requires_grad_()
    logits = lens.model(**{**prompt.inputs, name: leaf}).logits[0, -1]
    number = logits[ids[0]] - (logits[ids[1]] if len(ids) > 1 else 0)
    return torch.autograd.grad(number, leaf)[0]


# ---------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("name", quick([each for each in EVERY if each not in DISCRETE], QUICK))
def test_a_gradient_is_the_plain_models(name):
    lens, prompt = lens_of(name), prompt_of(name)
    ids = (5, 7)
    found = pixel_attribution(lens, prompt, *ids, method="gradient")
    for given, values in found.values.items():
        expected = slopes(lens, prompt, prompt.inputs[given], given, ids)
        torch.testing.assert_close(values, expected, atol=1e-6 * max(1.0, float(expected.abs().max())), rtol=1e-4)
        assert name in ("molmo2", "instructblip") or float(expected.abs().max()) > 1e-7


def test_integrated_gradients_are_a_slow_sum_along_the_path(lens, prompt):
    other = question(lens, 5)
    found = pixel_attribution(lens, prompt, "red", "blue", steps=5, baseline=other)
    ids = [lens.processor.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("red", "blue")]
    end, begin = prompt.inputs["pixel_values"], other.inputs["pixel_values"]
    path = [begin + share * (end - begin) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    mean = torch.stack([slopes(lens, prompt, at, "pixel_values", ids) for at in path]).mean(0)
    torch.testing.assert_close(found.values["pixel_values"], (end - begin) * mean, atol=1e-5, rtol=1e-4)
    assert (found.answers, found.ids, found.steps) == (("red", "blue"), tuple(ids), 5)


@pytest.mark.long
def test_integrated_gradients_add_up_to_what_the_picture_changes(lens, prompt):
    few, many = (pixel_attribution(lens, prompt, steps=n) for n in (16, 256))
    changed = many.score - many.baseline_score
    logits = lens.run(prompt, logits="last").logits[0, 0]
    assert many.score == pytest.approx(float(logits.max()), abs=1e-4)
    grey = {**prompt.inputs, "pixel_values": torch.zeros_like(prompt.inputs["pixel_values"])}
    without = lens.model(**grey).logits[0, -1].detach()
    assert many.baseline_score == pytest.approx(float(without[logits.argmax()]), abs=1e-4)
    assert abs(many.missing) < 0.02 * abs(changed)
    assert abs(many.missing) < abs(few.missing)
    assert float(many.weights.sum()) == pytest.approx(changed, abs=0.02 * abs(changed))


def test_what_misses_is_told(integrated):
    total = float(integrated.values["pixel_values"].double().sum())
    assert integrated.missing == pytest.approx(integrated.score - integrated.baseline_score - total, abs=1e-6)
    assert f"64 steps, {integrated.missing:+.2g} missing" in repr(integrated)


def test_a_metric_of_ones_own(lens, prompt):
    def margin(logits):
        return logits[3] - logits[5:8].logsumexp(0)

    found = pixel_attribution(lens, prompt, metric=margin, method="gradient")
    leaf = prompt.inputs["pixel_values"].clone().requires_grad_()
    (expected,) = torch.autograd.grad(margin(lens.model(**{**prompt.inputs, "pixel_values": leaf}).logits[0, -1]), leaf)
    torch.testing.assert_close(found.values["pixel_values"], expected, atol=1e-5, rtol=1e-4)
    assert (found.answers, found.ids) == (("margin",), ())


def test_it_is_measured_under_edits(lens, prompt):
    edit = AblateHeads([(0, 1), (1, 2)], part="vision")
    found = pixel_attribution(lens, prompt, method="gradient", interventions=[edit])
    with lens.apply(edit):
        within = pixel_attribution(lens, prompt, method="gradient")
    assert found.ids == within.ids
    assert torch.equal(found.values["pixel_values"], within.values["pixel_values"])
    assert torch.equal(found.places["pixel_values"], within.places["pixel_values"])
    plain = pixel_attribution(lens, prompt, found.ids[0], method="gradient")
    assert not torch.allclose(found.values["pixel_values"], plain.values["pixel_values"])


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_the_frameworks_give_the_same(name, backend):
    options = {"method": "integrated_gradients", "steps": 2}
    native = pixel_attribution(lens_of(name), prompt_of(name), 5, 7, **options)
    other = pixel_attribution(lens_of(name, backend), prompt_of(name), 5, 7, **options)
    torch.testing.assert_close(other.values["pixel_values"], native.values["pixel_values"], atol=1e-5, rtol=1e-3)
    assert torch.equal(other.places["pixel_values"], native.places["pixel_values"])


# ---------------------------------------------------------------------- where they lie


@pytest.mark.parametrize("name", quick([each for each in EVERY if each not in DISCRETE], QUICK))
def test_a_pixel_belongs_to_the_token_that_alone_has_a_gradient_by_it(name):
    """One backward pass a token, in place of one a bit."""
    lens, prompt = lens_of(name), prompt_of(name)
    given = next(each for each in prompt.inputs if each.startswith("pixel_values") and "mask" not in each)
    found = places_of(lens, prompt)[given]
    if name in MIXED:
        assert bool((found == NOWHERE).all())
        return
    leaf = prompt.inputs[given].detach().clone().requires_grad_()
    with tower_off(lens.adapter):
        x = entering(lens, prompt, **{given: leaf})
    x = x.flatten(2) if x.ndim == 4 and x.shape[:2] == prompt.inputs["input_ids"].shape else x
    x = x[0] if x.ndim == 4 else x
    expected, count = torch.full(leaf.shape, NOWHERE), torch.zeros(leaf.shape)
    positions = prompt.mask("visual")[0].nonzero().flatten().tolist()
    weights = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(1))
    for position in positions:
        (slope,) = torch.autograd.grad(x[0, position] @ weights, leaf, retain_graph=True)
        expected[slope != 0] = position
        count += slope != 0
    expected[count > 1] = NOWHERE
    assert torch.equal(found, expected)
    assert name in PARTLY or set(found.unique().tolist()) - {NOWHERE} == set(positions)


@pytest.mark.parametrize(
    ("name", "size"), [("llava", (56, 56)), ("pixtral", (98, 70)), ("internvl", (72, 48)), ("idefics3", (96, 72))]
)
def test_grids_lie_as_the_picture_does(name, size):
    """The pixels themselves in place of numbers: what is drawn is the picture."""
    lens = lens_of(name)
    array = np.zeros((size[1], size[0], 3), np.uint8)
    array[: size[1] // 2, size[0] // 2 :] = 255  # upper right
    array[size[1] // 2 :, : size[0] // 4] = 128  # lower left
    prompt = lens.prompt("What is this?", images=Image.fromarray(array))
    found = pixel_attribution(lens, prompt, 5, method="gradient")
    pixels = prompt.inputs["pixel_values"]
    found = replace(found, values={"pixel_values": pixels - pixels.min()}, method="integrated_gradients")
    for canvas in found.canvases:
        grids = found.grid(canvas)
        assert all(grid.numel() > len(span) for span, grid in zip(canvas.spans, grids, strict=True))
        drawn, shown = [], []
        for span, grid in zip(canvas.spans, grids, strict=True):
            rows, columns = grid.shape
            x = span.region.x0 + (torch.arange(columns) + 0.5) * (span.region.x1 - span.region.x0) / columns
            y = span.region.y0 + (torch.arange(rows) + 0.5) * (span.region.y1 - span.region.y0) / rows
            inside = lambda at, n: at.long().clamp(0, n - 1)  # noqa: E731
            drawn.append(torch.from_numpy(array).float()[inside(y, size[1])][:, inside(x, size[0])].sum(-1).flatten())
            shown.append(grid.flatten())
        assert float(torch.corrcoef(torch.stack([torch.cat(drawn), torch.cat(shown)]))[0, 1]) > 0.9


def test_patches_in_an_order_of_their_own_are_drawn_by_token():
    found = pixel_attribution(lens_of("qwen2_vl"), prompt_of("qwen2_vl"), 5, method="gradient")
    (canvas,) = found.canvases
    (grid,) = found.grid(canvas)
    assert grid.shape == canvas.spans[0].grid
    assert torch.equal(grid.flatten(), found.weights[list(canvas.positions)])


def test_patches_and_the_rest_are_all_there_is():
    """Of any resolution: padding is of no token."""
    found = pixel_attribution(lens_of("llava_next"), prompt_of("llava_next"), 5, steps=2)
    total = float(found.values["pixel_values"].double().sum())
    assert float(found.weights.double().sum()) + found.elsewhere == pytest.approx(total, abs=1e-6)
    assert bool((found.places["pixel_values"] == NOWHERE).any())
    assert "on pixels of no one token" in repr(found)
    position = found.canvases[0].positions[3]
    own = found.values["pixel_values"][found.places["pixel_values"] == position]
    assert float(found.weights[position]) == pytest.approx(float(own.sum()), abs=1e-6)


def test_pictures_and_frames_are_told_apart():
    lens = lens_of("qwen2_vl")
    image = prompt_of("qwen2_vl").images[0][0]
    film = [Image.new("RGB", (56, 56), (90, each * 60, 30)) for each in range(4)]
    prompt = lens.prompt("Compare.", images=[image, image.rotate(180)], videos=[film])
    found = pixel_attribution(lens, prompt, 5, method="gradient")
    assert set(found.values) == {"pixel_values", "pixel_values_videos"}
    assert [canvas.name for canvas in found.canvases] == [
        "image 0",
        "image 1",
        "video 0, frame 0",
        "video 0, frame 1",
    ]
    video = prompt.mask("video")[0].nonzero().flatten()
    assert torch.equal(found.places["pixel_values_videos"].unique(), video)
    n = len(found.values["pixel_values"]) // 2
    first = set(found.places["pixel_values"][:n].unique().tolist())
    assert first == set(found.canvases[0].positions)


# ---------------------------------------------------------------------- its control


def test_a_deletion_curve_is_what_runs_without_those_pixels_say(lens, prompt, integrated):
    curve = deletion_curve(lens, prompt, integrated, points=4, n_random=2)
    assert curve.shares == (0, 0.25, 0.5, 0.75, 1)
    order = sorted(integrated.canvases[0].positions, key=lambda at: -float(integrated.weights[at]))
    for share, score in zip(curve.shares, curve.scores.tolist(), strict=True):
        pixels = prompt.inputs["pixel_values"].clone()
        for position in order[: round(36 * share)]:
            x0, y0, x1, y1 = map(int, prompt.box(position))
            pixels[..., y0:y1, x0:x1] = 0
        logits = lens.model(**{**prompt.inputs, "pixel_values": pixels}).logits[0, -1].detach()
        assert score == pytest.approx(float(logits[integrated.ids[0]]), abs=1e-4)
    assert curve.random[:, 0].tolist() == pytest.approx([integrated.score] * 2, abs=1e-4)
    assert curve.random[:, -1].tolist() == pytest.approx([integrated.baseline_score] * 2, abs=1e-4)


def test_what_the_map_names_goes_first(lens, prompt, integrated):
    options = {"points": 4, "n_random": 3}
    curve = deletion_curve(lens, prompt, integrated, **options)
    backwards = deletion_curve(lens, prompt, replace(integrated, weights=-integrated.weights), **options)
    assert curve.gain > 1
    assert backwards.gain < 0
    assert curve.n_worse == 0
    assert "logits below 3 random orders on average; 0 of them do as well" in repr(curve)
    table = curve.to_pandas()
    assert list(table.columns) == ["share", "score", "random", "low", "high"]
    assert curve.plot().get_xlabel() == "share of the patches taken away"


def test_the_gain_by_hand():
    curve = DeletionCurve((0, 0.5, 1), torch.tensor([4.0, 0, 0]), torch.tensor([[4.0, 4, 0], [4, 0, 0]]), ("a",))
    assert curve.gain == pytest.approx(0.5 * (0 + 2) / 2 + 0.5 * (2 + 0) / 2)
    assert curve.n_worse == 1


# ---------------------------------------------------------------------- tables, figures, files


def test_it_is_saved_drawn_and_tabled(lens, integrated, tmp_path):
    integrated.save(tmp_path / "map.safetensors")
    back = PixelAttribution.load(tmp_path / "map.safetensors", lens)
    assert repr(back) == repr(integrated)
    assert torch.equal(back.values["pixel_values"], integrated.values["pixel_values"])
    assert torch.equal(back.places["pixel_values"], integrated.places["pixel_values"])
    table = back.to_pandas()
    assert len(table) == 36
    assert table["attribution"][0] == pytest.approx(float(integrated.weights.max()))
    for by, shape in (("patch", (6, 6)), ("pixel", (48, 48))):
        figure = back.plot(by, high=2.0)
        _, drawn = figure.axes[0].images
        assert drawn.get_array().shape == shape
        assert drawn.norm.vmin == -drawn.norm.vmax == -2.0
        assert list(drawn.get_extent()) == [0, 48, 48, 0]
    with pytest.raises(ScoreError, match="another model"):
        PixelAttribution.load(tmp_path / "map.safetensors", Lens.demo("plain"))


def test_a_gradient_is_drawn_from_zero(lens, prompt):
    figure = pixel_attribution(lens, prompt, method="gradient").plot("pixel")
    drawn = figure.axes[0].images[1]
    assert drawn.norm.vmin == 0
    assert figure.axes[-1].get_ylabel() == "sum of |gradient|, logits per unit of a processed pixel, by pixel"


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "saliency"}, ScoreError, "unknown method of pixel attribution 'saliency'"),
        ({"steps": 0}, ScoreError, "steps is the number of points on the path, 1 or more, given 0"),
        ({"baseline": "grey"}, PromptError, "a baseline is a number for every processed pixel or a prompt, given 'gr"),
        ({"answer": "red", "against": "red"}, ScoreError, "'red' against itself is 0"),
        ({"answer": "red", "metric": lambda logits: logits[0]}, ScoreError, "give answers or a metric of your own"),
        ({"metric": lambda logits: logits}, ScoreError, "expected one finite number, as a tensor, of logits"),
    ],
)
def test_what_makes_no_sense_is_refused(lens, prompt, options, error, message):
    with pytest.raises(error, match=message):
        pixel_attribution(lens, prompt, **options)


def test_prompts_that_do_not_fit_are_refused(lens, prompt, integrated):
    examples = shapes.examples(2, seed=3)
    both = lens.prompt([each.question for each in examples], images=[each.image for each in examples])
    two = lens.prompt("compare them?", images=[each.image for each in examples])
    for ask, error, message in (
        (lambda: pixel_attribution(lens, both), ScoreError, "given a batch of 2 rows"),
        (lambda: pixel_attribution(lens, lens.prompt("what is it?")), PromptError, "the prompt has no pixels"),
        (lambda: pixel_attribution(lens, prompt, baseline=two), PromptError, "pictures are of another layout"),
        (lambda: deletion_curve(lens, two, integrated), PromptError, "the attribution is of another prompt"),
        (
            lambda: deletion_curve(lens, prompt, integrated, interventions=[AblateTokens("image")]),
            PromptError,
            "it is of another prompt, model or metric, or was made under other interventions",
        ),
        (lambda: deletion_curve(lens, prompt, integrated, points=0), ScoreError, "points and n_random are 1 or more"),
        (
            lambda: deletion_curve(lens, prompt, replace(integrated, ids=(), answers=("margin",))),
            ScoreError,
            "the attribution is of margin: give metric= again",
        ),
        (lambda: integrated.plot("token"), ScoreError, "unknown way to draw a pixel attribution 'token'"),
    ):
        with pytest.raises(error, match=message):
            ask()


def test_pictures_without_a_gradient_or_a_place_are_refused():
    with pytest.raises(ModelError, match=r"no gradient reaches the pixels of Emu3.*: they become discrete"):
        pixel_attribution(lens_of("emu3"), prompt_of("emu3"), 5)
    found = pixel_attribution(lens_of("blip-2"), prompt_of("blip-2"), 5, method="gradient")
    with pytest.raises(PromptError, match="not known where its visual tokens lie"):
        found.plot()
    with pytest.raises(ScoreError, match="no pixel belongs to one visual token alone, as in a Q-former"):
        deletion_curve(lens_of("blip-2"), prompt_of("blip-2"), found)


def test_a_server_is_refused(prompt, integrated):
    far = Lens.demo(backend="nnsight", remote="local")
    for ask in (lambda: pixel_attribution(far, prompt), lambda: deletion_curve(far, prompt, integrated)):
        with pytest.raises(RemoteError, match=r"it is on a server|model is on a server"):
            ask()
    assert issubclass(RemoteError, LensError)
