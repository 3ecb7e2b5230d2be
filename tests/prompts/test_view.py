"""A prompt as text and as HTML: every token once, each picture one block, nothing of the tokens taken for markup."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lmm_lens.bundled import shapes
from lmm_lens.prompts.view import as_html, as_text, describe, pieces
from tests.support.cases import case
from tests.support.models import FAMILIES, another, joined
from tests.support.page import Page


@pytest.fixture(scope="module")
def batch(lens):
    examples = [shapes.examples(1, kinds=(kind,), seed=1)[0] for kind in ("list", "where", "color")]
    questions = [*(e.question for e in examples), "what is one plus two?"]
    pictures = [examples[0].image, examples[1].image, [examples[2].image, examples[0].image], None]
    return lens.prompt(questions, images=pictures)


def test_every_position_is_in_one_piece(batch):
    for row in range(batch.n_rows):
        covered = [position for _, _, positions in pieces(batch, row) for position in positions]
        assert covered == list(range(batch.n_tokens))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_position_is_in_one_piece_in_every_family(name):
    family = case(name)
    prompt = family.lens.prompt(inputs=joined([family.inputs, another(family.inputs)]))
    for row in range(2):
        covered = [position for _, _, positions in pieces(prompt, row) for position in positions]
        left_out = sorted({*range(prompt.n_tokens)} - {*covered})  # row breaks and newlines within a picture
        assert sorted([*covered, *left_out]) == list(range(prompt.n_tokens))
        assert bool(prompt.mask("marker")[row, left_out].all())
        visual = {p for role, _, positions in pieces(prompt, row) if role in ("image", "video") for p in positions}
        assert visual == set(prompt.mask("visual")[row].nonzero().flatten().tolist())
    assert Page(as_html(prompt)).text.count("tokens") >= 2


def test_roles_follow_the_sequence(batch):
    assert [role for role, _, _ in pieces(batch, 0)] == [
        "pad",
        "bos",
        "before_image",
        "image",
        "question",
        "answer_turn",
    ]
    assert [role for role, _, _ in pieces(batch, 2)] == [
        "bos",
        "before_image",
        "image",
        "image",
        "question",
        "answer_turn",
    ]
    assert "image" not in [role for role, _, _ in pieces(batch, 3)]


def test_a_picture_is_described_in_one_line(lens):
    prompt = lens.prompt("where is the star?", images=shapes.examples(1)[0].image)
    expected = "row 0: <s> USER: [image 0: 36 tokens, 6 x 6, at 2 to 37] where is the star ? ASSISTANT:"
    assert as_text(prompt) == str(prompt) == expected
    assert repr(prompt) == f"Prompt of 1 rows x 44 tokens\n{expected}"
    assert describe(prompt.spans[0][0]) == "[image 0: 36 tokens, 6 x 6, at 2 to 37]"


def test_a_batch_has_a_line_a_row_and_counts_its_padding(batch):
    lines = as_text(batch).splitlines()
    assert [line.split(":")[0] for line in lines] == ["row 0", "row 1", "row 2", "row 3"]
    for row, line in enumerate(lines):
        n_pad = int(batch.mask("pad")[row].sum())
        assert (f"[{n_pad} pad]" in line) == (n_pad > 0)
        assert "<pad>" not in line
    assert lines[2].count("[image ") == 2
    assert "[image 1: 36 tokens, 6 x 6, at 38 to 73]" in lines[2]


def test_the_html_nests_and_holds_every_token_and_picture(batch):
    page = Page(as_html(batch))
    assert as_html(batch) == batch._repr_html_()
    for row in range(batch.n_rows):
        plain = batch.mask("text")[row]
        for position in plain.nonzero().flatten().tolist():
            assert batch.tokens[row][position] in page.text
            assert any(f"position {position}" in attrs.get("title", "") for _, attrs in page.tags)
    assert len(page.pictures()) == 4
    assert page.text.count("36 tokens") == 4


def test_the_html_shows_the_pictures_themselves(lens):
    example = shapes.examples(1, seed=4)[0]
    (shown,) = Page(as_html(lens.prompt(example.question, images=example.image), thumbnail=48)).pictures()
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(example.image)).max() <= 1


def test_of_a_wide_picture_the_part_that_the_model_sees_is_shown(lens):
    picture = Image.new("RGB", (96, 48), "red")
    picture.paste("blue", (24, 0, 72, 48))  # the centre crop
    (shown,) = Page(as_html(lens.prompt("where is the star?", images=picture))).pictures()
    assert (np.asarray(shown) == (0, 0, 255)).all()


def test_tokens_that_look_like_markup_are_escaped(lens):
    prompt = lens.prompt("where is the star?")
    nasty = ("<script>alert(1)</script>", "a&b", "</div>", '"', "<!--", "'", *prompt.tokens[0][6:])
    page = as_html(replace(prompt, tokens=(nasty,)))
    assert "<script" not in page
    assert "<!--" not in page
    text = Page(page).text
    assert all(token in text for token in nasty)
    assert "<s>" in Page(as_html(prompt)).text


def test_the_html_needs_nothing_from_elsewhere(batch):
    page = as_html(batch)
    assert "http:" not in page
    assert "https:" not in page
    assert "<link" not in page
    assert "<script" not in page


def test_tensors_without_pictures_are_shown_too():
    prompt = case("llava").prompt
    assert "[image 0: 16 tokens, 4 x 4, at 5 to 20]" in str(prompt)
    assert Page(as_html(prompt)).pictures() == []
