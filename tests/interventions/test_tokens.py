"""Token ablation equals a model whose input embeddings were replaced by hand."""

import copy

import pytest
import torch

from lmm_lens import AblateTokens, Knockout, Lens
from lmm_lens.errors import HookError, InterventionError
from tests.support.cases import case, close, edits_of
from tests.support.models import FAMILIES, IMAGE, joined
from tests.support.oracle import spans

NAMES = [name for name in FAMILIES if name != "qwen3_vl"]  # whose deepstack is refused
NEW = 3


@pytest.fixture(params=NAMES)
def family(request):
    return case(request.param)


def replaced(family, inputs, tokens, mode):
    """Logits of a copy of the model that gets other embeddings; `tokens` by batch row."""
    model = copy.deepcopy(family.model)
    images = spans(inputs)["image"]

    def put(x):
        x = x.clone()
        for row, chosen in enumerate(tokens):
            mean = torch.stack([x[row, i] for i in sorted(images[row])]).mean(0)
            for i in chosen:
                x[row, i] = mean if mode == "mean" else 0
        return x

    if family.name == "mllama":  # its decoder embeds the tokens itself
        model.get_input_embeddings().register_forward_hook(lambda module, args, output: put(output))
    else:
        model.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "inputs_embeds": put(kwargs["inputs_embeds"])}),
            with_kwargs=True,
        )
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("mode", ["mean", "zero"])
def test_the_whole_image_is_replaced(family, mode):
    run = family.lens.run(family.prompt, [AblateTokens(mode=mode)])
    image = spans(family.inputs)["image"]
    close(run.logits, replaced(family, family.inputs, image, mode))
    assert edits_of(run) == [len(image[0])]
    # mllama's only image token is its own mean, and idefics2's resampler gives all of its tokens the same features
    if mode == "zero" or family.name not in ("mllama", "idefics2"):
        assert (run.logits - family.logits).abs().max() > 1e-4


@pytest.mark.parametrize("mode", ["mean", "zero"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "paligemma2", "qwen3_5", "idefics3"])
def test_patches_of_choice_are_replaced_and_the_mean_is_that_of_all(name, mode):
    family = case(name)
    patches = sorted(spans(family.inputs)["image"][0])[1:3]
    run = family.lens.run(family.prompt, [AblateTokens(patches, mode)])
    close(run.logits, replaced(family, family.inputs, [patches], mode))
    assert edits_of(run) == [2]
    assert (run.logits - family.logits).abs().max() > 1e-4


@pytest.mark.parametrize("mode", ["mean", "zero"])
def test_words_can_be_replaced_too(mode):
    llava = case("llava")
    run = llava.lens.run(llava.prompt, [AblateTokens("question", mode)])
    close(run.logits, replaced(llava, llava.inputs, spans(llava.inputs)["question"], mode))


def test_words_of_a_deepstack_model_can_be_replaced():
    family = case("qwen3_vl")
    run = family.lens.run(family.prompt, [AblateTokens("question")])
    close(run.logits, replaced(family, family.inputs, spans(family.inputs)["question"], "mean"))


@pytest.mark.parametrize("mode", ["mean", "zero"])
@pytest.mark.parametrize("name", ["llava", "paligemma2", "qwen2_5_vl"])
def test_each_row_of_a_padded_batch_gets_its_own_mean(name, mode):
    family = case(name)
    prompts, batch = family.pair()
    run = family.lens.run(family.lens.prompt(inputs=batch), [AblateTokens(mode=mode)])
    expected = replaced(family, batch, spans(batch)["image"], mode)
    for row, inputs in enumerate(prompts):
        alone = family.lens.run(family.lens.prompt(inputs=inputs), [AblateTokens(mode=mode)])
        n_tokens = alone.logits.shape[1]
        close(run.logits[row, -n_tokens:], expected[row, -n_tokens:])
        close(run.logits[row, -n_tokens:], alone.logits[0])


def test_other_tokens_in_each_row_of_a_batch():
    llava = case("llava")
    batch = llava.pair()[1]
    image = [sorted(row) for row in spans(batch)["image"]]
    chosen = [image[0][2:4], image[1][5:6]]
    mask = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    for row, tokens in enumerate(chosen):
        mask[row, tokens] = True
    for mode in ("mean", "zero"):
        run = llava.lens.run(llava.lens.prompt(inputs=batch), [AblateTokens(mask, mode)])
        assert edits_of(run) == [3]
        expected = replaced(llava, batch, chosen, mode)
        close(run.logits[0], expected[0])
        close(run.logits[1, -25:], expected[1, -25:])


def test_it_equals_embeddings_given_to_the_model_itself():
    """No hook of ours: the merged embeddings go in as inputs_embeds."""
    llava = case("llava")
    model, inputs = llava.model, llava.inputs
    with torch.no_grad():
        words = model.get_input_embeddings()(inputs["input_ids"]).clone()
        features = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
        features = torch.cat(list(features)) if isinstance(features, (list, tuple)) else features.flatten(0, -2)
        words[0, inputs["input_ids"][0] == IMAGE] = features
        close(model(inputs_embeds=words).logits, llava.logits)
        words[0, inputs["input_ids"][0] == IMAGE] = features.mean(0)
        expected = model(inputs_embeds=words).logits
    close(llava.lens.run(llava.prompt, [AblateTokens()]).logits, expected)


def test_generation_goes_on_from_the_replaced_prompt():
    llava = case("llava")
    given = llava.lens.generate(llava.prompt, [AblateTokens()], max_new_tokens=NEW, logits=True)
    assert edits_of(given) == [16]
    token_by_token = dict(llava.inputs)
    for step in range(NEW):
        image = spans(token_by_token)["image"]
        logits = replaced(llava, token_by_token, image, "mean")
        close(given.logits[:, step], logits[:, -1])
        token = logits[:, -1].argmax(-1, keepdim=True)
        token_by_token["input_ids"] = torch.cat([token_by_token["input_ids"], token], 1)


def test_a_picture_without_a_picture_is_the_same_for_any_picture():
    """With zeros in place of all patches, nothing of the picture is left."""
    llava = case("llava")
    other = {**llava.inputs, "pixel_values": llava.inputs["pixel_values"].flip(-1)}
    first, second = (
        llava.lens.run(llava.lens.prompt(inputs=i), [AblateTokens(mode="zero")]) for i in (llava.inputs, other)
    )
    close(first.logits, second.logits, 1e-6)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize("mode", ["mean", "zero"])
def test_visual_tokens_that_come_back_in_later_layers_are_refused(mode):
    family = case("qwen3_vl")
    image = sorted(spans(family.inputs)["image"][0])
    for tokens in ("image", image[:2], "all"):
        with pytest.raises(InterventionError) as caught:
            family.lens.run(family.prompt, [AblateTokens(tokens, mode)])
        first, second = str(caught.value).splitlines()
        assert "adds visual features again after layer 0 (deepstack)" in first
        assert "Knockout(source=..., target=...)" in second
    run = family.lens.run(family.prompt, [Knockout("image", "question")])  # what the error points to works
    assert edits_of(run)[0] > 0


def test_a_row_without_a_picture_has_no_mean():
    llava = case("llava")
    words = {"input_ids": torch.tensor([[1, 5, 6, 7, 30]]), "pixel_values": torch.zeros(0, 3, 56, 56)}
    batch = joined([llava.inputs, words])
    lens = Lens(llava.model)
    with pytest.raises(
        InterventionError, match=r"batch rows \[1\] have no visual tokens to take the mean of; use mode='zero'"
    ):
        lens.run(lens.prompt(inputs=batch), [AblateTokens("last")])
    assert edits_of(lens.run(lens.prompt(inputs=batch), [AblateTokens("last", "zero")])) == [2]
    assert edits_of(lens.run(lens.prompt(inputs=batch), [AblateTokens("image")])) == [16]


def test_what_touches_nothing_or_is_not_there_is_refused():
    llava = case("llava")
    with pytest.raises(InterventionError, match="unknown mode of AblateTokens 'noise'"):
        AblateTokens(mode="noise")
    with pytest.raises(InterventionError, match="touches nothing: rows 'video'"):
        llava.lens.run(llava.prompt, [AblateTokens("video")])
    with pytest.raises(HookError, match=r"positions \[27\] lie outside the prompt"):
        llava.lens.run(llava.prompt, [AblateTokens([27])])
