"""Token ids that are bound to prompts: which operations keep the pictures, and what is refused."""

import copy

import pytest
import torch
from transformer_lens import TransformerBridge

from lmm_lens import Lens, LensError
from lmm_lens.bundled import shapes
from lmm_lens.errors import PromptError
from lmm_lens.lens.bridge_tokens import BoundTokens
from tests.support.cases import case


@pytest.fixture(scope="module", autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def llava():
    return case("llava")


@pytest.fixture(scope="module")
def lens(llava):
    return llava.on("transformer_lens")


@pytest.fixture(scope="module")
def pictured(llava, lens):
    """Three prompts with one text and three pictures, and what the user's model says of each."""
    seeded = torch.Generator().manual_seed(3)
    shape = llava.inputs["pixel_values"].shape
    prompts = [
        lens.prompt(inputs={**llava.inputs, "pixel_values": torch.randn(shape, generator=seeded)}) for _ in "abc"
    ]
    return prompts, [llava.model(**prompt.inputs).logits for prompt in prompts]


def gap(a, b):
    return float((a - b).abs().max())


def test_the_same_ids_run_with_their_own_pictures(lens, pictured):
    prompts, said = pictured
    bound = [lens.bound_tokens(prompt) for prompt in prompts]
    assert torch.equal(bound[0], bound[1])
    assert gap(said[0], said[1]) > 0.01
    for tokens, expected in zip(bound, said, strict=True):
        assert gap(lens.bridge(tokens), expected) < 1e-5
        assert gap(lens.bridge.run_with_hooks(tokens, fwd_hooks=[]), expected) < 1e-5
        assert gap(lens.bridge.run_with_cache(tokens, names_filter="hook_embed")[0], expected) < 1e-5


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda x: x[1:2], [1]),
        (lambda x: x[[2, 0]], [2, 0]),
        (lambda x: x[torch.tensor([1, 1])], [1, 1]),
        (lambda x: x[torch.tensor([True, False, True])], [0, 2]),
        (lambda x: x.index_select(0, torch.tensor([2])), [2]),
        (lambda x: x[0:1].expand(4, -1), [0] * 4),
        (lambda x: x.repeat(2, 1), [0, 1, 2, 0, 1, 2]),
        (lambda x: x.flip(0), [2, 1, 0]),
        (lambda x: x.split(1)[2], [2]),
        (lambda x: torch.cat([x[2:], x[:1]]), [2, 0]),
        (lambda x: x[:, :99], [0, 1, 2]),
        (lambda x: x[1].unsqueeze(0), None),  # a row by itself is no batch, and forgets
        (lambda x: x.to("cpu").clone().detach().contiguous().int(), [0, 1, 2]),
        (lambda x: copy.deepcopy(x), [0, 1, 2]),
        (lambda x: torch.stack([x[0], x[1]]), None),
        (lambda x: x[:, :-1], None),
        (lambda x: x[:, torch.randperm(x.shape[1])], None),
        (lambda x: x.sort().values, None),
        (lambda x: x + 1, None),
        (lambda x: torch.zeros_like(x), None),
        (lambda x: x.float(), None),
    ],
)
def test_whole_rows_stay_bound_and_nothing_else(lens, pictured, change, rows):
    prompts, _ = pictured
    found = change(lens.bound_tokens(*prompts))
    if rows is None:
        assert type(found) is torch.Tensor
    else:
        assert [prompts.index(prompt) for prompt, _ in found.rows] == rows


def test_rows_of_several_prompts_run_as_one_batch(lens, pictured):
    prompts, said = pictured
    chosen = torch.cat([lens.bound_tokens(prompts[2]), lens.bound_tokens(prompts[0])])
    assert gap(lens.bridge(chosen), torch.cat([said[2], said[0]])) < 1e-5


def test_rows_of_a_batch_run_by_themselves(lens, pictured):
    prompts, said = pictured
    batch = lens.prompt(
        inputs={name: torch.cat([prompt.inputs[name] for prompt in prompts]) for name in prompts[0].inputs}
    )
    bound = lens.bound_tokens(batch)
    assert bound.prompt is batch
    assert gap(lens.bridge(bound[1:]), torch.cat(said[1:])) < 1e-5


def test_a_batch_whose_tensors_do_not_say_whose_they_are_runs_as_a_whole_only():
    family = case("qwen2_5_vl")
    lens, (_, inputs) = family.on("transformer_lens"), family.pair()
    batch = lens.prompt(inputs=inputs)
    bound = lens.bound_tokens(batch)
    real, expected = batch.mask("all"), family.model(**inputs).logits
    assert not real.all()  # padded
    assert gap(lens.bridge(bound)[real], expected[real]) < 1e-4
    assert gap(lens.bridge(bound.repeat(2, 1))[2:][real], expected[real]) < 1e-4
    with pytest.raises(PromptError, match=r"rows of this batch of 2 cannot be run one by one.*and pixel_values do not"):
        lens.bridge(bound[:1])


def test_prompts_of_different_lengths_or_pictures_are_no_batch(lens, llava, pictured):
    prompts, _ = pictured
    _, inputs = llava.pair()
    with pytest.raises(PromptError, match=r"prompts of \d+, \d+ tokens cannot be one tensor of ids"):
        lens.bound_tokens(prompts[0], lens.prompt(inputs={**llava.inputs, **longer(llava.inputs)}))
    with pytest.raises(PromptError, match="given none"):
        lens.bound_tokens()
    with pytest.raises(PromptError, match=r"expected a prompt made by lens\.prompt"):
        lens.bound_tokens(inputs["input_ids"])


def longer(inputs):
    return {
        name: torch.cat([inputs[name], inputs[name][:, -1:]], 1)
        for name in ("input_ids", "attention_mask")
        if name in inputs
    }


def test_ids_without_their_pictures_are_refused(lens, pictured):
    prompts, _ = pictured
    bound = lens.bound_tokens(prompts[0])
    plain = prompts[0].inputs["input_ids"]
    for tokens in (plain, bound[:, :10], plain[0]):
        for call in (lens.bridge, lens.bridge.run_with_cache, lambda x: lens.bridge.run_with_hooks(x, fwd_hooks=[])):
            with pytest.raises(PromptError, match="visual tokens, and no pictures came with them"):
                call(tokens)
    changed = lens.bound_tokens(prompts[0])
    changed[0, -1] = 7
    with pytest.raises(PromptError, match="no longer those of their prompts"):
        lens.bridge(changed)
    text = torch.tensor([[1, 20, 21]])
    assert gap(lens.bridge(text), lens.model(input_ids=text).logits) < 1e-5  # text alone is as it was


def test_a_models_own_tokens_are_those_of_its_own_pictures(lens, pictured):
    prompts, said = pictured
    model = lens.patching_model(prompts[0])
    assert gap(model(lens.bound_tokens(prompts[0])), said[0]) < 1e-5
    with pytest.raises(PromptError, match="bound to another prompt than this model's"):
        model(lens.bound_tokens(prompts[1]))


def test_a_bridge_of_the_users_own_learns_it_with_the_first_call(llava, pictured):
    prompts, said = pictured
    theirs = Lens(llava.model, backend="transformer_lens")._backend.bridge
    lens = Lens(theirs)
    assert lens.bridge is theirs
    assert type(theirs) is TransformerBridge
    bound = lens.bound_tokens(prompts[1])
    assert lens.bridge is theirs
    assert isinstance(theirs, TransformerBridge)
    assert gap(theirs(bound), said[1]) < 1e-5


def test_what_enters_the_first_layer_is_what_hook_embed_says_in_any_cache(lens, llava, pictured):
    prompts, _ = pictured
    kept = {}
    bridge = lens.bridge
    with bridge.hooks(fwd_hooks=[("hook_embed", lambda x, hook: kept.update(embed=x.clone()))]):
        bridge(lens.bound_tokens(prompts[0]))
    entering = llava.lens.run(prompts[0], read=["resid_pre"]).reads["resid_pre", 0]
    assert gap(kept["embed"], entering) < 1e-5
    table = llava.model.get_input_embeddings()(prompts[0].inputs["input_ids"])
    assert gap(kept["embed"], table) > 0.1


def test_only_a_bridge_binds(llava, pictured):
    with pytest.raises(LensError, match="the native backend has no bridge"):
        llava.lens.bound_tokens(pictured[0][0])


def test_its_text(lens, pictured):
    assert repr(lens.bound_tokens(*pictured[0])).startswith("BoundTokens of 3 rows x ")
    assert type(lens.bridge.to_tokens(pictured[0][0])) is BoundTokens


def test_generation_past_forward_sees_the_pictures_too_or_is_refused():
    """`hf_generate` calls the user's model itself, which would go on from the placeholder without a word."""
    lens, drawn = Lens.demo(backend="transformer_lens"), shapes.examples(1, kinds=["color"], seed=3)[0]
    prompt = lens.prompt(drawn.question, images=drawn.image)
    tokens, model = lens.bound_tokens(prompt), lens.patching_model(prompt)
    plain = tokens.as_subclass(torch.Tensor)
    expected = lens.generate(prompt, max_new_tokens=2).tokens
    unseen = lens.bridge.original_model.generate(plain, max_new_tokens=2, do_sample=False)[:, -2:]
    assert not torch.equal(unseen, expected)
    greedy = {"max_new_tokens": 2, "do_sample": False}
    said = [
        lens.bridge.hf_generate(tokens, **greedy),
        lens.bridge.generate(tokens, verbose=False, **greedy),
        model.hf_generate(model.tokens, **greedy),
        model.generate(model.tokens, verbose=False, **greedy),
    ]
    assert all(torch.equal(each[:, -2:], expected) for each in said)
    written = "USER: <image> what color is it? ASSISTANT:"
    for call, given in (
        (lens.bridge.hf_generate, plain),
        (lens.bridge.hf_generate, written),
        (lens.bridge, written),
        (lens.bridge, [written, written]),
    ):
        with pytest.raises(PromptError, match="visual tokens, and no pictures came with them"):
            call(given)
    with pytest.raises(PromptError, match="this model runs one prompt of 1 rows"):
        model.hf_generate(plain[:, 1:])
