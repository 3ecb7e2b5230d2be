"""Which tokens are sinks: where the dimensions come from, what is refused, and what a run finds."""

import pytest
import torch
import transformers as hf

from lmm_lens import Lens, Read
from lmm_lens.core.sinks import sinks_of
from lmm_lens.errors import ScoreError
from lmm_lens.sinks import SinkRule, rule_for
from tests.support.models import FAMILIES, another, joined

# language model of a config, and the dimensions that are published for it (METHODS, section 2)
PUBLISHED = {
    "LLaMA-2-7B": (hf.LlamaConfig(hidden_size=4096, vocab_size=32064), (1415, 2533)),
    "LLaMA-2-13B": (hf.LlamaConfig(hidden_size=5120, num_attention_heads=40, vocab_size=32064), (2100, 4743)),
}


def llava(text_config, **card):
    config = hf.LlavaConfig(vision_config=hf.CLIPVisionConfig(), text_config=text_config)
    if card:
        config.lmm_lens = card
    return config


def small(**card):
    return llava(hf.LlamaConfig(hidden_size=128, num_attention_heads=8, vocab_size=90), **card)


def refused(*args) -> str:
    with pytest.raises(ScoreError) as caught:
        rule_for(*args)
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_dimensions_are_found_by_the_language_model(name):
    text, dims = PUBLISHED[name]
    rule = rule_for(llava(text))
    assert (rule.dims, rule.threshold) == (dims, 20)
    assert name in rule.source
    assert "Kang et al., ICLR 2025" in rule.source


def test_llama_3_is_not_taken_for_llama_2_of_the_same_width():
    assert "are not known" in refused(llava(hf.LlamaConfig(hidden_size=4096, vocab_size=128_320)))


@pytest.mark.parametrize(
    ("config", "dims"),
    [
        (hf.Qwen2VLConfig(text_config={"hidden_size": 3584, "num_attention_heads": 28}), (458, 2570)),
        (hf.Qwen2_5_VLConfig(text_config={"hidden_size": 2048, "num_attention_heads": 16}), (318, 1874, 1819)),
        (hf.Qwen2_5_VLConfig(text_config={"hidden_size": 5120, "num_attention_heads": 40}), (4675, 3094)),
        (hf.Qwen3VLConfig(text_config={"hidden_size": 2560, "num_attention_heads": 32}), (0,)),
        (hf.Qwen3VLConfig(text_config={"hidden_size": 4096, "num_attention_heads": 32}), (1838,)),
    ],
)
def test_dimensions_published_by_others_say_so(config, dims):
    rule = rule_for(config)
    assert rule.dims == dims
    assert "notes" in rule.source or "third party, uncalibrated" in rule.source


def test_the_models_own_card_comes_before_the_published_table():
    text, _ = PUBLISHED["LLaMA-2-7B"]
    rule = rule_for(llava(text, sink_dims=[7, 8], sink_threshold=33))
    assert (rule.dims, rule.threshold, rule.source) == ((7, 8), 33, "the model's own card")
    assert rule_for(llava(text, sink_dims=[7])).threshold == 20


def test_the_users_word_comes_before_the_card():
    config = small(sink_dims=[5, 77], sink_threshold=7.0)
    assert rule_for(config) == SinkRule((5, 77), 7.0, "the model's own card")
    assert rule_for(config, None, 6.0) == SinkRule((5, 77), 6.0, "the model's own card")
    assert rule_for(config, [9], 5) == SinkRule((9,), 5.0, "given by the user")


def test_a_card_may_say_that_there_are_no_sinks():
    assert rule_for(small(sink_dims=[], sink_threshold=7.0)).dims == ()
    assert rule_for(small(sink_dims=[])).dims == ()  # with no dimension the threshold does not matter


def test_of_an_unknown_model_the_user_is_asked():
    text = refused(small())
    assert text.startswith("the sink dimensions of this llama model (d_model 128) are not known")
    assert "pass sink_dims=(...), and sink_threshold where d_model is below 400" in text


def test_a_threshold_that_no_token_can_reach_is_refused():
    text = refused(small(), [5])  # the paper's 20 in a small model
    assert "sink_threshold 20 can never be reached: phi is at most sqrt(d_model) = 11.3" in text
    assert "give a lower threshold" in text
    assert "can never be reached" in refused(small(), [5], 128**0.5)
    assert rule_for(small(), [5], 11.3).threshold == 11.3


@pytest.mark.parametrize("dims", [[128], [5, 200], [-1]])
def test_dimensions_outside_the_model_are_refused(dims):
    outside = [d for d in dims if not 0 <= d < 128]
    assert f"sink dimensions {outside} lie outside the model: d_model is 128" in refused(small(), dims, 5)


@pytest.mark.parametrize("threshold", [0, -1, float("nan")])
def test_a_threshold_that_makes_every_token_or_none_a_sink_is_refused(threshold):
    assert "sink_threshold must be positive" in refused(small(), [5], threshold)


# ---------------------------------------------------------------------- in a run


@pytest.fixture(scope="module")
def batch():
    """A padded batch of the tiny llava, the dimension 9 of some embeddings made massive, padding among them."""
    model, inputs = FAMILIES["llava"]()
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        for token, size in ((0, 60.0), (1, 60.0), (20, 30.0)):  # padding, the beginning of the sequence, a word
            table[token, 9] = size * table[5].std()
    lens = Lens(model)
    return lens, lens.prompt(inputs=joined([inputs, another(inputs)]))


def found(lens, prompt, rule, layer, generated=0):
    """The mask of sinks that a rule's tap files, seen by a tap of a later hook point."""
    seen = []

    class Look:
        def taps(self, prompt, shape):
            def look(z, context):
                seen.append(sinks_of(context, rule.key).clone())
                return z

            reading = Read("z", [layer], reduce=look).taps(prompt, shape)
            return [rule.tap(prompt, layer), *reading]

    lens.generate(prompt, read=[Look()], max_new_tokens=generated + 1, eos_token_id=[])
    return seen


def test_a_run_files_the_sinks_of_every_real_token(batch):
    lens, prompt = batch
    rule = SinkRule((9,), 4.0)
    resid = lens.run(prompt, read=["resid_pre"]).reads
    for layer in range(lens.n_layers):
        (mask,) = found(lens, prompt, rule, layer)
        ids = prompt.inputs["input_ids"]
        x = torch.zeros(*ids.shape, 64)
        for row in range(2):
            real = prompt.mask("all")[row]
            x[row, real] = resid["resid_pre", layer][row, : int(real.sum())]
        phi = x[..., 9].abs() / (x.square().mean(-1) + 1e-6).sqrt()
        assert torch.equal(mask, (phi >= 4) & prompt.mask("all"))
        if layer == 0:
            assert mask.nonzero().tolist() == ((ids == 1) | (ids == 20)).nonzero().tolist()
            assert not (mask & prompt.mask("pad")).any()


def test_sinks_of_the_prompt_are_remembered_while_generating(batch):
    lens, prompt = batch
    first, second, third = found(lens, prompt, SinkRule((9,), 4.0), 0, generated=2)
    width = prompt.n_tokens
    assert [mask.shape[1] for mask in (first, second, third)] == [width, width + 1, width + 2]
    assert torch.equal(second[:, :width], first)
    assert torch.equal(third[:, : width + 1], second)


def test_nothing_is_left_from_one_prompt_to_the_next(batch):
    """The released code of the paper finds sinks for the first sample of a process alone."""
    lens, prompt = batch
    _, inputs = FAMILIES["llava"]()
    single = lens.prompt(inputs=another(inputs))
    rule = SinkRule((9,), 4.0)
    alone = found(lens, single, rule, 0)[0]
    found(lens, prompt, rule, 0)
    assert torch.equal(found(lens, single, rule, 0)[0], alone)
