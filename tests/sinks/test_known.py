"""Published sink dimensions, looked up by the language model."""

import pytest
import transformers as hf

from lmm_lens.sinks import KNOWN, known_for

CLIP = hf.CLIPVisionConfig()


def llama(width, vocabulary):
    return hf.LlavaConfig(vision_config=CLIP, text_config=hf.LlamaConfig(hidden_size=width, vocab_size=vocabulary))


def internvl(width):
    text = hf.Qwen3Config(hidden_size=width, num_attention_heads=8)
    return hf.InternVLConfig(vision_config=hf.InternVLVisionConfig(), text_config=text)


# every row of METHODS section 2
TABLE = [
    (llama(4096, 32064), (1415, 2533)),
    (llama(4096, 32000), (1415, 2533)),
    (llama(5120, 32064), (2100, 4743)),
    (hf.Qwen2VLConfig(text_config={"hidden_size": 3584}), (458, 2570)),
    (hf.Qwen2_5_VLConfig(text_config={"hidden_size": 3584}), (458, 2570)),
    (hf.Qwen2_5_VLConfig(text_config={"hidden_size": 2048}), (318, 1874, 1819)),
    (hf.Qwen2_5_VLConfig(text_config={"hidden_size": 5120}), (4675, 3094)),
    (hf.Qwen3VLConfig(text_config={"hidden_size": 2048}), (1793, 1999, 1401)),
    (hf.Qwen3VLConfig(text_config={"hidden_size": 2560}), (0,)),
    (hf.Qwen3VLConfig(text_config={"hidden_size": 4096}), (1838,)),
    (internvl(1024), (35, 13)),
    (internvl(2560), (4, 396, 0)),
    (internvl(4096), (2276, 233)),
    (internvl(5120), (731,)),
]


@pytest.mark.parametrize(("config", "dims"), TABLE, ids=lambda value: str(value) if isinstance(value, tuple) else "")
def test_a_published_model_is_known(config, dims):
    entry = known_for(config)
    assert entry is not None
    assert entry.dims == dims


def test_the_table_holds_internvl2_under_its_own_language_model():
    (entry,) = [entry for entry in KNOWN if entry.model == "InternVL2-8B"]
    assert (entry.model_type, entry.d_model, entry.dims) == ("internlm2", 4096, (3584,))


@pytest.mark.parametrize(
    "config",
    [
        llama(4096, 128_320),  # LLaMA-3 has LLaMA-2's width
        llama(2048, 32064),
        hf.Qwen2_5_VLConfig(text_config={"hidden_size": 8192}),
        hf.LlavaConfig(vision_config=CLIP, text_config=hf.MistralConfig(hidden_size=4096, vocab_size=32064)),
        hf.LlavaOnevisionConfig(text_config=hf.Qwen2Config(hidden_size=3584)),
    ],
)
def test_another_model_is_not_taken_for_one_of_them(config):
    assert known_for(config) is None


def test_every_entry_is_consistent():
    for entry in KNOWN:
        assert all(0 <= dim < entry.d_model for dim in entry.dims)
        assert len(set(entry.dims)) == len(entry.dims) > 0
        assert entry.source
    keys = [(entry.model_type, entry.d_model, entry.max_vocab) for entry in KNOWN]
    assert len(set(keys)) == len(keys)


def test_what_is_not_the_papers_own_says_so():
    papers = {entry.model for entry in KNOWN if "paper" in entry.source or "code" in entry.source}
    assert papers == {"LLaMA-2-7B (LLaVA-1.5-7B)", "LLaMA-2-13B (LLaVA-1.5-13B)"}
    assert all("uncalibrated" in e.source for e in KNOWN if e.model.startswith(("Qwen2.5", "Qwen3", "InternVL3")))
