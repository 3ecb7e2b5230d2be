"""Calls as people make them, on each backend: what `generate` is given, rows that end, calls inside calls, threads."""

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, GenerationConfig, LogitsProcessor, StoppingCriteria
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lmm_lens import VAR, AblateHeads, Lens, Read, shapes
from lmm_lens.errors import LensError, ModelError, RemoteError
from tests.support.cases import case
from tests.support.models import FAMILIES
from tests.support.tokenizer import byte_tokenizer

BACKENDS = ("native", "nnsight", "transformer_lens")
EDIT = AblateHeads([(1, 1)], rows="after_image")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def lens(backend: str) -> Lens:
    return case("llava").on(backend)


@pytest.fixture
def prompt() -> Any:
    return case("llava").prompt


@pytest.fixture
def batch(lens: Lens) -> Any:
    return lens.prompt(inputs=case("llava").pair("left")[1])


# ---------------------------------------------------------------------- how long


def test_max_length_counts_the_prompt_as_in_transformers(lens, prompt):
    length = prompt.n_tokens + 3
    expected = lens.model.generate(**prompt.inputs, max_length=length, do_sample=False)[:, prompt.n_tokens :]
    assert lens.generate(prompt, max_length=length).tokens.tolist() == expected.tolist()
    assert expected.shape[1] == 3
    found = lens.generate(prompt, generation_config=GenerationConfig(max_length=length, do_sample=False))
    assert found.tokens.tolist() == expected.tolist()


def test_the_models_own_generation_config_is_kept(backend):
    model, inputs = FAMILIES["llava"]()
    model.generation_config.max_new_tokens = 4
    lens = Lens(model, backend=backend)
    assert lens.generate(lens.prompt(inputs=inputs)).tokens.shape[1] == 4
    assert lens.generate(lens.prompt(inputs=inputs), max_new_tokens=2).tokens.shape[1] == 2


@pytest.mark.parametrize("n", [0, -1, 2.0, True, "3"])
def test_a_number_of_tokens_that_is_none_is_refused(lens, prompt, n):
    with pytest.raises(LensError, match=r"max_new_tokens is a whole number from 1 on, given .*lens.run\(prompt\)"):
        lens.generate(prompt, max_new_tokens=n)


# ---------------------------------------------------------------------- rows that end


class EndFirst(StoppingCriteria):
    """Ends the first row after two tokens, the other after five."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        made = input_ids.shape[1] - self.n_tokens
        return torch.tensor([made >= 2, made >= 5][: len(input_ids)])


def reading(lens: Lens, prompt: Any, **options: Any) -> tuple[Tensor, Any]:
    read = Read("resid_post", layers=[1], rows="generating")
    found = lens.generate(prompt, [AblateHeads([(0, 1)], rows="generating")], [read], max_new_tokens=6, **options)
    return found.reads["resid_post", 1], found


def test_rows_that_a_criterion_has_ended_are_neither_read_nor_edited(lens, batch):
    read, found = reading(lens, batch, eos_token_id=[], stopping_criteria=[EndFirst(batch.n_tokens)])
    real = ~read[..., 0].isnan()
    assert real.sum(1).tolist() == [2, 5], "the rows that made each row's own tokens"
    assert found.reports[0].n_edits == 7
    alone, _ = reading(lens, batch, eos_token_id=[])
    torch.testing.assert_close(read[1][real[1]], alone[1][:5], atol=2e-5, rtol=0)


def test_rows_that_a_token_has_ended_are_neither_read_nor_edited(lens, batch):
    tokens = lens.generate(batch, [AblateHeads([(0, 1)], rows="generating")], max_new_tokens=6, eos_token_id=[]).tokens
    row, other = tokens.tolist()
    at, end = next((i, token) for i, token in enumerate(row) if token not in other and token not in row[:i])
    read, _ = reading(lens, batch, eos_token_id=end)
    assert (~read[..., 0].isnan()).sum(1).tolist() == [at + 1, 6]


def test_stop_strings_end_rows(backend):
    model, _ = FAMILIES["llava"]()
    lens = Lens(model, byte_tokenizer(), backend)
    batch = lens.prompt(inputs=case("llava").pair("left")[1])
    edit = [AblateHeads([(0, 1)], rows="generating")]
    rows = lens.generate(batch, edit, max_new_tokens=6, eos_token_id=[]).tokens.tolist()
    words = [[lens.processor.decode([token]) for token in row] for row in rows]
    at, stop = next((i, word) for i, word in enumerate(words[0]) if word and word not in "".join(words[1]))
    read, _ = reading(lens, batch, eos_token_id=[], stop_strings=[stop])
    assert (~read[..., 0].isnan()).sum(1).tolist() == [at + 1, 6]


def test_stop_strings_that_transformers_cannot_look_for_are_refused():
    lens = Lens.demo()
    example = shapes.examples(1, kinds=["color"])[0]
    prompt = lens.prompt(example.question, images=example.image)
    with pytest.raises(LensError, match=r"cannot look for stop_strings in the words of \w+\n  end rows with eos_token"):
        lens.generate(prompt, max_new_tokens=2, stop_strings=["red"])


def test_stop_strings_without_a_processor_say_what_is_missing(lens, prompt):
    with pytest.raises(LensError, match="stop_strings need a tokenizer, and this lens has no processor"):
        lens.generate(prompt, max_new_tokens=2, stop_strings=["."])


# ---------------------------------------------------------------------- what stands beside


class Never(LogitsProcessor):
    """Bans a token."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.token] = -torch.inf
        return scores


class Streamer:
    """Collects what it is told."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.told += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_logits_processors_and_streamers_do_their_part(lens, prompt):
    plainly = lens.generate(prompt, [EDIT], max_new_tokens=4, eos_token_id=[]).tokens[0].tolist()
    streamer = Streamer()
    options = {"max_new_tokens": 4, "eos_token_id": [], "logits_processor": [Never(plainly[1])], "streamer": streamer}
    found = lens.generate(prompt, [EDIT], **options).tokens[0].tolist()
    assert plainly[1] not in found
    assert streamer.told == [*prompt.inputs["input_ids"][0].tolist(), *found]
    assert streamer.ended


@pytest.mark.parametrize(
    ("name", "value"),
    [("streamer", Streamer()), ("logits_processor", [Never(3)]), ("stopping_criteria", [EndFirst(9)])],
)
def test_what_cannot_travel_is_refused(name, value):
    lens, prompt = case("llava").on("remote"), case("llava").prompt
    with pytest.raises(RemoteError, match=rf"{name} does not travel to a server\n  end rows with eos_token_id"):
        lens.generate(prompt, max_new_tokens=2, **{name: value})


def test_beams_run_where_nothing_is_edited_and_are_refused_where_something_is(lens, prompt):
    options = {"max_new_tokens": 3, "num_beams": 2, "pad_token_id": 0}
    expected = lens.model.generate(**prompt.inputs, **options, do_sample=False)[:, prompt.n_tokens :]
    assert lens.generate(prompt, **options).tokens.tolist() == expected.tolist()
    with pytest.raises(LensError, match="beam"):
        lens.generate(prompt, [EDIT], **options)


# ---------------------------------------------------------------------- whose attention


def hot(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
    """Attention that is four times as sharp."""
    scaling = options.pop("scaling", None) or query.shape[-1] ** -0.5
    return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling * 4, **options)


@pytest.mark.parametrize("read", [[], ["pattern"], ["z"]], ids=["nothing", "pattern", "z"])
def test_a_function_of_the_users_own_is_kept_or_refused(backend, read):
    AttentionInterface.register("hot", hot)
    AttentionMaskInterface.register("hot", sdpa_mask)
    model, inputs = FAMILIES["llava"]()
    model.set_attn_implementation({"text_config": "hot"})
    with torch.no_grad():
        expected = model(**inputs).logits
    if backend == "transformer_lens":
        with pytest.raises(ModelError, match=r"attention function 'hot', and a Transf.*\n  use backend='native'"):
            Lens(model, backend=backend)
        return
    lens = Lens(model, backend=backend)
    if read == ["pattern"]:
        with pytest.raises(LensError, match=r"of layer 0 .*cannot be followed(?s:.*)for the pattern load the model"):
            lens.run(lens.prompt(inputs=inputs), read=read)
    else:
        torch.testing.assert_close(lens.run(lens.prompt(inputs=inputs), read=read).logits, expected, atol=1e-5, rtol=0)
    assert model.config.text_config._attn_implementation == "hot"


# ---------------------------------------------------------------------- calls inside calls, beside calls


class Contrast(LogitsProcessor):
    """Contrastive decoding as people write it: a pass with another picture, within the step."""

    def __init__(self, model: Any, inputs: dict[str, Any]) -> None:
        self.model, self.inputs = model, inputs

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        with torch.no_grad():
            self.model(**self.inputs)
        return scores


def test_a_pass_within_a_step_of_a_generation_changes_nothing():
    model, inputs = FAMILIES["llava"]()
    lens = Lens(model)
    var = VAR(0.6, 0.0, 0.0, 1.0, (3,), first_layer=0, skip_last_layer=False, rows="after_image")
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(-1) * 3}
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "output_logits": True}
    options |= {"return_dict_in_generate": True}
    with lens.apply(var):
        alone = model.generate(**inputs, **options)
        nested = model.generate(**inputs, **options, logits_processor=[Contrast(model, other)])
    plain = model.generate(**inputs, **options)
    assert torch.equal(torch.stack(alone.logits), torch.stack(nested.logits))
    assert not torch.allclose(torch.stack(alone.logits), torch.stack(plain.logits), atol=1e-4)


def test_apply_in_one_thread_does_not_reach_runs_of_another(backend):
    model, inputs = FAMILIES["llava"]()
    lens = Lens(copy.deepcopy(model), backend=backend)
    prompt = lens.prompt(inputs=inputs)
    plainly = lens.run(prompt).logits
    entered, done, wrong = threading.Event(), threading.Event(), []

    def beside() -> None:
        entered.wait()
        wrong.extend(not torch.allclose(lens.run(prompt).logits, plainly, atol=1e-6) for _ in range(10))
        done.set()

    worker = threading.Thread(target=beside)
    worker.start()
    with lens.apply(AblateHeads([(0, 1)])):
        entered.set()
        edited = [lens.run(prompt).logits for _ in range(10)]
        done.wait()
    worker.join()
    assert not any(wrong)
    assert len(wrong) == 10
    assert all((each - plainly).abs().max() > 1e-4 for each in edited)


# ---------------------------------------------------------------------- what is no decoder


def test_an_encoder_decoder_is_refused():
    from transformers import Florence2Config, Florence2ForConditionalGeneration

    config = Florence2Config(
        text_config={"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 99, "encoder_ffn_dim": 16,
                     "decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
        image_token_id=98,
    )  # fmt: skip
    with torch.device("meta"):
        model = Florence2ForConditionalGeneration(config)
    with pytest.raises(ModelError, match=r"is an encoder-decoder: pictures and question go through an encoder"):
        Lens(model)
