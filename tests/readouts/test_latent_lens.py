"""Neighbours in a bank, against cosines one by one; known answers: a sentence's own words, and words of a prompt."""

import sys

import pytest
import torch

from lmm_lens import Lens, Read, shapes
from lmm_lens.errors import HookError, PromptError, ScoreError
from lmm_lens.readouts import EmbeddingBank, LatentLens, embedding_bank, latent_lens
from lmm_lens.readouts.bank import words_around
from tests.support.families import lens_of, prompt_of
from tests.support.quick import quick

SENTENCES = ["the circle is red", "the triangle is blue", "is the cross left of the circle ?", "the square is red"]


@pytest.fixture(scope="module")
def prompt(lens):
    return lens.prompt("what color is the circle?", images=shapes.examples(1, kinds=("color",), seed=2)[0].image)


@pytest.fixture(scope="module")
def bank(lens):
    return embedding_bank(lens, SENTENCES, batch=3)


def test_the_bank_has_each_word_in_its_context_after_each_layer(lens, bank):
    assert bank.words == tuple(" ".join(SENTENCES).split())
    assert bank.sentence_of.tolist() == [i for i, text in enumerate(SENTENCES) for _ in text.split()]
    for sentence, text in enumerate(SENTENCES):
        alone = lens.prompt(text, template=False)
        run = lens.run(alone, read=["resid_post"])
        own = (bank.sentence_of == sentence).nonzero().flatten()
        for layer in range(6):
            vectors = run.reads["resid_post", layer][0][-len(own) :]
            wanted = vectors / vectors.norm(dim=-1, keepdim=True)
            torch.testing.assert_close(bank.vectors[layer, own], wanted, atol=1e-5, rtol=1e-4)


def slowly(hidden, bank, n):
    """The nearest words by cosines one by one: [(cosine, layer, word)]."""
    found = []
    for at, layer in enumerate(bank.layers):
        for word in range(len(bank.words)):
            vector = bank.vectors[at, word].double()
            found.append((float(hidden.double() @ vector / hidden.double().norm() / vector.norm()), layer, word))
    return sorted(found, reverse=True)[:n]


def test_neighbours_are_the_largest_cosines(lens, prompt, bank):
    found = latent_lens(lens, prompt, bank, rows=[3, 20, 42], layers=[1, 4], top=4)
    run = lens.run(prompt, read=[Read("resid_post", [1, 4])])
    for layer in (1, 4):
        for position in (3, 20, 42):
            near = found.near(layer, position)
            expected = slowly(run.reads["resid_post", layer][0, position], bank, 4)
            assert [each.cosine for each in near] == pytest.approx([cosine for cosine, _, _ in expected], abs=1e-5)
            assert [(each.layer, each.word, each.sentence) for each in near] == [
                (at, bank.words[word], SENTENCES[int(bank.sentence_of[word])]) for _, at, word in expected
            ]


def test_a_sentence_is_nearest_to_itself(lens, bank):
    alone = lens.prompt(SENTENCES[2], template=False)
    words = SENTENCES[2].split()
    rows = [alone.n_tokens - len(words) + i for i in range(len(words))]
    found = latent_lens(lens, alone, bank, rows=rows, layers=[2, 5], top=1)
    for layer in (2, 5):
        for row, word in zip(rows, words, strict=True):
            (near,) = found.near(layer, row)
            assert (near.word, near.sentence, near.layer) == (word, SENTENCES[2], layer)
            assert near.cosine == pytest.approx(1, abs=1e-5)


def test_chunks_of_rows_and_of_the_bank_find_the_same(lens, prompt, bank, monkeypatch):
    whole = latent_lens(lens, prompt, bank)
    monkeypatch.setattr(sys.modules["lmm_lens.readouts.by_neighbours"], "LEAST", 40)
    found = latent_lens(lens, prompt, bank)
    torch.testing.assert_close(found.cosines, whole.cosines, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", quick(["transformer_lens", "nnsight", "remote"], ["nnsight"]))
def test_every_backend_finds_the_same_neighbours(lens, prompt, bank, backend):
    given = {"backend": "nnsight", "remote": "local"} if backend == "remote" else {"backend": backend}
    other = Lens(lens.model, lens.processor, **given)
    found, expected = (latent_lens(each, prompt, bank, rows=[3, 20]) for each in (other, lens))
    torch.testing.assert_close(found.cosines, expected.cosines, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(embedding_bank(other, SENTENCES[:2]).vectors, bank.vectors[:, :8], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", quick(["llava", "gemma3", "qwen2_5_vl"], ["llava"]))
def test_subwords_are_of_whole_words_on_real_processors(name):
    lens = lens_of(name)
    made = embedding_bank(lens, ["A red triangle.", "Two cats"], layers=[1])
    assert set(made.words) == {"A", "red", "triangle", ".", "Two", "cats"}
    assert made.words.count("triangle") == len("triangle")  # a token a letter
    found = latent_lens(lens, prompt_of(name), made, layers=[0, 2], top=2)
    assert len(found.to_pandas()) == 2 * 2 * int(prompt_of(name).mask("image").sum())


def test_padded_rows_are_as_alone(lens, bank):
    image = shapes.examples(1, seed=2)[0].image
    texts = ["what color is the circle?", "is the circle left of the red circle?"]
    together = latent_lens(lens, lens.prompt(texts, images=[image] * 2), bank, rows="text")
    for row, text in enumerate(texts):
        alone = latent_lens(lens, lens.prompt(text, images=image), bank, rows="text")
        n = alone.positions.shape[1]
        torch.testing.assert_close(together.cosines[:, row, :n], alone.cosines[:, 0], atol=1e-4, rtol=1e-4)
        assert bool((together.neighbours[:, row, n:] == -1).all())


def test_words_lie_over_the_picture(lens, prompt, bank):
    found = latent_lens(lens, prompt, bank)
    table = found.table(3)
    for position in prompt.mask("image")[0].nonzero().flatten().tolist():
        assert table.iloc[prompt.spans[0][0].cell(position)] == found.near(3, position)[0].word
    assert len(found.plot_words(3).axes[0].texts) == 36


def test_bank_and_readings_come_back_from_their_files(lens, prompt, bank, tmp_path):
    bank.save(tmp_path / "bank")
    again = EmbeddingBank.load(tmp_path / "bank", lens=lens)
    assert repr(again) == repr(bank) == "EmbeddingBank of 20 words of 4 sentences after 6 layers: 120 vectors of 128"
    assert torch.equal(again.vectors, bank.vectors)
    found = latent_lens(lens, prompt, again)
    found.save(tmp_path / "read")
    read = LatentLens.load(tmp_path / "read", lens=lens)
    assert repr(read) == repr(found)
    assert read.to_pandas().equals(found.to_pandas())
    assert repr(found).startswith("LatentLens: 36 tokens after layers 0 to 5, by 20 words of 4 sentences\n")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"top": 0}, "top is how many of the bank's 120 words are kept, 1 or more, given 0"),
        ({"layers": [8]}, "layer 8 is out of range"),
        ({"layers": []}, "no layers were given to read"),
        ({"rows": "video"}, "select no row of this run"),
    ],
)
def test_what_cannot_be_read_is_an_error(lens, prompt, bank, options, text):
    with pytest.raises((HookError, ScoreError)) as caught:
        latent_lens(lens, prompt, bank, **options)
    assert text in str(caught.value)


def test_a_bank_of_another_model_is_refused(prompt, bank):
    with pytest.raises(ScoreError, match="this bank was made with another model"):
        latent_lens(Lens.demo("plain"), prompt, bank)


def test_a_bank_needs_words(lens):
    with pytest.raises(PromptError, match="no sentences were given"):
        embedding_bank(lens, [])


def test_words_around_tokens_by_hand():
    assert words_around([b"", b"Two", b" tri", b"angles", b",", b" caf", b"\xc3", b"\xa9"]) == [
        *["", "Two", "triangles", "triangles", ","],
        *["café"] * 3,
    ]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"layers": []}, HookError, "no layers were given to read"),
        ({"batch": 0}, PromptError, "batch is how many sentences one forward reads, 1 or more, given 0"),
        ({"batch": -1}, PromptError, "batch is how many sentences one forward reads, 1 or more, given -1"),
    ],
)
def test_a_bank_of_nothing_is_an_error(lens, options, error, text):
    with pytest.raises(error, match=text):
        embedding_bank(lens, ["a red circle"], **options)


def test_a_layer_named_twice_is_in_the_bank_once(lens):
    assert embedding_bank(lens, ["a red circle"], layers=[2, 0, 2]).layers == (2, 0)
