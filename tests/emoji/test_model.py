"""emoji-llava as it is in the box: files, opening, what it is, and that its language model is SmolLM2's own."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from lmm_lens.bundled import emoji
from lmm_lens.bundled.emoji import language
from lmm_lens.bundled.emoji.architecture import soft_ids
from training.emoji_llava.packing import IGNORED, Packer

FOLDER = emoji.checkpoint().parent


@pytest.fixture(scope="module")
def alone():
    """The language model by itself."""
    return AutoModelForCausalLM.from_pretrained(language.language_model(), dtype=torch.float32).eval()


def test_every_file_is_the_one_that_was_measured():
    listed = dict(reversed(line.split()) for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    assert set(listed) == {path.name for path in FOLDER.glob("*.safetensors")}
    for name, digest in listed.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) < 11_000_000


def test_the_frozen_variants_language_model_is_smollm2_but_for_the_soft_prompt(lens, alone):
    own = lens.model.model.language_model.state_dict()
    changed = soft_ids(lens.processor.tokenizer)
    for name, value in alone.model.state_dict().items():
        if name == "embed_tokens.weight":
            rows = [i for i in range(len(value)) if i not in changed]
            assert torch.equal(own[name][rows], value[rows])
            assert not (own[name][changed] == value[changed]).any(1).all()
        else:
            assert torch.equal(own[name], value), name
    assert torch.equal(lens.model.lm_head.weight, alone.lm_head.weight)


def test_a_text_without_a_picture_is_answered_by_the_same_logits(lens, alone):
    prompt = lens.prompt("What is the capital of France?")
    ids = prompt.inputs["input_ids"]
    assert not set(soft_ids(lens.processor.tokenizer)) & set(ids[0].tolist())
    with torch.no_grad():
        assert torch.equal(lens.model(**prompt.inputs).logits, alone(ids).logits)


def test_it_sees(lens):
    """Well above what a blank picture brings; the card has the numbers."""
    right = {}
    for condition in ("clean", "blank"):
        shown = emoji.examples(20, kinds=("name", "background"), seed=8, condition=condition)
        prompts = lens.prompt([each.question for each in shown], images=[each.image for each in shown])
        said = lens.generate(prompts, max_new_tokens=4).text
        right[condition] = sum(a == b.answer for a, b in zip(said, shown, strict=True))
    assert right["clean"] >= 15
    assert right["blank"] <= 5


def test_packed_questions_have_the_logits_of_single_prompts(lens, asked):
    """What it was trained and measured with equals what users run."""
    packer = Packer(lens.processor.tokenizer)
    example = asked[0]
    from lmm_lens.bundled.worlds import Question

    other = Question("count", "How many things are there?", "one")
    own = Question(example.kind, example.question, example.answer)
    packed = packer.pack([[other, own]], packer.need([other, own]))
    prompt = lens.prompt(example.question, images=example.image)
    model = lens.model
    with torch.no_grad():
        expected = model(**prompt.inputs).logits[0, -1]
        embedded = model.model.language_model.embed_tokens(packed.ids)
        visual = model.get_image_features(prompt.inputs["pixel_values"]).pooler_output[0]
        embedded[0, packer.first_patch : packer.first_soft] = visual
        hidden = model.model.language_model(
            inputs_embeds=embedded, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
        )[0]
    first = ((packed.question[0] == 1) & (packed.labels[0] != IGNORED)).nonzero()[0, 0]
    torch.testing.assert_close(model.lm_head(hidden[0, first]), expected, atol=2e-3, rtol=1e-3)


def test_it_opens_from_the_cache_without_reading_the_package_again(tmp_path):
    """Weights of the cache are used as they are: the package's file is not opened."""
    code = (
        "import sys; opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)\n"
        "from lmm_lens.bundled import emoji; emoji.load()\n"
        "import json; print(json.dumps([name for name in opened if name.endswith('.gguf')]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout.splitlines()[-1]) == []


def test_the_card_of_the_config_names_its_sinks(lens):
    assert lens.model.config.lmm_lens["name"] == "emoji-llava"
    assert lens.model.config.lmm_lens["sink_dims"] == [507]
    assert lens.identity["name"] == "lmm-lens/emoji-llava" if "name" in lens.identity else True


def test_the_weights_are_those_that_transformers_reads_from_the_file(alone):
    source = language.gguf_file()
    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    expected, own = read.state_dict(), alone.state_dict()
    assert set(own) == set(expected)
    for name, value in expected.items():
        assert torch.equal(own[name], value), name
    for name in ("rope_parameters", "rms_norm_eps", "eos_token_id", "bos_token_id", "max_position_embeddings"):
        assert getattr(read.config, name) == getattr(alone.config, name), name
