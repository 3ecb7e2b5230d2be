"""Row scopes: which rows of which pass, in prefill, in decoding, and in ragged batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_lens import LensError, Span
from lmm_lens.core.rows import Chunk, JoinedRows, Rows
from lmm_lens.errors import HookError
from lmm_lens.prompts.prompt import Prompt, annotate
from lmm_lens.prompts.rows import bind_rows

CPU = torch.device("cpu")


def bools(*rows: str) -> torch.Tensor:
    return torch.tensor([[flag == "x" for flag in row] for row in rows])


def drawn(mask: torch.Tensor) -> list[str]:
    return ["".join("x" if flag else "." for flag in row) for row in mask]


@pytest.fixture
def prompt():
    """Row 0: pad, b, image, image, t, t. Row 1: text only."""
    spans = ((Span("image", (2, 3), 0),), ())
    real, bos = bools(".xxxxx", "xxxxxx"), bools(".x....", "x.....")
    return Prompt({}, spans, ((), ()), (("t",) * 6,) * 2, annotate(spans, real, bos, [1, 1]))


@pytest.mark.parametrize(
    ("scope", "prefill", "step"),
    [
        ("all", [".xxxxx", "xxxxxx"], ["x", "x"]),
        ("text", [".x..xx", "xxxxxx"], ["x", "x"]),
        ("image", ["..xx..", "......"], [".", "."]),
        ("after_image", ["....xx", "......"], ["x", "."]),  # nothing is after the image where there is none
        ("question", ["....x.", "......"], [".", "."]),
        ("last", [".....x", ".....x"], [".", "."]),
        ("bos", [".x....", "x....."], [".", "."]),
        ("generating", [".....x", ".....x"], ["x", "x"]),
        ("answer", ["......", "......"], ["x", "x"]),
    ],
)
def test_a_named_scope_selects_its_rows_in_the_prefill_and_in_the_first_step(prompt, scope, prefill, step):
    rows = bind_rows(scope, prompt)
    assert drawn(rows.mask(0, 6)) == prefill
    assert drawn(rows.mask(6, 1)) == step
    assert rows.label == scope
    assert rows.reaches()


def test_the_answer_row_is_the_first_generated_token_alone(prompt):
    rows = bind_rows("answer", prompt)
    assert drawn(rows.mask(7, 1)) == [".", "."]
    assert drawn(rows.mask(0, 9)) == ["......x.."] * 2  # without a cache, each pass is the whole sequence
    assert drawn(bind_rows("after_image", prompt).mask(0, 8)) == ["....xxxx", "........"]
    assert drawn(bind_rows("last", prompt).mask(0, 8)) == [".....x.."] * 2


def test_a_pass_over_part_of_the_prompt_gets_its_part(prompt):
    assert drawn(bind_rows("image", prompt).mask(3, 2)) == ["x.", ".."]
    assert drawn(bind_rows("all", prompt).mask(4, 4)) == ["xxxx", "xxxx"]


def test_positions_hold_for_every_batch_row_and_masks_for_their_own(prompt):
    for positions in ([1, 4], (4, 1), torch.tensor([1, 4])):
        assert drawn(bind_rows(positions, prompt).mask(0, 6)) == [".x..x.", ".x..x."]
    mask = bools("x.....", ".....x")
    assert drawn(bind_rows(mask, prompt).mask(0, 6)) == ["x.....", ".....x"]
    assert drawn(bind_rows(mask, prompt).mask(6, 1)) == [".", "."]


def test_a_scope_that_selects_nothing_says_so(prompt):
    assert not bind_rows("video", prompt).reaches()
    assert not bind_rows([], prompt).reaches()
    assert not bind_rows(torch.zeros(2, 6, dtype=torch.bool), prompt).reaches()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("afterimage", "unknown row scope 'afterimage', did you mean 'after_image'\\?\n  valid: image, .*answer"),
        ([3, 6], r"positions \[6\] lie outside the prompt, which has positions 0 to 5"),
        ([-1], r"positions \[-1\] lie outside the prompt"),
        (torch.ones(1, 6, dtype=torch.bool), r"must be Bool\[batch, position\] = \(2, 6\), given \(1, 6\)"),
        (torch.ones(6, dtype=torch.bool), r"= \(2, 6\), given \(6,\)"),
    ],
)
def test_a_scope_that_does_not_exist_is_refused(prompt, rows, message):
    with pytest.raises(LensError, match=message):
        bind_rows(rows, prompt)


@pytest.mark.parametrize("rows", [[True, False], [False] * 6])
def test_a_list_of_booleans_is_not_mistaken_for_positions(prompt, rows):
    with pytest.raises(LensError, match="Bool"):
        bind_rows(rows, prompt)


# ---------------------------------------------------------------------- the selected rows of a pass


def test_a_ragged_selection_is_padded():
    chunk = Chunk.of(bools(".x.x", "..x."), first=10)
    assert chunk.valid.tolist() == [[True, True], [True, False]]
    assert chunk.positions[0].tolist() == [11, 13]
    assert chunk.positions[1, 0] == 12
    assert chunk.count == 3
    assert chunk.window is None
    assert Chunk.of(bools("....", "...."), 0) is None


def test_the_same_run_in_every_row_is_a_slice():
    assert Chunk.of(bools("..xx", "..xx"), 0).window == slice(2, 4)
    assert Chunk.of(bools("..xx", ".xx."), 0).window is None
    assert Chunk.of(bools("x.xx"), 0).window is None


def test_what_is_put_back_leaves_padded_entries_alone():
    chunk = Chunk.of(bools(".x.x", "..x."), 0)
    x = torch.arange(8.0).reshape(2, 4)
    chunk.put(x, torch.full((2, 2), -1.0))
    assert x.tolist() == [[0, -1, 2, -1], [4, 5, -1, 7]]


masks = st.integers(1, 3).flatmap(
    lambda batch: st.integers(1, 9).flatmap(
        lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=batch, max_size=batch)
    )
)


@given(masks, st.integers(0, 2))
@settings(max_examples=150, deadline=None)
def test_gathered_rows_are_those_of_the_mask_and_go_back_where_they_came_from(mask, dim):
    mask = torch.tensor(mask)
    chunk = Chunk.of(mask, 0)
    if chunk is None:
        assert not mask.any()
        return
    assert chunk.count == int(mask.sum())
    batch, width = mask.shape
    x = torch.arange(float(batch * width * 6)).reshape(batch, width, 2, 3)
    rows = chunk.gather(x)
    for row in range(batch):
        assert torch.equal(rows[row][chunk.valid[row]], x[row][mask[row]])
    inside = chunk.gather(x.movedim(1, 1 + dim), dim=1 + dim)
    assert torch.equal(inside.movedim(1 + dim, 1), rows)
    back = torch.zeros_like(x)
    chunk.put(back, rows)
    assert torch.equal(back, x * mask[:, :, None, None])


@given(masks, st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_the_parts_of_a_selection_make_up_the_whole(mask, step):
    mask = torch.tensor(mask)
    chunk = Chunk.of(mask, 0)
    if chunk is None:
        return
    x = torch.arange(float(mask.numel())).reshape(*mask.shape, 1)
    starts = range(0, chunk.index.shape[1], step)
    parts = [chunk.part(start, start + step) for start in starts]
    assert torch.equal(torch.cat([part.gather(x) for part in parts], 1), chunk.gather(x))
    assert torch.equal(torch.cat([part.valid for part in parts], 1), chunk.valid)


@given(masks, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_joined_scopes_share_their_rows_and_each_finds_its_own(mask, random):
    first = torch.tensor(mask)
    others = [torch.tensor([[random.random() < p for _ in row] for row in mask]) for p in (0.3, 0.7, 0.0)]
    scopes = [Rows("", own) for own in (first, *others)]
    joined = JoinedRows.of(scopes, 0, first.shape[1], CPU)
    union = torch.stack([scope.prompt for scope in scopes]).any(0)
    if joined is None:
        assert not union.any()
        return
    assert joined.rows.count == int(union.sum())
    x = torch.arange(float(first.numel())).reshape(*first.shape, 1)
    shared = joined.rows.gather(x)
    for scope, member, pick in zip(scopes, joined.members, joined.picks, strict=True):
        entries = joined.rows.valid if member is None else member
        for row in range(len(first)):
            assert torch.equal(shared[row][entries[row]], x[row][scope.prompt[row]])
        if pick is not None:
            alone = Chunk.of(scope.prompt, 0)
            assert torch.equal(pick.gather(shared)[alone.valid], alone.gather(x)[alone.valid])
        else:
            assert torch.equal(scope.prompt, union) or not scope.prompt.any()


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("step", [0, 1, 2, 5])
@pytest.mark.parametrize("ranges", [[(0, None)], [(1, 3)], [(0, 0)], [(0, None), (1, 3)], [(0, 0), (2, None), (0, 2)]])
def test_a_generated_token_is_joined_as_by_masks(ranges, step, n_rows):
    """The short way of a decoding step gives what the masks give; nobody having ended is said in two ways."""
    prompt = torch.ones(n_rows, 4, dtype=torch.bool)
    scopes = [Rows(str(i), prompt, each) for i, each in enumerate(ranges)]
    short = JoinedRows.of(scopes, 4 + step, 1, CPU)
    slow = JoinedRows.of(scopes, 4 + step, 1, CPU, torch.zeros(n_rows, dtype=torch.bool))
    if slow is None:
        assert short is None
        return
    for one, other in zip((short.rows, *short.own, *short.picks), (slow.rows, *slow.own, *slow.picks), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.equal(one.index, other.index)
            assert torch.equal(one.valid, other.valid)
            assert (one.count, one.first, one.window) == (other.count, other.first, other.window)
    for one, other in zip(short.members, slow.members, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_positions_that_are_padding_in_a_row_are_refused_and_a_mask_says_each_rows_own(prompt):
    with pytest.raises(HookError) as caught:
        bind_rows([0, 4], prompt)
    assert str(caught.value) == (
        "positions hold for every batch row, and position 0 is padding in row 0\n"
        "  give each row its own: a mask name, or a mask Bool[batch, position]"
    )
    assert drawn(bind_rows("pad", prompt).mask(0, 6)) == ["x.....", "......"]
