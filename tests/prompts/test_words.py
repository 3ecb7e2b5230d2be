"""Words of a prompt, found in its text however its tokenizer cut it: compared with the tokens written out by hand."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lmm_lens import shapes
from lmm_lens.errors import PromptError
from lmm_lens.prompts.words import NO_TEXT, find, style_of, text_of
from tests.support.evidence import picture
from tests.support.families import lens_of

TEXTS = ["Is the triangle left of the triangle?", "café olé, an angle", "the red circle", "图中有什么"] * 20


def trained(kind):
    """A tokenizer that learned a few merges, so that words have subwords."""
    if kind == "wordpiece":
        core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        core.pre_tokenizer, core.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
        core.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"]))
        return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    core = Tokenizer(models.BPE())
    if kind == "bytes":
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
    else:
        core.pre_tokenizer, core.decoder, alphabet = pre_tokenizers.Metaspace(), decoders.Metaspace(), []
    trainer = trainers.BpeTrainer(vocab_size=290 if kind == "bytes" else 60, initial_alphabet=alphabet)
    core.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core)


def pieces_of(tokenizer, text):
    style = style_of(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [text_of(token, style) for token in tokenizer.convert_ids_to_tokens(ids)]


KINDS = ["bytes", "pieces", "wordpiece"]


@pytest.mark.parametrize("kind", KINDS)
def test_how_a_vocabulary_writes_text_is_told_by_its_tokenizer(kind):
    assert style_of(trained(kind)) == kind


def test_the_bundled_models_have_whole_words(lens):
    assert style_of(lens.adapter.tokenizer) == "words"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS[:3])
def test_the_pieces_of_a_text_are_that_text(kind, text):
    pieces = pieces_of(trained(kind), text)
    assert len(pieces) > 3
    assert b"".join(pieces).decode().replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("text", "word", "n"), [(TEXTS[0], "triangle", 2), (TEXTS[0], "of the", 1), (TEXTS[1], "olé", 1)]
)
def test_the_tokens_of_a_word_spell_it(kind, text, word, n):
    pieces = pieces_of(trained(kind), text)
    found = find(pieces, word, 0)
    assert len(found) == n
    for positions in found:
        assert positions == tuple(range(positions[0], positions[-1] + 1))
        spelled = b"".join(pieces[p] for p in positions).decode().strip(" ,?")
        assert spelled.replace(" ", "") == word.replace(" ", "")


def test_by_hand():
    pieces = [
        b"Is",
        b" the",
        b" tri",
        b"angle",
        NO_TEXT,
        b" tri",
        b"angle.",
        b" An",
        b" angle",
        b" caf",
        b"\xc3",
        b"\xa9",
    ]
    assert find(pieces, "triangle", 0) == [(2, 3), (5, 6)]
    assert find(pieces, " triangle", 0) == [(2, 3), (5, 6)]
    assert find(pieces, "angle", 0) == [(8,)]  # not the one inside the other word
    assert find(pieces, "the triangle", 0) == [(1, 2, 3)]
    assert find(pieces, "an", 0) == [(7,)]
    assert find(pieces, "café", 0) == [(9, 10, 11)]
    assert find(pieces, "IS THE", 0) == [(0, 1)]


def test_capitals_count_where_both_occur():
    pieces = [b"May", b" may", b" be"]
    assert find(pieces, "may", 0) == [(1,)]
    assert find(pieces, "May", 0) == [(0,)]
    assert find(pieces, "MAY", 0) == [(0,), (1,)]


def test_scripts_without_spaces_have_words_inside():
    pieces = ["图".encode(), "中有".encode(), "什么".encode()]
    assert find(pieces, "有什么", 0) == [(1, 2)]


def test_a_picture_between_two_tokens_is_no_space():
    with pytest.raises(PromptError):
        find([b"red", NO_TEXT, b"circle"], "red circle", 0)


def test_an_emoji_is_all_of_its_bytes():
    raw = "🙂".encode()
    pieces = [b"a ", raw[:2], raw[2:], b" b"]
    assert find(pieces, "🙂", 0) == [(1, 2)]


# ---------------------------------------------------------------------- on prompts


def test_words_of_a_padded_batch_are_positions_of_its_rows(lens):
    example = shapes.examples(1, seed=4)[0]
    batch = lens.prompt(["what color is the circle?", "is the circle left of the circle?"], images=[example.image] * 2)
    for row, n in ((0, 1), (1, 2)):
        found = batch.words("circle", row)
        assert [batch.tokens[row][p] for p in found] == ["circle"] * n
        assert len(found) == n
    assert batch.words("circle", 1, occurrence=0) == batch.words("circle", 1)[:1]
    assert batch.words("circle", 1, occurrence=-1) == batch.words("circle", 1)[1:]
    assert batch.words(["the circle", "what"], 0) == tuple(sorted({*batch.words("the circle"), *batch.words("what")}))


def test_subwords_of_a_real_processor():
    own = lens_of("llava")
    prompt = own.prompt("What colour is the café?", images=picture(60, 60))
    found = prompt.words("colour")
    assert [prompt.tokens[0][p] for p in found] == list("colour")
    assert len(prompt.words("café")) == 5  # a token a byte
    assert not prompt.mask("visual")[0, list(found)].any()


def test_a_read_takes_the_words_as_rows(lens):
    from lmm_lens import Read

    example = shapes.examples(1, seed=4)[0]
    prompt = lens.prompt("what color is the circle?", images=example.image)
    run = lens.run(prompt, read=[Read("resid_post", [1], rows=prompt.words("circle"))], logits="last")
    assert run.positions["resid_post"].tolist() == [list(prompt.words("circle"))]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda p: p.words("circel"), "'circel' does not occur in row 0 of the prompt\n  near it: 'circle'"),
        (lambda p: p.words("zzz"), "its last words: what color is the circle"),
        (lambda p: p.words("  "), "expected a word of the prompt, given '  '"),
        (lambda p: p.words("circle", 1), "row 1 is out of range: the prompt has rows 0 to 0"),
        (
            lambda p: p.words("circle", occurrence=1),
            "'circle' occurs 1 time in row 0 of the prompt, expected an occurrence below that, given 1",
        ),
    ],
)
def test_a_word_that_is_not_there_is_an_error_that_says_what_is(lens, call, text):
    prompt = lens.prompt("what color is the circle?", images=shapes.examples(1, seed=4)[0].image)
    with pytest.raises(PromptError) as caught:
        call(prompt)
    assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_without_a_processor_there_are_no_words(lens):
    from lmm_lens import Lens

    prompt = lens.prompt("what color is the circle?", images=shapes.examples(1, seed=4)[0].image)
    blind = Lens(lens.model).prompt(inputs=prompt.inputs)
    with pytest.raises(PromptError, match="this lens has no processor"):
        blind.words("circle")


def test_tensors_of_the_users_own_processing_have_their_words(lens):
    prompt = lens.prompt("what color is the circle?", images=shapes.examples(1, seed=4)[0].image)
    assert lens.prompt(inputs=prompt.inputs).words("circle") == prompt.words("circle")
