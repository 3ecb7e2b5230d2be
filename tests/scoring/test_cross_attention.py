"""Llama 3.2 Vision: heads that attend to the pictures by cross-attention are scored, ablated and cut off there."""

import pytest
import torch
from torch import Tensor

from lmm_lens import AblateHeads, HeadSet, Knockout, Lens, LensError, score_heads
from tests.support.cases import case, close, plain
from tests.support.models import joined

LAYER = 1  # of three
KEYS = 17  # a class token and 4 x 4 patches a tile


def weights(inputs) -> Tensor:
    """The eager probabilities of the cross-attention layer, [batch, head, query, key]."""
    model = case("mllama").model
    kept, own = [], model.config.text_config._attn_implementation
    attention = model.get_decoder().layers[LAYER].cross_attn
    hook = attention.register_forward_hook(lambda m, args, out: kept.append(out[1]))
    model.set_attn_implementation("eager")
    try:
        plain(model, inputs)
    finally:
        hook.remove()
        model.set_attn_implementation(own)
    return kept[0]


def silenced(inputs, rows: Tensor, heads=range(4)) -> Tensor:
    """Logits with these heads of the cross-attention set to zero in these rows, Bool[batch, query], by a plain hook."""
    projection = case("mllama").model.get_decoder().layers[LAYER].cross_attn.o_proj

    def silence(module, args):
        z = args[0].clone().unflatten(-1, (4, 16))
        for head in heads:
            z[:, :, head][rows] = 0
        return (z.flatten(-2),)

    hook = projection.register_forward_pre_hook(silence)
    try:
        return plain(case("mllama").model, inputs)
    finally:
        hook.remove()


def two() -> dict[str, Tensor]:
    """Two rows: one tile and two tiles are seen."""
    inputs = joined([case("mllama").inputs] * 2)
    inputs["cross_attention_mask"][1, 4:, :, 1] = 1
    inputs["aspect_ratio_ids"][1] = 2
    inputs["aspect_ratio_mask"][1, :, 1] = 1
    inputs["pixel_values"] = torch.randn(inputs["pixel_values"].shape, generator=torch.Generator().manual_seed(3))
    return inputs


@pytest.fixture(params=["native", "transformer_lens", "nnsight"])
def lens(request):
    return Lens(case("mllama").model, backend=request.param)


def test_the_keys_of_real_tiles_are_the_pictures(lens):
    prompt = lens.prompt(inputs=two())
    assert prompt.cross_keys.tolist() == [[True] * KEYS + [False] * KEYS, [True] * 2 * KEYS]


def test_rows_that_see_pictures_have_all_their_mass_on_them_and_a_concentration(lens):
    prompt = lens.prompt(inputs=two())
    mass = score_heads(lens, prompt, metric="visual_mass").per_prompt[:, LAYER]
    close(mass, torch.ones(2, 4))
    pattern = weights(two())[:, :, -1]
    for row, n_keys in enumerate((KEYS, 2 * KEYS)):
        p = pattern[row, :, :n_keys]
        entropy = -(p * p.log()).sum(-1)
        expected = 1 - entropy / torch.tensor(float(n_keys)).log()
        close(score_heads(lens, prompt, metric="concentration").per_prompt[row, LAYER], expected)
        close(score_heads(lens, prompt, metric="visual_preference").per_prompt[row, LAYER], expected)


def test_the_first_generated_token_is_scored_there_too(lens):
    close(score_heads(lens, lens.prompt(inputs=two()), query="answer").per_prompt[:, LAYER], torch.ones(2, 4))


def test_what_is_made_of_tokens_is_not_scored_there():
    lens = case("mllama").lens
    scores = score_heads(lens, lens.prompt(inputs=two()), metric="nonsink_mass", sink_dims=(1,), sink_threshold=2.0)
    assert scores.values[LAYER].isnan().all()
    assert not scores.values[0].isnan().any()


def test_cutting_the_image_off_silences_the_attention_of_the_target_rows(lens):
    rows = torch.zeros(2, 8, dtype=torch.bool)
    rows[:, -1] = True
    run = lens.run(lens.prompt(inputs=two()), [Knockout("image", "last", layers=[LAYER])])
    close(run.logits, silenced(two(), rows))
    assert (run.logits - plain(case("mllama").model, two()))[:, -1].abs().max() > 1e-3


def test_a_head_that_is_cut_off_is_a_head_ablated_in_these_rows(lens):
    prompt = lens.prompt(inputs=two())
    heads = HeadSet([(LAYER, 2)], 3, 4)
    cut = lens.run(prompt, [Knockout("image", "all", layers=[LAYER], heads=[2])]).logits
    close(cut, lens.run(prompt, [AblateHeads(heads)]).logits)
    close(cut, silenced(two(), torch.ones(2, 8, dtype=torch.bool), [2]))


def test_every_layer_takes_part_by_default_and_only_the_image_is_cut_in_this_one():
    lens = case("mllama").lens
    prompt = lens.prompt(inputs=two())
    assert [tap.layer for tap in Knockout("image").taps(prompt, lens.shape)] == [0, 1, 2]
    assert [tap.layer for tap in Knockout("bos").taps(prompt, lens.shape)] == [0, 2]
    with pytest.raises(
        LensError, match=r"layers \[1\] have no self-attention heads; the keys of cross-attention are no"
    ):
        lens.run(prompt, [Knockout("bos", layers=[LAYER])])


def test_generation_without_the_pictures_attention(lens):
    prompt = lens.prompt(inputs=case("mllama").inputs)
    heads = HeadSet([(LAYER, head) for head in range(4)], 3, 4)
    cut = lens.generate(prompt, [Knockout("image", "all", layers=[LAYER])], max_new_tokens=4)
    assert cut.tokens.tolist() == lens.generate(prompt, [AblateHeads(heads)], max_new_tokens=4).tokens.tolist()
