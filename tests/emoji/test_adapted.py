"""The variant whose language model was allowed to learn: what differs, and that it sees more."""

import pytest
import torch
from safetensors.torch import load_file

from lmm_lens import AblateHeads, Lens, find_sinks
from lmm_lens.bundled import emoji
from lmm_lens.bundled.emoji.architecture import ADAPTER_SCALE
from training.emoji_llava.adapter import TARGETS

HEADS = [(22, 4), (23, 1), (29, 7)]


@pytest.fixture(scope="module")
def adapted() -> Lens:
    return Lens.demo("emoji-adapted")


def test_its_attention_is_smollm2s_and_a_product_of_rank_eight(lens, adapted):
    own, frozen = (each.model.model.language_model.state_dict() for each in (adapted, lens))
    parts = load_file(emoji.checkpoint("adapted"))
    added = {name.removeprefix("adapter.").removesuffix(".A") for name in parts if name.endswith(".A")}
    assert len(added) == 30 * len(TARGETS)
    for name, value in frozen.items():
        if name in added:
            down, up = (parts[f"adapter.{name}.{side}"].float() for side in "AB")
            assert len(down) == 8
            torch.testing.assert_close(own[name], value + ADAPTER_SCALE * up @ down, atol=1e-5, rtol=1e-5)
            assert not torch.equal(own[name], value)
        elif name != "embed_tokens.weight":  # the soft prompt was trained on
            assert torch.equal(own[name], value), name
    assert torch.equal(adapted.model.lm_head.weight, lens.model.lm_head.weight)


def test_it_says_where_things_are(adapted):
    """The card has the numbers, and the frozen variant's beside them."""
    shown = emoji.examples(24, kinds=("at", "count", "list"), seed=8)
    prompts = [adapted.prompt(each.question, images=each.image) for each in shown]
    said = [adapted.generate(prompt, max_new_tokens=14).text[0] for prompt in prompts]
    assert sum(a == b.answer for a, b in zip(said, shown, strict=True)) >= 19


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_every_backend_gives_the_same_logits_and_the_same_edit(adapted, asked, backend):
    other = Lens.demo("emoji-adapted", backend)
    prompt = adapted.prompt(asked[0].question, images=asked[0].image)
    for edits in ([], [AblateHeads(HEADS)]):
        expected, given = (each.run(prompt, edits, logits="last").logits for each in (adapted, other))
        torch.testing.assert_close(given, expected, atol=2e-3, rtol=1e-3)


def test_its_sink_is_still_smollm2s(adapted, asked):
    prompt = adapted.prompt([each.question for each in asked[:4]], images=[each.image for each in asked[:4]])
    report = find_sinks(adapted, prompt)
    assert (report.dims, report.layers) == ((507,), tuple(range(12, 29)))
    card = adapted.model.config.lmm_lens
    assert (card["variant"], card["sink_dims"]) == ("adapted", [507])
    assert card["sink_threshold"] == pytest.approx(report.threshold, abs=0.1)


def test_the_two_are_told_apart(lens, adapted):
    assert lens.identity["weights"] != adapted.identity["weights"]
    assert adapted.model.name_or_path == "lmm-lens/emoji-llava-adapted"
