"""The logit lens against the model's own logits, against a slow reading of hidden states, and on every backend."""

import copy

import numpy as np
import pytest
import torch

from lmm_lens import Lens, shapes
from lmm_lens.errors import HookError, ModelError, PromptError, RemoteError, ScoreError
from lmm_lens.readouts import LogitLens, logit_lens
from tests.support.cases import case, double
from tests.support.families import lens_of, prompt_of
from tests.support.models import FAMILIES
from tests.support.quick import quick

SLOW = ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma2", "glm4v", "mllama", "idefics2", "qwen3_5", "mistral3"]


@pytest.fixture(scope="module")
def example():
    return shapes.examples(1, kinds=("color",), seed=2)[0]


@pytest.fixture(scope="module")
def prompt(lens, example):
    return lens.prompt("what color is the circle?", images=example.image)


def streams(model, inputs):
    """What leaves each decoder layer, by plain hooks."""
    found = []
    hooks = [
        layer.register_forward_hook(lambda m, a, out: found.append(out[0] if isinstance(out, tuple) else out))
        for layer in model.get_decoder().layers
    ]
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return found, logits


def check_numbers(readout, at, row, query, logits):
    """All numbers of one token, from its logits alone."""
    logits = logits.double()
    order = logits.argsort(descending=True)
    probabilities = logits.softmax(-1)
    n = readout.top.shape[-1]
    torch.testing.assert_close(readout.top_logits[at, row, query].double(), logits[order[:n]], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[readout.top[at, row, query]], logits[order[:n]], atol=1e-5, rtol=1e-5)
    assert float(readout.entropy[at, row, query]) == pytest.approx(
        float(-(probabilities * probabilities.log()).nansum()), abs=1e-4
    )
    for index, form in enumerate(readout.forms):
        assert float(readout.logits[at, row, query, index]) == pytest.approx(float(logits[form.token]), abs=1e-4)
        rank = 1 + sum(value > logits[form.token] for value in logits)
        assert abs(int(readout.ranks[at, row, query, index]) - int(rank)) <= 1
        shown = float(readout.probabilities[at, row, query, index])
        assert shown == pytest.approx(float(probabilities[form.token]), abs=1e-5)


# ---------------------------------------------------------------------- known answers


@pytest.mark.parametrize("name", quick(sorted(FAMILIES), ("llava", "gemma3", "mllama", "paligemma2", "idefics2")))
def test_after_the_last_layer_it_is_what_the_model_says(name):
    family = case(name)
    last = family.n_layers - 1
    readout = logit_lens(family.lens, family.prompt, rows="all", layers=[last], words=[7], top=3)
    for query in (0, 6, family.prompt.n_tokens - 1):
        check_numbers(readout, 0, 0, query, family.logits[0, query])


@pytest.mark.parametrize("name", quick(SLOW, ("qwen3_vl", "gemma3", "paligemma2")))
def test_each_layer_is_the_models_own_norm_and_embedding_in_fp64(name):
    family = double(name)
    found, logits = streams(family.model, family.inputs)
    decoder = family.model.get_decoder()
    readout = logit_lens(family.lens, family.prompt, rows=[5, 7], words=[11, 150], top=4)
    cap = getattr(family.model.config.get_text_config(), "final_logit_softcapping", None)
    for at, hidden in enumerate(found):
        with torch.no_grad():
            plain = family.model.get_output_embeddings()(decoder.norm(hidden))
        plain = plain if cap is None else torch.tanh(plain / cap) * cap
        for query, position in enumerate((5, 7)):
            check_numbers(readout, at, 0, query, plain[0, position])
    torch.testing.assert_close(plain, logits)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["chameleon", "lfm2_vl", "lfm3_vl", "cohere2_vision", "aya_vision", "blip-2", "llama4"]
)
def test_heads_of_other_kinds_too(name):
    lens, prompt = lens_of(name), prompt_of(name)
    readout = logit_lens(lens, prompt, rows="last", layers=[lens.n_layers - 1], top=3)
    logits = lens.run(prompt, logits="last").logits[0, 0].float()
    torch.testing.assert_close(readout.top_logits[0, 0, 0], logits.topk(3).values, atol=1e-4, rtol=1e-4)


def test_where_later_layers_do_nothing_it_says_the_answer_from_there_on(lens, prompt):
    model = copy.deepcopy(lens.model)
    with torch.no_grad():
        for layer in model.get_decoder().layers[3:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    readout = logit_lens(Lens(model, lens.processor), prompt, rows="all", top=1)
    answers = model(**prompt.inputs).logits.argmax(-1)
    for at in range(2, 6):
        assert torch.equal(readout.top[at, :, :, 0], answers)
    assert not torch.equal(readout.top[0, :, :, 0], answers)


def test_an_edit_is_in_what_is_read(lens, prompt):
    from lmm_lens import AblateHeads, HeadSet

    edit = AblateHeads(HeadSet.all(6, 8, layers=[2]))
    edited = logit_lens(lens, prompt, rows="last", words=["red"], interventions=[edit])
    plain = logit_lens(lens, prompt, rows="last", words=["red"])
    assert torch.equal(edited.logits[:2], plain.logits[:2])
    assert not torch.equal(edited.logits[2:], plain.logits[2:])
    logits = lens.run(prompt, [edit], logits="last").logits[0, 0]
    assert float(edited.logits[-1, 0, 0, 0]) == pytest.approx(float(logits[edited.forms[0].token]), abs=1e-4)


# ---------------------------------------------------------------------- batches, chunks, backends


def test_each_row_of_a_padded_batch_is_as_alone(lens, example):
    texts = ["what color is the circle?", "is the circle left of the red circle?"]
    batch = lens.prompt(texts, images=[example.image] * 2)
    together = logit_lens(lens, batch, rows="text", words=["red"])
    for row, text in enumerate(texts):
        alone = logit_lens(lens, lens.prompt(text, images=example.image), rows="text", words=["red"])
        n = alone.positions.shape[1]
        torch.testing.assert_close(together.logits[:, row, :n], alone.logits[:, 0], atol=1e-4, rtol=1e-4)
        assert torch.equal(together.ranks[:, row, :n], alone.ranks[:, 0])
        assert bool((together.positions[row, n:] == -1).all())
        assert bool((together.top[:, row, n:] == -1).all())
        assert bool(together.entropy[:, row, n:].isnan().all())
    table = together.to_pandas()
    assert len(table) == 6 * int(batch.mask("text").sum())


def test_chunks_of_one_row_say_the_same(lens, prompt, monkeypatch):
    from lmm_lens.readouts import vocabulary

    whole = logit_lens(lens, prompt, words=["red"])
    monkeypatch.setattr(vocabulary, "LEAST", 1)
    monkeypatch.setattr(vocabulary, "MOST", 1)
    rows = []
    numbers = vocabulary.WordReader._numbers
    monkeypatch.setattr(
        vocabulary.WordReader, "_numbers", lambda self, x, layer: rows.append(len(x)) or numbers(self, x, layer)
    )
    found = logit_lens(lens, prompt, words=["red"])
    assert set(rows) == {1}
    torch.testing.assert_close(found.logits, whole.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.entropy, whole.entropy, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", quick(["llava", "gemma3", "qwen3_vl"], ["llava"]))
@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight", "remote"])
def test_every_backend_reads_the_same_words(name, backend):
    family = case(name)
    expected = logit_lens(family.lens, family.prompt, rows=[5, 7, 9], words=[11])
    found = logit_lens(family.on(backend), family.prompt, rows=[5, 7, 9], words=[11])
    assert torch.equal(found.positions, expected.positions)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.top_logits, expected.top_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.entropy, expected.entropy, atol=1e-4, rtol=1e-4)


def test_on_text_it_agrees_with_transformer_lens_own(lens, bridged):
    from transformer_lens.tools.analysis import logit_lens as theirs

    prompt = bridged.prompt("what color is the circle?", template=False)
    mine = logit_lens(bridged, prompt, rows="all", words=["red", "blue"], top=3)
    ids = [form.token for form in mine.forms]
    own = theirs(bridged.bridge, prompt.inputs["input_ids"], targets=ids, positions=None, return_type="logits")
    post = [index for index, label in enumerate(own.labels) if label.endswith("_pre") or "final" in label][1:]
    assert len(post) == 6
    torch.testing.assert_close(mine.logits[:, 0], own.values[post, 0], atol=1e-4, rtol=1e-4)
    assert torch.equal(mine.ranks[:, 0], own.readout.target_ranks[post, 0] + 1)
    torch.testing.assert_close(mine.entropy[:, 0], own.readout.entropy[post, 0], atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------- words


def test_a_word_has_its_token_with_a_space_and_without():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from lmm_lens.readouts.forms import _forms

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(alphabet)}
    vocab |= {name: 300 + i for i, name in enumerate(["do", "dog", "Ġd", "Ġdo", "Ġdog", "ca"])}
    merges = [("d", "o"), ("do", "g"), ("Ġ", "d"), ("Ġd", "o"), ("Ġ", "dog"), ("Ġdo", "g"), ("c", "a")]
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokens = PreTrainedTokenizerFast(tokenizer_object=core)

    class Own:
        adapter = type("A", (), {"tokenizer": tokens})

    forms = _forms(Own, "dog")
    assert [(form.text, form.is_whole) for form in forms] == [("dog", True), (" dog", True)]
    assert [(form.text, form.is_whole) for form in _forms(Own, "cat")] == [("ca", False)]


def test_numbers_of_a_word_join_its_forms(lens, prompt):
    readout = logit_lens(lens, prompt, words=["red", "blue"])
    assert [form.word for form in readout.forms] == ["red", "blue"]
    assert torch.equal(readout.rank("red"), readout.ranks[..., 0])
    torch.testing.assert_close(readout.probability("blue"), readout.probabilities[..., 1])
    assert torch.equal(readout.logit("blue"), readout.logits[..., 1])


def test_the_table_shows_each_patch_where_it_lies(lens, prompt):
    readout = logit_lens(lens, prompt)
    table = readout.table(4)
    assert table.shape == (6, 6)
    for position in prompt.mask("image")[0].nonzero().flatten().tolist():
        line, column = prompt.spans[0][0].cell(position)
        assert table.iloc[line, column] == readout.words(4, position)[0][0]


def test_crops_lie_side_by_side_in_the_table():
    lens, prompt = lens_of("internvl"), prompt_of("internvl")
    readout = logit_lens(lens, prompt, layers=[1])
    names = [canvas.name for canvas in readout.canvases[0]]
    detail = readout.canvases[0][names.index("image 0, detail")]
    table = readout.table(1, names.index("image 0, detail"))
    assert table.size == len(detail.positions)
    last = max(detail.positions, key=lambda p: (detail.box(p).y0, detail.box(p).x0))
    assert table.iloc[-1, -1] == readout.words(1, last)[0][0]


def test_maps_of_a_word_lie_on_the_picture(lens, prompt):
    readout = logit_lens(lens, prompt, words=["red"])
    for by in ("probability", "logit", "rank"):
        figure = readout.plot("red", by=by, layers=[0, 5])
        axes = [ax for ax in figure.axes if ax.get_title().startswith("after layer")]
        assert [ax.get_title() for ax in axes] == ["after layer 0", "after layer 5"]
        for ax, layer in zip(axes, (0, 5), strict=True):
            numbers = getattr(readout, by)("red")[layer, 0].double()
            numbers = -numbers.log10() if by == "rank" else numbers
            np.testing.assert_allclose(np.asarray(ax.images[1].get_array()), numbers.reshape(6, 6), rtol=1e-5)


def test_words_are_written_over_their_patches(lens, prompt):
    readout = logit_lens(lens, prompt)
    ax = readout.plot_words(5).axes[0]
    assert len(ax.texts) == 36
    for text in ax.texts:
        position = prompt.patch_at(*text.get_position())
        assert text.get_text() == readout.words(5, position)[0][0]


def test_it_comes_back_from_its_file(lens, prompt, tmp_path):
    readout = logit_lens(lens, prompt, words=["red"])
    readout.save(tmp_path / "lens")
    again = LogitLens.load(tmp_path / "lens", lens=lens)
    assert repr(again) == repr(readout)
    assert again.to_pandas().equals(readout.to_pandas())
    assert again.table(3).equals(readout.table(3))
    raw = bytearray((tmp_path / "lens").read_bytes())
    raw[-2] ^= 4
    (tmp_path / "lens").write_bytes(raw)
    with pytest.raises(ScoreError, match="does not have the checksum"):
        LogitLens.load(tmp_path / "lens")


def test_what_it_says_of_itself(lens, prompt):
    lines = repr(logit_lens(lens, prompt, words=["red"])).splitlines()
    assert lines[0] == "LogitLens: 36 tokens after layers 0 to 5"
    assert lines[1].startswith("  most often likeliest after layer 5: ")
    assert lines[2].startswith("  'red' (as 'red'): best rank ")


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"words": ["zebra"]}, "'zebra' is no token of this model: its tokenizer reads it as '<unk>'"),
        ({"words": "red"}, "words are a list, as in words=['red']"),
        ({"words": [" "]}, "expected a word, given ' '"),
        ({"words": [10**6]}, "token id 1000000 is out of range"),
        ({"top": 0}, "top is how many of the"),
        ({"layers": [6]}, "layer 6 is out of range: the model has layers 0 to 5"),
        ({"layers": []}, "no layers were given to read"),
        ({"rows": "video"}, "rows 'video' of the read at resid_post select no row of this run"),
        ({"translators": {1: (torch.zeros(3, 4), torch.zeros(3))}}, "translators are {layer: (A, b)}"),
        (
            {"translators": {1: (torch.eye(4), torch.zeros(4))}},
            "the translators are 4 wide, the",
        ),
        (
            {"layers": [0, 1], "translators": {1: (torch.eye(128), torch.zeros(128))}},
            "layers [0] have no translator: these have one: [1]",
        ),
    ],
)
def test_what_cannot_be_read_is_an_error_that_says_what_to_do(lens, prompt, options, text):
    with pytest.raises((HookError, ScoreError)) as caught:
        logit_lens(lens, prompt, **options)
    assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_word_or_a_token_that_was_not_read_is_named(lens, prompt):
    readout = logit_lens(lens, prompt, words=["red"])
    with pytest.raises(ScoreError, match="unknown word 'rad', did you mean 'red'"):
        readout.rank("rad")
    with pytest.raises(HookError, match="position 0 of row 0 was not read: 36 tokens from 2 to 37 were"):
        readout.words(1, 0)
    with pytest.raises(HookError, match=r"layer 9 was not read: these were \[0, 1, 2, 3, 4, 5\]"):
        readout.table(9)
    with pytest.raises(PromptError, match="row 0 has no picture 1: it has"):
        readout.table(1, picture=1)
    with pytest.raises(PromptError, match="row 0 has no picture to draw on"):
        logit_lens(lens, lens.prompt("what is one plus one?"), rows="all").table(1)
    with pytest.raises(ScoreError, match="unknown number of a word 'odds'"):
        readout.plot("red", by="odds")
    with pytest.raises(ScoreError, match="no visual token was read"):
        logit_lens(lens, prompt, rows="last", words=["red"]).plot("red")


@pytest.mark.parametrize("name", ["inkling2", "qwen4_exp"])
def test_a_model_that_ends_in_another_way_is_refused(name):
    with pytest.raises(ModelError, match=r"cannot be read as words|is not known"):
        logit_lens(lens_of(name), prompt_of(name), rows="last")


def test_a_head_that_is_not_the_models_own_is_found_out(lens, prompt, monkeypatch):
    from lmm_lens.readouts.unembedding import Unembedding

    whole = Unembedding.of(lens)
    import dataclasses

    monkeypatch.setattr(Unembedding, "of", classmethod(lambda cls, lens: dataclasses.replace(whole, norm=None)))
    with pytest.raises(ModelError, match=r"give logits up to .* away from its own"):
        logit_lens(lens, prompt, rows="last")


def test_a_model_that_only_a_server_has_is_refused(lens, prompt):
    with torch.device("meta"):
        empty = copy.deepcopy(lens.model).to("meta")
    away = Lens(empty, lens.processor, backend="nnsight", remote="http://127.0.0.1:1")
    with pytest.raises(RemoteError, match="are on the server, and are not sent"):
        logit_lens(away, prompt)


def test_a_word_given_twice_counts_once(lens, prompt):
    once = logit_lens(lens, prompt, "last", words=["red"])
    twice = logit_lens(lens, prompt, "last", words=["red", " red ", "red"])
    assert twice.forms == once.forms
    assert torch.equal(twice.probability("red"), once.probability("red"))


def test_a_token_is_asked_for_as_it_was_given(lens, prompt):
    (form,) = logit_lens(lens, prompt, "last", words=["red"]).forms
    read = logit_lens(lens, prompt, "last", words=[form.token, "red"])
    assert torch.equal(read.rank(form.token), read.rank("red"))
    assert torch.equal(read.probability(form.token), read.probability("red"))


@pytest.mark.parametrize("row", [-1, 1])
def test_a_batch_row_that_is_not_there_is_named(lens, prompt, row):
    read = logit_lens(lens, prompt)
    for ask in (lambda: read.words(0, 5, row), lambda: read.best(0, row), lambda: read.table(0, row=row)):
        with pytest.raises(PromptError, match=f"row {row} is out of range: the prompt has rows 0 to 0"):
            ask()
