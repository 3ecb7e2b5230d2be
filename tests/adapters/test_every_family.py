"""Every family x every backend: the plain model without intervention; edits and scores as slow loops compute them."""

from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lmm_lens import VAR, AblateHeads, Lens, Read, score_heads
from lmm_lens.adapters import families, registry
from lmm_lens.errors import LensError
from tests.support.cases import plain
from tests.support.evidence import picture
from tests.support.families import EVERY, SIZE, lens_of, prompt_of
from tests.support.reference import Reference

BACKENDS = ["native", "nnsight", "transformer_lens"]
TOLERANCE = 1e-4
UNBRIDGED = {
    ("ernie4_5_vl_moe", "transformer_lens"): "cannot be run as a TransformerBridge",
    ("glm5_next", "transformer_lens"): "its attention does not form a pattern",
    ("inkling2", "transformer_lens"): "do not sum to one",
    ("nemotron_h_omni", "transformer_lens"): "has no output embedding",
}
STREAMS = ["gemma3n", "glm5_next"]
"""Whose layers hand on several residual streams, so that no token has one in which VAR could find sinks."""
UNREPLAYED = ["chameleon", "dots3_note", "gemma3n", "glm5_next", "inkling2", "kimi_k25", "qwen4_exp", "mistral_large4"]
"""Whose layers, or what follows them, do not run by themselves: everything is computed one forward each."""


PAIRS = [(name, backend) for name in EVERY for backend in BACKENDS if (name, backend) not in UNBRIDGED]


@pytest.fixture(params=PAIRS, ids=" on ".join, scope="module")
def pair(request) -> tuple[str, str]:
    return request.param


@pytest.fixture
def name(pair) -> str:
    return pair[0]


@pytest.fixture
def lens(pair) -> Lens:
    return lens_of(*pair)


@cache
def reference(name: str) -> Reference:
    return Reference(lens_of(name).model)


def heads_of(name: str) -> list[tuple[int, int]]:
    shape = lens_of(name).shape
    return [(layer, 1) for layer in shape.self_attention]


def close(given: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().clamp_min(1)
    assert float((given - expected).abs().max() / scale) < TOLERANCE


def test_every_adapter_is_here():
    tested = {lens_of(name).adapter.family for name in EVERY}
    assert {adapter.family for adapter in registry.built_in()} <= tested


def test_every_model_type_exists_in_transformers():
    """A family that transformers renames or drops fails here, not at a user's."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    assert set(families()) <= set(KNOWN)


def test_the_table_says_what_has_a_bridge():
    without = {lens_of(name).adapter.family for name, _ in UNBRIDGED}
    assert {adapter.family for adapter in registry.built_in() if not adapter.has_bridge} == without


@pytest.mark.parametrize("name", EVERY)
def test_families_that_take_videos_say_so(name):
    lens = lens_of(name)
    ask = lambda: lens.prompt("What happens?", videos=[picture(*SIZE)] * 4)  # noqa: E731
    if lens.adapter.takes_videos:
        assert bool(ask().mask("video").any())
    else:
        with pytest.raises(LensError, match="takes none"):
            ask()


@pytest.mark.parametrize(("name", "backend"), list(UNBRIDGED))
def test_what_cannot_be_bridged_is_refused(name, backend):
    with pytest.raises(LensError, match=UNBRIDGED[name, backend]):
        lens_of(name, backend).run(prompt_of(name))


def test_without_an_intervention_it_is_the_plain_model(lens, pair):
    name, backend = pair
    expected = plain(lens_of(name).model, prompt_of(name).inputs)
    given = lens.run(prompt_of(name)).logits
    if backend == "transformer_lens":  # eager attention
        close(given, expected)
    else:
        assert torch.equal(given, expected)


@pytest.mark.parametrize("name", EVERY)
def test_masks_partition_the_sequence(name):
    prompt = prompt_of(name)
    parts = torch.stack([prompt.mask(mask) for mask in ("image", "video", "marker", "text", "pad")])
    assert torch.equal(parts.sum(0), torch.ones_like(parts[0], dtype=torch.int))
    assert bool(prompt.mask("image").any())


def test_ablation_is_that_of_a_plain_hook(lens, name):
    """z is the input of the output projection: a head set to zero there is a head without its slice of W_O."""
    parts, prompt = lens_of(name).adapter.layers, prompt_of(name)

    def zeroing(layer):
        def hook(module, args):
            x = args[0].clone()
            x[..., layer.d_head : 2 * layer.d_head] = 0
            return (x, *args[1:])

        return layer.output_projection.register_forward_pre_hook(hook)

    hooks = [zeroing(parts[layer]) for layer, _ in heads_of(name)]
    try:
        expected = plain(lens_of(name).model, prompt.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    assert (expected - plain(lens_of(name).model, prompt.inputs)).abs().max() > 1e-5, "the edit does nothing"
    close(lens.run(prompt, [AblateHeads(heads_of(name))]).logits, expected)


@pytest.mark.parametrize("pair", PAIRS, ids=" on ".join)
def test_scores_are_sums_over_the_reference_patterns(lens, name):
    prompt, slow = prompt_of(name), reference(name)
    slow.run(prompt.inputs)
    columns = prompt.mask("image")[0].nonzero().flatten()
    last = int(prompt.mask("last")[0].int().argmax())
    given = score_heads(lens, prompt).values
    for layer, _ in heads_of(name):
        close(given[layer], slow.read("pattern", layer)[0, :, last, columns].sum(-1))


def sink_scores(resid: Tensor, dims: tuple[int, ...]) -> Tensor:
    """phi of every token: its largest sink dimension in units of its RMS."""
    return resid[:, dims].abs().amax(-1) / (resid.square().mean(-1) + 1e-6).sqrt()


def threshold(phi: Tensor, image: list[bool], row: int) -> float:
    """The middle of the widest gap between two phi that leaves the row a sink before it and a visual non-sink."""
    seen = phi[:row].max()
    lowest = phi[torch.tensor(image)].min()
    values = phi.sort().values
    gaps = [(float(b - a), float(a + b) / 2) for a, b in pairwise(values) if lowest <= a < b <= seen]
    width, middle = max(gaps)
    assert width > 1e-4, "rounding could move a token over the threshold"
    return middle


@pytest.mark.parametrize("name", STREAMS)
def test_redistribution_among_several_residual_streams_is_refused(name):
    with pytest.raises(LensError, match="several residual streams"):
        lens_of(name).run(
            prompt_of(name), [VAR(sink_dims=(1,), sink_threshold=1.0, first_layer=0, skip_last_layer=False)]
        )


@pytest.mark.filterwarnings("ignore:.*of the visual tokens are sinks")  # by a threshold that chooses some everywhere
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair[0] not in STREAMS], ids=" on ".join)
def test_redistribution_is_that_of_a_loop(lens, name):
    """VAR of METHODS section 2, a row at a time, at a threshold far from every token's phi."""
    prompt, slow = prompt_of(name), reference(name)
    slow.run(prompt.inputs)
    d_model = lens.shape.d_model
    dims = tuple(range(0, d_model, max(1, d_model // 8)))
    first = lens.shape.self_attention[0]
    image, rows = (prompt.mask(mask)[0].tolist() for mask in ("image", "after_image"))
    tau = threshold(sink_scores(slow.read("resid_pre", first)[0], dims), image, len(rows) - 1)
    settings = {"min_nonsink_ratio": 0.0, "min_visual_mass": 0.0, "first_layer": 0, "skip_last_layer": False}
    edited = 0

    def loop(layer, pattern, start):
        nonlocal edited
        if layer != first:
            return pattern
        out = pattern.clone()
        phi = sink_scores(slow.passes[-1].sites["resid_pre"][layer][0], dims)
        sinks = [j for j in range(len(phi)) if float(phi[j]) >= tau]
        others = [j for j in range(len(phi)) if image[j] and j not in sinks]
        for head in range(pattern.shape[1]):
            for row in (i for i, chosen in enumerate(rows) if chosen):
                a = pattern[0, head, row].tolist()
                rest = sum(a[j] for j in others)
                budget = 0.6 * sum(a[j] for j in sinks)
                if rest == 0 or budget == 0:
                    continue
                edited += 1
                for j in sinks:
                    out[0, head, row, j] = 0.4 * a[j]
                for j in others:
                    out[0, head, row, j] = a[j] + budget * a[j] / rest
        return out

    with slow.editing(pattern=loop):
        slow.run(prompt.inputs)
    expected = slow.read("pattern", first)
    var = VAR(sink_dims=dims, sink_threshold=tau, **settings)
    given = lens.run(prompt, [var], read=[Read("pattern", [first])])
    close(given.reads["pattern", first][0], expected[0])
    assert given.reports[0].edits[first] == edited > 0


@pytest.mark.parametrize("name", EVERY)
def test_sweeps_are_replayed_and_equal_a_forward_of_their_own(name):
    from lmm_lens import HeadSet, head_effects

    lens, prompt = lens_of(name), prompt_of(name)
    layer = lens.shape.self_attention[0]
    heads = HeadSet([(layer, 0), (layer, 1), (lens.shape.self_attention[-1], 1)], lens.n_layers, lens.n_heads)
    clean = lens.run(prompt, logits="last").logits[0, 0].double().log_softmax(0)
    for rows in ("last", "after_image", "all"):
        effects = head_effects(lens, prompt, rows=rows, heads=heads)
        assert ("one forward each" in effects.how) == (name in UNREPLAYED)
        for unit, head in enumerate(heads):
            run = lens.run(prompt, [AblateHeads([head], rows=rows)], logits="last")
            expected = (clean - run.logits[0, 0].double().log_softmax(0))[clean.argmax()]
            close(effects.per_prompt[0, unit], expected)
