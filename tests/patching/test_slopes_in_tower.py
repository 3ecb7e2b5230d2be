"""Attribution patching in the vision tower: against finite differences by torch's own hooks, and true patching."""

import copy
from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch

from lmm_lens import Lens, PatchResidual, activation_patching, attribution_patching
from lmm_lens.bundled import shapes
from lmm_lens.errors import HookError, ModelError, RemoteError, ScoreError
from tests.support.by_hand import repainted
from tests.support.color_pairs import batch
from tests.support.families import lens_of, prompt_of

STEP = 5e-4  # norms of the decoders round to fp32: a smaller step would measure it, a larger one where experts change
LOUD = {"llava": 2, "gemma3": 2}  # the others' are made four times as large
NEAR = {"llava": 2e-4, "gemma3": 2e-4}
CLOSE = {"rel": 5e-3, "abs": 1e-3}
QUICK = ("llava", "qwen2_5_vl", "internvl")
LATER = ("mllama", "pixtral", "idefics3", "llama4", "gemma3", "qwen3_vl", "idefics2")
FAMILIES = [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in LATER)]


def loud(model, times):
    """Weights outside the decoder as large as trained ones, so that heads look somewhere and what they write counts."""
    inside = set(map(id, model.get_decoder().parameters()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and id(parameter) not in inside and parameter.shape[0] < 300:
                parameter.mul_(times * (4 if any(each in name for each in ("q_proj", "k_proj", "qkv")) else 1))
    return model


@cache
def exact(name, near=None):
    """A family in fp64 and a pair of its prompts; with `near` their pictures differ by that little."""
    lens = Lens(loud(copy.deepcopy(lens_of(name).model).double(), LOUD.get(name, 4)))
    given = prompt_of(name).inputs
    clean = {key: each.double() if each.is_floating_point() else each for key, each in given.items()}
    corrupt = repainted(clean)
    if near is not None:
        corrupt = {
            key: clean[key] + near * (each - clean[key]) if each.is_floating_point() else each
            for key, each in corrupt.items()
        }
    pair = [lens.prompt(inputs=inputs) for inputs in (clean, corrupt)]
    rise = logits(lens, pair[0]) - logits(lens, pair[1])
    return SimpleNamespace(lens=lens, pair=pair, answers=[(int(rise.argmax()), int(rise.argmin()))])


def logits(lens, prompt):
    with torch.no_grad():
        return lens.model(**prompt.inputs).logits[0, -1]


def hooked(lens, site, layer, change):
    """A handle of torch's own, on the module whose input or output a hook point is."""
    parts = lens.adapter.tower.layers[layer]
    if site == "z":
        return parts.output_projection.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]))

    def after(module, args, out):
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    module = {"resid_post": parts.module, "attn_out": parts.attention, "mlp_out": parts.mlp}[site]
    return module.register_forward_hook(after, prepend=True)


def slope(it, site, layer, tokens, columns=slice(None)):
    """The derivative of the effect on the way from the corrupt to the clean activation, by central differences."""
    lens, (clean, corrupt), ((right, wrong),) = it.lens, it.pair, it.answers
    kept = []
    hook = hooked(lens, site, layer, lambda x: kept.append(x) or x)
    high = logits(lens, clean)
    hook.remove()

    def difference(found):
        return float(found[right] - found[wrong])

    def at(share):
        def change(x):
            change = torch.zeros_like(x)
            change[..., tokens, columns] = (kept[0] - x)[..., tokens, columns]
            return x + share * change

        hook = hooked(lens, site, layer, change)
        found = logits(lens, corrupt)
        hook.remove()
        return difference(found)

    return (at(STEP) - at(-STEP)) / (2 * STEP) / (difference(high) - difference(logits(lens, corrupt)))


@pytest.mark.parametrize("name", FAMILIES)
def test_it_equals_finite_differences(name):
    it = exact(name)
    size, n = it.lens.vision.d_head, it.lens.vision.n_heads
    last = it.lens.vision.n_used - 1
    heads = attribution_patching(it.lens, *it.pair, "vision.z", "head", answers=it.answers)
    assert (heads.method, heads.site, heads.rows, heads.shape) == (
        "attribution",
        "vision.z",
        "all",
        (it.lens.vision.n_layers, n),
    )
    assert heads.layers == tuple(range(last + 1))
    for layer, head in ((0, 0), (last, n - 1)):
        expected = slope(it, "z", layer, slice(None), slice(head * size, (head + 1) * size))
        assert float(heads.values[layer, head]) == pytest.approx(expected, **CLOSE)
    for site in ("resid_post", "attn_out", "mlp_out"):
        every = [range(it.lens.run(it.pair[0], read=["vision.z"]).tower.n_tokens)]
        n_rows = it.lens.run(it.pair[0], read=["vision.z"]).tower.n_rows
        groups = {"everything": list(every) * n_rows}
        found = attribution_patching(it.lens, *it.pair, f"vision.{site}", "span", groups=groups, answers=it.answers)
        expected = slope(it, site, 0, slice(None))
        assert float(found.values[0, found.units.index("everything")]) == pytest.approx(expected, **CLOSE)


def test_a_patch_and_a_region_equal_finite_differences_and_patches_add_up():
    it = exact("llava")
    tokens = it.lens.vision.patches(it.pair[0])
    region = torch.zeros(1, tokens.made_of.shape[2], dtype=torch.bool)
    region[0, [3, 4, 8]] = True
    spans, patches = (
        attribution_patching(it.lens, *it.pair, "vision.resid_post", by, groups=groups, answers=it.answers)
        for by, groups in (("span", {"region": region}), ("patch", None))
    )
    assert spans.units == ("image", "class", "region")
    for unit, chosen in (("class", [0]), ("region", [3, 4, 8])):
        expected = slope(it, "resid_post", 0, chosen)
        assert float(spans.values[0, spans.units.index(unit)]) == pytest.approx(expected, **CLOSE)
    assert float(patches.values[0, 4]) == pytest.approx(slope(it, "resid_post", 0, [5]), **CLOSE)
    assert patches.units[4] == "5"
    torch.testing.assert_close(patches.values.sum(1), spans.values[:, 0])
    torch.testing.assert_close(patches.values[:, [2, 3, 7]].sum(1), spans.values[:, 2])


def test_heads_are_patched_in_the_rows_that_are_named():
    it = exact("llava")
    size = it.lens.vision.d_head
    whole, part = (
        attribution_patching(it.lens, *it.pair, "vision.z", "head", rows=rows, answers=it.answers)
        for rows in ("all", [2, 5])
    )
    other = [token for token in range(17) if token not in (2, 5)]
    rest = attribution_patching(it.lens, *it.pair, "vision.z", "head", rows=other, answers=it.answers)
    expected = slope(it, "z", 0, [2, 5], slice(size, 2 * size))
    assert float(part.values[0, 1]) == pytest.approx(expected, **CLOSE)
    torch.testing.assert_close(part.values + rest.values, whole.values)


@pytest.mark.parametrize(
    ("site", "by"), [("vision.z", "head"), ("vision.pattern", "head"), ("vision.resid_post", "span")]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_for_pictures_that_hardly_differ_it_is_the_true_effect(name, site, by):
    it = exact(name, near=NEAR.get(name, 1e-3))
    if site == "vision.resid_post" and "image" not in it.lens.run(it.pair[0], read=["vision.z"]).tower.masks:
        for patching in (activation_patching, attribution_patching):
            with pytest.raises(ScoreError, match="not known which tokens of this vision tower are patches"):
                patching(it.lens, *it.pair, site, by, answers=it.answers)
        return
    true, estimate = (
        run(it.lens, *it.pair, site, by, answers=it.answers) for run in (activation_patching, attribution_patching)
    )
    torch.testing.assert_close(
        estimate.per_pair, true.per_pair, atol=3e-4 if site == "vision.pattern" else 2e-3, rtol=2e-2, equal_nan=True
    )
    assert (estimate.layers, estimate.units, estimate.shape) == (true.layers, true.units, true.shape)
    assert float(estimate.per_pair.abs().max()) > (0.005 if site != "vision.pattern" else 5e-4)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_every_backend_gives_the_same(name, backend):
    rise = partial(torch.randint, 256, (60, 90, 3), dtype=torch.uint8)
    pictures = [rise(generator=torch.Generator().manual_seed(seed)).numpy() for seed in (0, 1)]
    found = []
    for where in ("native", backend):
        lens = lens_of(name, where)
        pair = [lens.prompt("What is this?", images=picture) for picture in pictures]
        found.append(
            [
                attribution_patching(lens, *pair, site, by, answers=[(5, 7)]).per_pair
                for site, by in (("vision.z", "head"), ("vision.pattern", "head"), ("vision.resid_post", "patch"))
            ]
        )
    for expected, given in zip(*found, strict=True):
        torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-3)
        assert float(expected.abs().max()) > 0


# ---------------------------------------------------------------------- on the bundled model


@pytest.fixture(scope="module")
def pair(lens):
    ((clean, corrupt),) = shapes.color_pairs(1, seed=0)
    return batch(lens, [clean]), batch(lens, [corrupt])


def test_a_region_is_that_of_the_boxes_patches(lens, pair):
    """In both ways: patches of 8 pixels, six in a row, behind a class token."""
    patches = lens.vision.patches(pair[0])
    region = patches.in_box((8, 8, 23, 9))
    assert region.nonzero().tolist() == [[0, 8], [0, 9]]
    groups = {"object": region}
    true = activation_patching(lens, *pair, "vision.resid_post", "span", layers=[1], groups=groups)
    source = lens.run(pair[0], read=["vision.resid_post"])
    edit = PatchResidual([1], source, region, "resid_post", part="vision")
    ids = int(source.logits[0, -1].argmax()), int(lens.run(pair[1]).logits[0, -1].argmax())
    found = lens.run(pair[1], [edit]).logits[0, -1].double()
    low, high = float(true.corrupt_ld), float(true.clean_ld)
    assert float(true.per_pair[0, 0, 2]) == pytest.approx((float(found[ids[0]] - found[ids[1]]) - low) / (high - low))
    estimate = attribution_patching(lens, *pair, "vision.resid_post", "span", layers=[1], groups=groups)
    assert estimate.units == true.units == ("image", "class", "object")
    same = attribution_patching(lens, *pair, "vision.resid_post", "span", layers=[1], groups={"object": [[8, 9]]})
    assert torch.equal(same.per_pair, estimate.per_pair)


def test_it_is_saved_ranked_and_drawn_as_true_effects_are(lens, pair, tmp_path):
    scores = attribution_patching(lens, *pair, "vision.z", "head")
    scores.save(tmp_path / "scores.safetensors")
    back = type(scores).load(tmp_path / "scores.safetensors", lens)
    assert torch.equal(back.per_pair, scores.per_pair)
    assert (back.top(2).part, back.top(2).n_layers) == ("vision", 3)
    assert scores.rank_correlation(activation_patching(lens, *pair, "vision.z", "head")) > 0.8
    parts = [attribution_patching(lens, *pair, site, "span") for site in ("vision.resid_post", "resid_pre")]
    assert len(parts[1].plot(tower=parts[0]).images) == 1
    true = activation_patching(lens, *pair, "resid_pre", "span")
    with pytest.raises(ScoreError, match="by attribution in the tower and by patching in the decoder are no one path"):
        true.plot(tower=parts[0])


@pytest.mark.parametrize(
    ("site", "by", "options", "message"),
    [
        ("vision.z", "span", {}, "z is patched by head"),
        ("vision.resid_post", "head", {}, "resid_post cannot be patched by head"),
        ("vision.resid_post", "span", {"layers": []}, "no layers were given"),
        ("vision.resid_post", "span", {"rows": "image"}, "rows='image' is for by='head': by span, the span itself is"),
        ("vision.z", "head", {"rows": "register"}, "rows 'register' select no token of the vision tower"),
        ("vision.resid_post", "patch", {"groups": {"x": [[1]]}}, r"groups=\['x'\] is for by='span', given by='patch'"),
        ("vision.resid_post", "span", {"groups": {"class": [[1]]}}, "a span is called 'class' already: image, class"),
        (
            "vision.resid_post",
            "span",
            {"groups": {"x": [1]}},
            r"expected the positions of each of the 1 rows.*\n  as in groups=\{'object': lens.vision.patches",
        ),
    ],
)
@pytest.mark.parametrize("patching", [activation_patching, attribution_patching])
def test_what_does_not_go_together_is_refused(lens, pair, patching, site, by, options, message):
    with pytest.raises(ScoreError, match=message):
        patching(lens, *pair, site, by, **options)


def test_patches_that_are_all_mixed_lie_under_no_box():
    with pytest.raises(HookError, match="made of all patches of the tower, so that none lies under a box"):
        lens_of("blip-2").vision.patches(prompt_of("blip-2")).in_box((0, 0, 8, 8))


def test_a_tower_that_runs_without_gradients_is_refused(lens, pair):
    model = copy.deepcopy(lens.model)
    tower = model.model.vision_tower
    tower.forward = torch.no_grad()(tower.forward)
    cut = Lens(model, lens.processor)
    with pytest.raises(ModelError, match=r"no gradient reaches the vision tower of Llava.*\n?.*activation_patching"):
        attribution_patching(cut, *pair, "vision.z", "head")


def test_gradients_do_not_travel(lens, pair):
    away = Lens(lens.model, lens.processor, backend="nnsight", remote="http://localhost:1")
    with pytest.raises(RemoteError, match="gradients do not travel"):
        attribution_patching(away, *pair, "vision.z", "head")
