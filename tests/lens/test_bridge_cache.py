"""A cache that knows where the image is, and whose parts sum to the residual stream at visual positions too."""

import json

import circuitsvis
import pytest
import torch

from lmm_lens.bundled import shapes
from lmm_lens.errors import HookError, PromptError
from lmm_lens.lens.bridge_cache import PromptCache
from lmm_lens.lens.bridge_calls import run_with_cache


@pytest.fixture(scope="module", autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def prompt(lens):
    asked = shapes.examples(3, seed=3)
    made = lens.prompt([e.question for e in asked], images=[e.image for e in asked])
    assert not made.mask("all").all(), "one row should be padded"
    return made


@pytest.fixture(scope="module")
def logits_and_cache(bridged, prompt):
    return run_with_cache(bridged, prompt)


@pytest.fixture(scope="module")
def cache(logits_and_cache) -> PromptCache:
    return logits_and_cache[1]


def test_it_holds_the_hidden_states_of_the_users_model(lens, cache, prompt):
    states = lens.model(**prompt.inputs, output_hidden_states=True).hidden_states
    real = prompt.mask("all")
    for layer in range(lens.n_layers):
        assert (cache["resid_pre", layer] - states[layer])[real].abs().max() < 1e-4


def test_the_embedding_at_visual_positions_is_the_projected_picture(lens, cache, prompt):
    visual = prompt.mask("visual")
    features = lens.model.get_image_features(prompt.inputs["pixel_values"]).pooler_output
    assert torch.allclose(cache["hook_embed"][visual], torch.cat(list(features)).reshape(-1, 128), atol=1e-5)
    placeholder = lens.model.get_input_embeddings()(prompt.inputs["input_ids"])
    assert torch.equal(cache["embed.hook_out"], placeholder)
    assert torch.allclose(cache["hook_embed"][~visual], placeholder[~visual])


@pytest.mark.parametrize("layer", [1, 3, None])
def test_the_parts_sum_to_the_residual_stream_everywhere(cache, layer):
    whole = cache["resid_post", 5 if layer is None else layer - 1]
    assert torch.allclose(cache.decompose_resid(layer).sum(0), whole, atol=1e-4)
    by_head = cache.get_full_resid_decomposition(layer, expand_neurons=False)
    assert torch.allclose(by_head.sum(0), whole, atol=1e-3)


def test_logit_attribution_sums_to_the_logits_at_visual_and_text_positions(logits_and_cache, prompt):
    logits, cache = logits_and_cache
    tokens, others = logits.topk(2).indices.unbind(-1)
    parts = cache.logit_attrs(cache.decompose_resid(), tokens, others).sum(0)
    expected = (logits.gather(-1, tokens[..., None]) - logits.gather(-1, others[..., None]))[..., 0]
    for role in ("visual", "after_image"):
        assert torch.allclose(parts[prompt.mask(role)], expected[prompt.mask(role)], atol=1e-3)


def test_parts_that_do_not_sum_are_refused(cache, prompt):
    broken = PromptCache(cache, prompt, reinjects=True)
    broken.cache_dict["blocks.2.hook_in"] = cache["resid_pre", 2] + prompt.mask("visual")[..., None]
    assert len(broken.decompose_resid(1))
    with pytest.raises(HookError, match=r"do not sum to what enters layer 2 .*deepstack"):
        broken.decompose_resid(2)
    partial = PromptCache(cache, prompt, reinjects=True)
    del partial.cache_dict["blocks.0.hook_mlp_out"]
    with pytest.raises(HookError, match="lacks what tells whether its parts sum"):
        partial.decompose_resid(2, mode="attn")


@pytest.mark.parametrize("names", ["hook_embed", ["hook_embed"], lambda name: name == "hook_embed"])
def test_a_filtered_embedding_is_right_too(bridged, cache, prompt, names):
    _, filtered = run_with_cache(bridged, prompt, names_filter=names)
    assert set(filtered) <= {"hook_embed", "embed.hook_out"}
    assert torch.equal(filtered["hook_embed"], cache["resid_pre", 0])


def test_a_run_that_stops_before_layer_0_has_no_embedding_rather_than_the_wrong_one(bridged, prompt):
    _, stopped = run_with_cache(bridged, prompt, stop_at_layer=0)
    assert "hook_embed" not in stopped
    assert "embed.hook_out" in stopped


def test_visual_rows_are_those_of_the_picture(cache, prompt):
    for row in range(3):
        mask = prompt.mask("visual")[row]
        assert torch.equal(cache.visual("resid_post", 4, row), cache["resid_post", 4][row][mask])
        assert cache.visual("z", 2, row, image=0).shape == (36, 8, 16)
        assert torch.equal(cache.visual("blocks.4.hook_resid_post", row=row), cache.visual("resid_post", 4, row))


def test_the_image_pattern_is_the_pattern_on_the_grid(cache, prompt):
    for row in range(3):
        last = int(prompt.mask("last")[row].int().argmax())
        mapped = cache.image_pattern(3, row=row)
        assert mapped.shape == (8, 6, 6)
        for r, c in ((0, 0), (2, 5), (5, 1)):
            position = prompt.patch_at(8 * c + 1, 8 * r + 1, row=row)
            assert torch.equal(mapped[:, r, c], cache["pattern", 3][row, :, last, position])
        assert torch.equal(cache.image_pattern(3, 5, row, query=last), mapped[5:6])
        assert torch.equal(cache.image_pattern(3, row=row, query=last - prompt.n_tokens, tile=0), mapped)
    mean = cache.image_pattern(3, query="question")
    rows = prompt.mask("question")[0].nonzero()[:, 0]
    one_by_one = torch.stack([cache.image_pattern(3, query=int(q)) for q in rows]).mean(0)
    assert torch.allclose(mean, one_by_one)


def test_tokens_say_where_their_patch_is(cache, prompt):
    names = cache.token_strings(2)
    assert names[prompt.patch_at(8 * 5 + 1, 8 * 3 + 1, row=2)] == "<img 0 r3 c5>"
    text = [i for i, kept in enumerate(prompt.mask("visual")[2]) if not kept]
    assert [names[i] for i in text] == [prompt.tokens[2][i] for i in text]
    assert len(set(names) - set(prompt.tokens[2])) == 36


def test_circuitsvis_gets_tokens_and_a_pattern_without_padding(cache, prompt):
    view = cache.attention_view(2, row=0)
    n = int(prompt.mask("all")[0].sum())
    assert len(view["tokens"]) == n < prompt.n_tokens
    assert view["attention"].shape == (8, n, n)
    assert torch.allclose(view["attention"].sum(-1), torch.ones(8, n))


def test_what_circuitsvis_shows_is_that_pattern_between_those_tokens(cache):
    """By the real package: the properties of its component, read out of the page that it makes."""
    view = cache.attention_view(2, row=0)
    page = str(circuitsvis.attention.attention_patterns(**view))
    shown = json.loads(page[page.index('{"tokens"') : page.rindex("}") + 1])
    assert shown["tokens"] == view["tokens"]
    assert torch.allclose(torch.tensor(shown["attention"]), view["attention"])


def test_one_row_without_its_batch_dimension_answers_the_same(bridged, lens, prompt):
    one = lens.prompt(prompt.texts[1], images=[prompt.images[1][0]])
    _, plain = run_with_cache(bridged, one)
    _, bare = run_with_cache(bridged, one, remove_batch_dim=True)
    assert torch.equal(plain.visual("z", 3), bare.visual("z", 3))
    assert torch.equal(plain.image_pattern(3), bare.image_pattern(3))
    assert torch.equal(plain.decompose_resid()[:, 0], bare.decompose_resid())


@pytest.mark.parametrize(
    ("ask", "error", "text"),
    [
        (lambda c: c.visual("resid_post", 1, row=3), PromptError, "row 3 is out of range: the prompt has rows 0 to 2"),
        (lambda c: c.visual("resid_post", 1, image=2), PromptError, r"row 0 has no image 2: its images are \[0\]"),
        (lambda c: c.visual("pattern", 1), HookError, "use image_pattern"),
        (lambda c: c.visual("hook_vision_embed"), HookError, "is not in this cache"),
        (lambda c: c.visual("vision_projector.hook_out"), HookError, "have no visual positions"),
        (lambda c: c.image_pattern(9), HookError, "9"),
        (lambda c: c.image_pattern(1, head=8), HookError, "8"),
        (lambda c: c.image_pattern(1, query="lst"), PromptError, "did you mean 'last'"),
        (lambda c: c.image_pattern(1, query=46), PromptError, "query 46 is out of range: the prompt has 46 tokens"),
        (lambda c: c.image_pattern(1, tile=1), PromptError, "unknown tile 1"),
    ],
)
def test_what_is_not_there_is_refused(cache, ask, error, text):
    with pytest.raises(error, match=text):
        ask(cache)


def test_its_repr_is_a_sentence(cache):
    assert repr(cache) == f"PromptCache of {len(cache)} activations of a prompt of 3 rows x 46 tokens"
