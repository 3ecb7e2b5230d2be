"""The role of every token, by hand-worked sequences: several, adjacent and no images, padding on either side."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_lens import Box, LensError, Span
from lmm_lens.prompts.prompt import MASKS, Prompt, annotate

PARTITION = ("image", "video", "marker", "text", "pad")


def picture(*positions, image=0, kind="image"):
    return Span(kind, positions, image)


def masks_of(roles: str, spans, answer_turn: int = 0, bos: int | None = None):
    """Masks of one row as strings of the same length; in `roles` a dot is padding, anything else a real token."""
    real = torch.tensor([[role != "." for role in roles]])
    first = torch.zeros_like(real)
    if bos is not None:
        first[0, bos] = True
    masks = annotate([spans], real, first, [answer_turn])
    return {name: "".join("x" if flag else "." for flag in mask[0]) for name, mask in masks.items()}


def test_one_image_between_text():
    # b = beginning, t = text, i = image, q = question, a = answer turn
    masks = masks_of("btiiiqqaa", [picture(2, 3, 4)], answer_turn=2, bos=0)
    assert masks == {
        "image": "..xxx....",
        "video": ".........",
        "marker": ".........",
        "text": "xx...xxxx",
        "pad": ".........",
        "visual": "..xxx....",
        "bos": "x........",
        "after_image": ".....xxxx",
        "question": ".....xx..",
        "template": ".........",
        "last": "........x",
        "all": "xxxxxxxxx",
    }


def test_what_the_template_wrote_is_no_question():
    """A soft prompt and a line break behind the picture, and what closes the turn: of the question three words stay."""
    roles = "biisnqqqenaa"
    real = torch.ones(1, len(roles), dtype=torch.bool)
    spans, first = [[picture(1, 2)]], torch.zeros_like(real)
    given = annotate(spans, real, first, [2], [[3, 4, 8, 9, 11]])  # the last is of the answer turn already
    masks = {name: "".join("x" if flag else "." for flag in mask[0]) for name, mask in given.items()}
    assert masks["question"] == ".....xxx...."
    assert masks["template"] == "...xx...xx.."
    assert masks["after_image"] == "...xxxxxxxxx"
    prompt = Prompt({}, tuple(map(tuple, spans)), ((),), (tuple(roles),), given)
    assert prompt.role_names() == [
        *["before_image", "image", "image", "template", "template", "question", "question", "question"],
        *["template", "template", "answer_turn", "answer_turn"],
    ]


def test_two_images_with_text_between():
    masks = masks_of("biitiiqqa", [picture(1, 2), picture(4, 5, image=1)], answer_turn=1, bos=0)
    assert masks["image"] == ".xx.xx..."
    assert masks["text"] == "x..x..xxx"
    assert masks["after_image"] == "......xxx"  # after the last of them
    assert masks["question"] == "......xx."


def test_two_images_without_a_token_between():
    masks = masks_of("biiiiqa", [picture(1, 2), picture(3, 4, image=1)], answer_turn=1)
    assert masks["image"] == ".xxxx.."
    assert masks["after_image"] == ".....xx"
    assert masks["question"] == ".....x."


def test_markers_within_and_behind_the_image_are_not_text():
    # m = row break or end tag
    spans = [Span("marker", (1,)), picture(2, 3), Span("marker", (4,)), picture(5, 6), Span("marker", (7,))]
    masks = masks_of("bmiimiimqa", spans, answer_turn=1)
    assert masks["marker"] == ".x..x..x.."
    assert masks["image"] == "..xx.xx..."
    assert masks["text"] == "x.......xx"
    assert masks["after_image"] == "........xx"
    assert masks["question"] == "........x."


def test_video_counts_as_visual_and_not_as_image():
    masks = masks_of("bvviqa", [picture(1, 2, kind="video"), picture(3, image=0)], answer_turn=1)
    assert masks["video"] == ".xx..."
    assert masks["image"] == "...x.."
    assert masks["visual"] == ".xxx.."
    assert masks["after_image"] == "....xx"


def test_a_row_without_an_image_has_nothing_after_it():
    masks = masks_of("btttaa", [], answer_turn=2, bos=0)
    assert masks["after_image"] == masks["question"] == masks["visual"] == "......"
    assert masks["text"] == masks["all"] == "xxxxxx"
    assert masks["last"] == ".....x"


@pytest.mark.parametrize(
    ("roles", "shift", "last"), [("...biiqa", 3, ".......x"), ("biiqa...", 0, "....x..."), (".biiqa..", 1, ".....x..")]
)
def test_padding_on_either_side_moves_the_masks_and_belongs_to_none(roles, shift, last):
    masks = masks_of(roles, [picture(1 + shift, 2 + shift)], answer_turn=1, bos=shift)
    assert masks["pad"] == "".join("x" if role == "." else "." for role in roles)
    assert masks["all"] == "".join("." if role == "." else "x" for role in roles)
    assert masks["last"] == last
    for name, unpadded in {
        "image": ".xx..",
        "text": "x..xx",
        "after_image": "...xx",
        "question": "...x.",
        "bos": "x....",
    }.items():
        assert masks[name] == "." * shift + unpadded + "." * (len(roles) - 5 - shift), name


def test_nothing_after_the_image_leaves_its_last_token_as_the_last():
    masks = masks_of("btii", [picture(2, 3)])
    assert masks["after_image"] == masks["question"] == "...."
    assert masks["last"] == "...x"


def test_every_named_mask_exists_and_no_other():
    assert set(masks_of("bi", [picture(1)])) == set(MASKS)


@st.composite
def batches(draw):
    """Rows of random roles with random padding on both sides."""
    width = draw(st.integers(2, 14))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        n_left = draw(st.integers(0, width - 1))
        n_real = draw(st.integers(1, width - n_left))
        roles = draw(st.lists(st.sampled_from("tivm"), min_size=n_real, max_size=n_real))
        rows.append("." * n_left + "".join(roles) + "." * (width - n_left - n_real))
    return rows


@given(batches(), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_image_video_marker_text_and_pad_partition_every_sequence(rows, turn):
    kinds = {"i": "image", "v": "video", "m": "marker"}
    spans = [[Span(kinds[role], (i,)) for i, role in enumerate(row) if role in kinds] for row in rows]
    real = torch.tensor([[role != "." for role in row] for row in rows])
    masks = annotate(spans, real, torch.zeros_like(real), [turn] * len(rows))
    assert torch.equal(sum(masks[name].int() for name in PARTITION), torch.ones_like(real).int())
    for row, roles in enumerate(rows):
        visual = [i for i, role in enumerate(roles) if role in "iv"]
        text = [i for i, role in enumerate(roles) if role == "t"]
        after = [i for i in text if visual and i > max(visual)]
        last = max(i for i, role in enumerate(roles) if role != ".")
        assert masks["after_image"][row].nonzero().flatten().tolist() == after
        assert masks["question"][row].nonzero().flatten().tolist() == [i for i in after if i <= last - turn]
        assert masks["last"][row].nonzero().flatten().tolist() == [last]


# ---------------------------------------------------------------------- asking a prompt


@pytest.fixture
def prompt():
    """Two rows of 9 tokens; the first has a base crop and a finer one of its only picture, the second two pictures."""
    whole, half = Box(0, 0, 40, 40), Box(0, 0, 20, 40)
    base = Span("image", (1,), 0, 0, (1, 1), whole)
    fine = Span("image", (2, 3), 0, 1, (2, 1), half)
    left, right = (Span("image", (2, 3), 0, 0, (1, 2), whole), Span("image", (5, 6), 1, 0, (2, 1), whole))
    spans = ((base, fine), (left, Span("marker", (4,), 0), right))
    real = torch.ones(2, 9, dtype=torch.bool)
    masks = annotate(spans, real, torch.zeros_like(real), [0, 0])
    tokens = (tuple("abcdefghi"),) * 2
    return Prompt({}, spans, ((), ()), tokens, masks)


def test_a_pixel_gives_the_token_of_the_finest_crop_that_holds_it(prompt):
    assert prompt.patch_at(5, 5) == 2
    assert prompt.patch_at(5, 35) == 3
    assert prompt.patch_at(30, 5) == 1
    assert prompt.patch_at(30, 5, row=1) == 3
    assert prompt.patch_at(30, 25, image=1, row=1) == 6


def test_a_box_gives_the_tokens_of_every_crop(prompt):
    assert prompt.positions_in_box((0, 0, 5, 5)) == (1, 2)
    assert prompt.positions_in_box((0, 0, 40, 40)) == (1, 2, 3)
    assert prompt.positions_in_box((0, 30, 40, 40), image=1, row=1) == (6,)
    assert prompt.positions_in_box((50, 50, 60, 60)) == ()


def test_a_token_gives_its_pixels(prompt):
    assert prompt.box(3) == (0, 20, 20, 40)
    assert prompt.box(3, row=1) == (20, 0, 40, 40)


def test_questions_without_an_answer_say_what_there_is(prompt):
    for ask, message in {
        (lambda: prompt.mask("imgae")): r"unknown mask 'imgae', did you mean 'image'\?\n  valid: image, video, marker",
        (lambda: prompt.patch_at(40, 0)): r"no visual token covers pixel \(40, 0\) of image 0\n.*\(0, 0, 40, 40\)",
        (lambda: prompt.patch_at(-1, 5)): r"no visual token covers pixel \(-1, 5\)",
        (lambda: prompt.patch_at(1, 1, image=2, row=1)): r"row 1 has no image 2: its images are \[0, 1\]",
        (lambda: prompt.patch_at(1, 1, row=2)): "row 2 is out of range: the prompt has rows 0 to 1",
        (
            lambda: prompt.box(0)
        ): "position 0 of row 0 is not a visual token\n  visual tokens of that row: 1 to 1, 2 to 3",
        (lambda: prompt.box(4, row=1)): "position 4 of row 1 is not a visual token\n.*2 to 3, 5 to 6",
        (lambda: prompt.box(1, row=-1)): "row -1 is out of range",
        (lambda: prompt.positions_in_box((5, 5, 5, 9))): r"with x0 < x1 and y0 < y1, given \(5, 5, 5, 9\)",
        (lambda: prompt.positions_in_box((9, 5, 5, 9))): r"given \(9, 5, 5, 9\)",
        (lambda: prompt.positions_in_box((1, 2, 3))): r"a box is \(x0, y0, x1, y1\) in pixels",
        (lambda: prompt.positions_in_box((1, 2, float("nan"), 4))): "x0 < x1",
    }.items():
        with pytest.raises(LensError, match=message):
            ask()


def test_a_prompt_prints_its_sequence_with_each_picture_as_one_block(prompt):
    assert str(prompt) == (
        "row 0: a [image 0: 1 tokens, 1 x 1, at 1 to 1] [image 0 tile 1: 2 tokens, 2 x 1, at 2 to 3] e f g h i\n"
        "row 1: a b [image 0: 2 tokens, 1 x 2, at 2 to 3] e [image 1: 2 tokens, 2 x 1, at 5 to 6] h i"
    )
    assert repr(prompt) == f"Prompt of 2 rows x 9 tokens\n{prompt}"
    assert len(prompt) == prompt.n_rows == 2
