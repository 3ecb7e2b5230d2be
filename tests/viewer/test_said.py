"""What tokens say in words: the page has what the reading has, and refuses what is of another prompt."""

import pytest

from lmm_lens import LensError, logit_lens
from lmm_lens.bundled import shapes
from lmm_lens.errors import PromptError
from lmm_lens.viewer import view
from tests.viewer.pages import Shown


@pytest.fixture(scope="module")
def pair(lens):
    """Two questions of different lengths as a left-padded batch."""
    examples = shapes.examples(12, seed=5)
    texts, pictures = [e.question for e in examples], [e.image for e in examples]
    short, long = (f(range(12), key=lambda i: len(texts[i].split())) for f in (min, max))
    return lens.prompt([texts[short], texts[long]], images=[pictures[short], pictures[long]])


def test_every_token_that_was_read_has_its_word_after_every_layer(lens, pair):
    reading = logit_lens(lens, pair, rows="image", layers=[1, 3, 5])
    page = view(pair, lens, words=reading, row="all").html
    for row in (0, 1):
        about = Shown(page, row).about
        assert about["words"]["layers"] == [1, 3, 5]
        visual = pair.mask("visual")[row].nonzero().flatten().tolist()
        assert sorted(about["positions"][int(key)] for key in about["words"]["of"]) == visual
        for key, said in about["words"]["of"].items():
            for layer, (text, strength) in zip([1, 3, 5], said, strict=True):
                word, probability = reading.words(layer, about["positions"][int(key)], row)[0]
                assert (about["words"]["texts"][text], strength) == (word, pytest.approx(probability, abs=1e-4))


def test_without_a_reading_nothing_is_said(lens, pair):
    assert Shown(view(pair, lens).html).about["words"] is None


def test_words_of_another_prompt_or_none_are_refused(lens, pair):
    other = lens.prompt("what comes after three?")
    with pytest.raises(PromptError) as caught:
        view(pair, lens, words=logit_lens(lens, other, rows="all"))
    assert str(caught.value) == (
        "these words were read of another prompt\n  read them of this one: logit_lens(lens, prompt)"
    )
    first, second = (lens.prompt(pair.texts[0], images=image) for image in pair.images[0] + pair.images[1])
    assert first.tokens == second.tokens
    with pytest.raises(PromptError, match="these words were read of another prompt"):
        view(first, lens, words=logit_lens(lens, second))
    with pytest.raises(LensError) as caught:
        view(pair, lens, words=["red"])
    assert str(caught.value) == (
        "words is what a logit lens or a latent lens has read, given list\n"
        '  view(prompt, lens, words=logit_lens(lens, prompt, rows="image"))'
    )
