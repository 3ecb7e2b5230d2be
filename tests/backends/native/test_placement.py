"""A model whose layers lie on several devices, or away between calls, gives what it gives when it lies in one place."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lmm_lens import (
    VAR,
    AblateHeads,
    Knockout,
    Lens,
    PatchHeads,
    PatchResidual,
    Read,
    activation_patching,
    attention_map,
    direct_attribution,
    find_sinks,
    logit_lens,
    score_heads,
)
from lmm_lens.bundled import shapes
from lmm_lens.patching import attribution_patching
from tests.support.cases import SITES, hooks_of_ours, plain
from tests.support.models import FAMILIES
from tests.support.placements import PLACEMENTS, device_map, home, load, same, weights_away

pytestmark = pytest.mark.filterwarnings("ignore:.*of the visual tokens are sinks")  # a threshold chosen low
NAMES = ("llava", "qwen2_5_vl", "gemma3")  # plain; positions in three dimensions; tied words and sliding windows
EFFECT = 1e-3  # what an edit changes, at least
CRITERIA = {
    "min_visual_mass": 0.0,
    "min_nonsink_ratio": 0.0,
    "sink_dims": tuple(range(0, 64, 4)),
    "sink_threshold": 1.8,
}
EVERYWHERE = VAR(**CRITERIA, first_layer=0, skip_last_layer=False, rows="all")


@pytest.fixture(scope="module", params=PLACEMENTS)
def placement(request):
    return request.param


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A family's folder, written when first asked for."""

    @cache
    def folder(name: str) -> Path:
        path = tmp_path_factory.mktemp(name)
        if name == "shapes-llava":
            model, processor = shapes.load()
            processor.save_pretrained(path)
        else:
            model = FAMILIES[name]()[0]
        model.save_pretrained(path)
        return path

    return folder


def opened(name, placement, folders, tmp_path_factory) -> SimpleNamespace:
    """The lens on the model in one place, the dispatched model and its lens, and a prompt of each."""
    model = PLACEMENTS[placement](folders(name), tmp_path_factory.mktemp("offload"))
    whole = load(folders(name))
    processor = shapes.load()[1] if name == "shapes-llava" else None
    for each in (whole, model):
        each.generation_config.eos_token_id = None
        each.generation_config.pad_token_id = 0
    return SimpleNamespace(whole=Lens(whole, processor), model=model, lens=Lens(model, processor), placement=placement)


@pytest.fixture(scope="module", params=NAMES)
def case(request, placement, folders, tmp_path_factory):
    found = opened(request.param, placement, folders, tmp_path_factory)
    found.inputs = FAMILIES[request.param]()[1]
    found.prompts = [lens.prompt(inputs=found.inputs) for lens in (found.whole, found.lens)]
    return found


@pytest.fixture(scope="module")
def bundled(placement, folders, tmp_path_factory):
    found = opened("shapes-llava", placement, folders, tmp_path_factory)
    pairs = shapes.color_pairs(2)
    found.pairs = [
        [lens.prompt([p[i].question for p in pairs], images=[p[i].image for p in pairs]) for i in (0, 1)]
        for lens in (found.whole, found.lens)
    ]
    return found


def edits(lens, inputs):
    """One intervention of each kind, some of which hold what a run of the same lens has read."""
    negative = {**inputs, "pixel_values": -inputs["pixel_values"]}
    clean = lens.run(lens.prompt(inputs=negative), read=["z", "resid_pre"])
    last = lens.n_layers - 1
    return {
        "zeroed heads": [AblateHeads([(1, 0), (last, 1)], rows="after_image")],
        "uniform heads": [AblateHeads([(0, 2), (last, 3)], mode="uniform")],
        "knockout": [Knockout("image", "last")],
        "patched heads": [PatchHeads([(1, 0), (last, 1)], clean)],
        "patched streams": [PatchResidual([1, last], clean, rows="image")],
    }


def test_without_edits_it_answers_as_the_model_in_one_place(case):
    whole, dispatched = case.prompts
    expected = plain(case.whole.model, whole.inputs)
    same(plain(case.model, whole.inputs), expected, case.placement)
    same(case.lens.run(dispatched).logits, expected, case.placement)


def test_prompts_go_to_where_the_model_computes(case):
    assert case.lens.device.type == home(case.placement)
    assert {tensor.device.type for tensor in case.prompts[1].inputs.values()} == {home(case.placement)}
    assert repr(case.lens).endswith(f"on {case.lens.device}")


def test_every_hook_point_reads_the_same(case):
    whole, dispatched = case.prompts
    expected = case.whole.run(whole, read=SITES).reads
    given = case.lens.run(dispatched, read=SITES).reads
    assert given.keys() == expected.keys()
    for at, value in expected.items():
        same(given[at], value, case.placement)


def test_every_edit_does_the_same(case):
    whole, dispatched = case.prompts
    before = case.whole.run(whole).logits
    mine, theirs = edits(case.lens, case.inputs), edits(case.whole, case.inputs)
    for name in theirs:
        expected = case.whole.run(whole, theirs[name]).logits
        assert (expected - before).abs().max() > EFFECT, f"{name} does nothing, so nothing was tested"
        same(case.lens.run(dispatched, mine[name]).logits, expected, case.placement)


def test_redistribution_in_every_layer_does_the_same(case):
    whole, dispatched = (
        lens.run(prompt, [EVERYWHERE]) for lens, prompt in zip((case.whole, case.lens), case.prompts, strict=True)
    )
    assert all(whole.reports[0].edits[layer] for layer in range(case.whole.n_layers))
    assert dispatched.reports[0].edits == whole.reports[0].edits
    same(dispatched.logits, whole.logits, case.placement)


def test_what_an_outer_block_applies_reaches_generation_and_direct_calls(case):
    answers = []
    for lens, prompt in zip((case.whole, case.lens), case.prompts, strict=True):
        with lens.apply(EVERYWHERE, AblateHeads([(1, 0)])):
            direct = plain(lens.model, prompt.inputs)
            answers.append((direct, lens.generate(prompt, max_new_tokens=4, logits=True)))
    (expected, generated), (given, also) = answers
    same(given, expected, case.placement)
    assert torch.equal(also.tokens.cpu(), generated.tokens)
    same(also.logits, generated.logits, case.placement)


def test_the_dispatched_model_stays_as_it_was(case):
    def state():
        hooks = {name: getattr(module, "_hf_hook", None) for name, module in case.model.named_modules()}
        forwards = {name: vars(module).get("forward") for name, module in case.model.named_modules()}
        return hooks, forwards, {name: tensor.device for name, tensor in case.model.state_dict().items()}

    before = state()
    assert any(hook is not None for hook in before[0].values()), "it is not dispatched, so nothing was tested"
    case.lens.run(case.prompts[1], edits(case.lens, case.inputs)["zeroed heads"], read=SITES)
    with pytest.raises(ValueError, match="stop"):
        case.lens.run(case.prompts[1], read=[Read("z", [1], reduce=stopping)])
    assert state() == before
    assert hooks_of_ours(case.model) == []
    same(plain(case.model, case.inputs), plain(case.whole.model, case.inputs), case.placement)


def stopping(x, context):
    raise ValueError("stop")


def test_its_identity_is_that_of_its_weights(case):
    assert case.lens.identity == case.whole.identity
    with torch.no_grad():
        case.whole.model.get_decoder().layers[1].mlp.down_proj.weight.mul_(2)
    assert Lens(case.whole.model).identity != case.lens.identity
    with torch.no_grad():
        case.whole.model.get_decoder().layers[1].mlp.down_proj.weight.mul_(0.5)


def test_experiments_find_the_same(bundled):
    ours, theirs = bundled.lens, bundled.whole
    (clean, corrupt), (our_clean, our_corrupt) = bundled.pairs
    for metric, query in (("nonsink_mass", "last"), ("visual_mass", "answer")):
        expected = score_heads(theirs, clean, metric=metric, query=query)
        same(score_heads(ours, our_clean, metric=metric, query=query).values, expected.values, bundled.placement)
    expected, given = find_sinks(theirs, clean), find_sinks(ours, our_clean)
    assert given.dims == expected.dims
    assert given.threshold == pytest.approx(expected.threshold, rel=1e-4)
    for site, by in (("resid_pre", "span"), ("z", "head")):
        expected = activation_patching(theirs, clean, corrupt, site=site, by=by, layers=[0, 1, 4])
        same(
            activation_patching(ours, our_clean, our_corrupt, site=site, by=by, layers=[0, 1, 4]).values,
            expected.values,
            bundled.placement,
        )
    expected = attribution_patching(theirs, clean, corrupt)
    same(attribution_patching(ours, our_clean, our_corrupt).values, expected.values, bundled.placement)


@pytest.mark.long
def test_readouts_find_the_same(bundled):
    found = []
    for lens, ((clean, _), _) in zip((bundled.whole, bundled.lens), (bundled.pairs, bundled.pairs[::-1]), strict=True):
        answers = {"answer": ["red", "blue"], "against": ["green", "green"]}
        parts = [direct_attribution(lens, clean, by=by, **answers).values for by in ("layer", "head", "mlp", "span")]
        weights = attention_map(lens, clean, drop_sinks=True).weights
        found.append([*parts, weights, logit_lens(lens, clean, words=["red"]).logits])
    for expected, given in zip(*found, strict=True):
        same(given.nan_to_num(), expected.nan_to_num(), bundled.placement)


def test_sinks_found_on_the_fly_are_the_same(bundled):
    var = VAR(sink_dims="auto", sink_threshold="auto", min_nonsink_ratio=0.0)
    (clean, _), (our_clean, _) = bundled.pairs
    expected = bundled.whole.generate(clean, [var], max_new_tokens=3, logits=True)
    given = bundled.lens.generate(our_clean, [var], max_new_tokens=3, logits=True)
    assert given.reports[0].edits == expected.reports[0].edits
    same(given.logits, expected.logits, bundled.placement)


def test_a_bridge_on_it_answers_the_same_and_shares_its_weights(bundled):
    edit = [AblateHeads([(1, 0), (2, 3), (4, 7)]), VAR(sink_dims="auto", sink_threshold="auto", min_nonsink_ratio=0.0)]
    (clean, _), (our_clean, _) = bundled.pairs
    bridged = Lens(bundled.model, bundled.lens.processor, backend="transformer_lens")
    expected = bundled.whole.run(clean, edit, read=["z"])
    given = bridged.run(our_clean, edit, read=["z"])
    same(given.logits, expected.logits, bundled.placement)
    for at, value in expected.reads.items():
        same(given.reads[at], value, bundled.placement)
    if bundled.placement == "cpu offload":  # not from files, which are read anew each time
        kept = weights_away(bundled.model)
        assert kept
        assert weights_away(bridged.bridge.original_model) == kept


@pytest.mark.parametrize("given", ["auto", "a map"])
def test_a_lens_opens_a_model_by_name_with_a_device_map(given, lens, folders, tmp_path):
    folder = folders("shapes-llava")
    where = "auto" if given == "auto" else device_map(folder, lambda name, layer: "disk" if layer else "cpu")
    opened = Lens.from_pretrained(str(folder), dtype=torch.float32, device_map=where, offload_folder=tmp_path)
    assert opened.identity == lens.identity
    example, edit = shapes.examples(1, ["color"])[0], [AblateHeads([(2, 3), (4, 7)])]
    runs = [each.run(each.prompt(example.question, images=example.image), edit) for each in (opened, lens)]
    same(runs[0].logits, runs[1].logits, "cuda" if opened.device.type == "cuda" else "cpu")
