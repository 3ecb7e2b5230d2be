"""A pattern that is edited a few rows and heads at a time, over the keys that these see, is edited as a whole one."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lmm_lens import EditPattern, Knockout, KnockoutSinks, ScaleAttention
from lmm_lens.core import tiles
from lmm_lens.core.attention import AttentionCall, FusedAttention
from lmm_lens.core.course import Stop
from lmm_lens.core.rows import Chunk, Rows
from lmm_lens.core.taps import Tap
from lmm_lens.core.whole_pattern import WholePattern
from tests.support.cases import case, close, edits_of
from tests.support.nnsight_lenses import edit_of, sinks

KINDS = ["llava", "gemma3", "paligemma2", "qwen2_5_vl"]  # plain, sliding window, soft cap, three-axis positions
EDITS = {
    "var": lambda name: edit_of(name, "var"),
    "its control": lambda name: edit_of(name, "var_control"),
    "knockout of all rows": lambda name: Knockout("image", "all"),
    "knockout in heads that share keys": lambda name: Knockout("image", "after_image", heads=[3, 0, 1]),
    "sinks": lambda name: KnockoutSinks(**sinks(name)),
    "scaled": lambda name: ScaleAttention("text", "all", factor=2.0, renormalise=False),
    "several": lambda name: (edit_of(name, "var"), ScaleAttention("text", "all", factor=2.0)),
}


def call_of(n_heads: int, n_kv: int, n_tokens: int, mask: Tensor | None = None, batch: int = 1) -> AttentionCall:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(batch, n, n_tokens, 4, generator=generator) for n in (n_heads, n_kv, n_kv))
    return AttentionCall(query, key, value, mask, 0.5, True)


def rows_of(start: int, stop: int, batch: int = 1) -> Chunk:
    mask = torch.zeros(batch, stop, dtype=torch.bool)
    mask[:, start:] = True
    chunk = Chunk.of(mask, 0)
    assert chunk is not None
    return chunk


def tap_of(heads: tuple[int, ...] | None = None, apart: bool = True) -> Tap:
    rows = Rows("all", torch.ones(1, 1, dtype=torch.bool))
    return Tap("pattern", 0, rows, lambda x, context: x, heads, edits=True, chooses=True, adds=True, apart=apart)


def slow_row(call: AttentionCall, batch: int, head: int, row: int) -> list[float]:
    """A row of the causal softmax, number by number."""
    kv = head * call.key.shape[1] // call.query.shape[1]
    seen = [float(call.query[batch, head, row] @ call.key[batch, kv, key]) * call.scaling for key in range(row + 1)]
    weights = torch.tensor(seen, dtype=torch.float64).exp()
    return (weights / weights.sum()).tolist()


@pytest.mark.parametrize(("name", "padded"), [*((name, False) for name in KINDS), ("llava", True)])
@pytest.mark.parametrize("edit", EDITS)
def test_tiles_of_any_size_give_the_same_edits(name, edit, padded, monkeypatch):
    family, edits = case(name), EDITS[edit](name)
    edits = edits if isinstance(edits, tuple) else (edits,)
    inputs = family.pair("left")[1] if padded else family.inputs
    prompt = family.lens.prompt(inputs=inputs)
    whole = family.lens.run(prompt, edits)
    assert edits_of(whole)[0]
    for elements, rows in ((1, 1), (150, 2)):
        monkeypatch.setattr(tiles, "TILE_ELEMENTS", elements)
        monkeypatch.setattr(tiles, "TILE_ROWS", rows)
        small = family.lens.run(prompt, edits)
        close(small.logits, whole.logits, 2e-6)
        assert edits_of(small) == edits_of(whole)
        for moved, expected in zip(small.reports, whole.reports, strict=True):
            assert moved.moved == pytest.approx(expected.moved, rel=1e-5)


@pytest.mark.parametrize("heads", [None, (0, 1, 2, 3), (4, 5), (1, 2), (3,), (0, 5, 1)])
@pytest.mark.parametrize("n_kv", [1, 2, 3, 6])
def test_the_keys_up_to_the_last_row_are_all_that_its_rows_see(heads, n_kv):
    call, rows = call_of(6, n_kv, 11, batch=2), rows_of(3, 7, 2)
    assert call.reach(rows) == 7
    pattern = call.probabilities(rows, heads, 7)
    chosen = range(6) if heads is None else heads
    for batch in range(2):
        for at, head in enumerate(chosen):
            for entry, row in enumerate(range(3, 7)):
                expected = slow_row(call, batch, head, row)
                assert pattern[batch, at, entry].tolist() == pytest.approx(expected + [0] * (6 - row), abs=1e-6)
    close(call.probabilities(rows, heads), torch.nn.functional.pad(pattern, (0, 4)), 1e-7)
    read = call.read_values(pattern, heads)
    for at, head in enumerate(chosen):
        close(read[:, :, at], pattern[:, at] @ call.value[:, head * n_kv // 6, :7], 1e-6)


def test_a_mask_may_show_rows_what_is_behind_them_so_all_keys_are_theirs():
    seen = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(1)) > 0.4
    seen[..., 0] = True
    call, rows = call_of(2, 2, 9, seen), rows_of(2, 6)
    assert call.reach(rows) == 9
    scores = (call.query[:, :, 2:6] * 0.5) @ call.key.transpose(-1, -2)
    hidden = ~seen[:, :, 2:6].expand_as(scores)
    assert (call.probabilities(rows)[hidden] == 0).all()
    assert torch.equal(call.visible(rows), ~hidden)
    close(call.probabilities(rows), scores.masked_fill(hidden, -torch.inf).softmax(-1), 1e-6)
    assert torch.equal(call.scores(rows)[hidden], torch.full([int(hidden.sum())], torch.finfo(torch.float32).min))


def test_a_token_that_is_not_a_number_stays_out_of_rows_before_it():
    call = call_of(2, 2, 9)
    call.key[:, :, 5] = torch.nan
    for rows in (rows_of(3, 8), Chunk(torch.tensor([[3, 4, 5, 7]]), torch.ones(1, 4, dtype=torch.bool), 4, 0, None)):
        is_number = ~call.probabilities(rows).isnan().any(-1)
        assert is_number[0, 0].tolist() == [row < 5 for row in rows.index[0].tolist()]


@pytest.mark.parametrize("n_heads", [4, 8, 32, 128])
@pytest.mark.parametrize("n_kv", [2, 4])
@pytest.mark.parametrize(("heads", "elements"), [(None, 1200), (None, 2000), ((3, 0, 1), 1200)])
def test_what_is_held_does_not_grow_with_heads_and_every_row_comes_once(n_heads, n_kv, heads, elements, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", elements)
    monkeypatch.setattr(tiles, "TILE_ROWS", 8)
    batch, n_tokens, first = 2, 40, 17
    call = call_of(n_heads, n_kv, n_tokens, batch=batch)
    fused = FusedAttention(call, torch.zeros(batch, n_tokens, n_heads, 4))
    seen: list[tuple[int, int]] = []
    for tile in tiles.tiles(Stop([tap_of(heads)]), rows_of(first, n_tokens, batch), fused):
        chosen = tuple(range(n_heads)) if tile.heads is None else tile.heads
        pattern = tile.seen.probabilities(tile.rows, tile.heads)
        assert pattern.shape == (batch, len(chosen), tile.rows.width, int(tile.rows.index.max()) + 1)
        assert pattern.numel() <= elements
        seen += [(head, int(row)) for head in chosen for row in tile.rows.index[0]]
        if heads is None and len(chosen) > 1:
            group = n_heads // n_kv
            kv = sorted({head // group for head in chosen})
            assert len(kv) == 1 or len(chosen) == len(kv) * group  # keys are shared by whole groups
    assert sorted(seen) == [(head, row) for head in sorted(heads or range(n_heads)) for row in range(first, n_tokens)]


def widths(given: Iterator[tiles.Tile]) -> list[tuple[object, int]]:
    return [(tile.heads, tile.rows.width) for tile in given]


def test_who_wants_all_heads_gets_them_and_so_does_one_row_and_a_pattern_that_is_there(monkeypatch):
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", 1)
    call = call_of(4, 4, 10)
    fused, rows = FusedAttention(call, torch.zeros(1, 10, 4, 4)), rows_of(2, 10)
    assert widths(tiles.tiles(Stop([tap_of(apart=False)]), rows, fused)) == [(None, 8)]
    assert widths(tiles.tiles(Stop([tap_of()]), rows_of(9, 10), fused)) == [(None, 1)]
    assert widths(tiles.tiles(Stop([tap_of()]), rows, WholePattern(torch.rand(1, 4, 10, 10), None))) == [(None, 8)]
    assert widths(tiles.tiles(Stop([tap_of()]), rows, fused)) == [((head,), 8) for head in range(4)]


def test_rows_are_cut_so_that_they_fit(monkeypatch):
    monkeypatch.setattr(tiles, "CHUNK_ELEMENTS", 100)
    stop, whole = Stop([tap_of(apart=False)]), WholePattern(torch.rand(1, 3, 10, 10), None)
    cut = [(tile.rows.window, tile.entries) for tile in tiles.tiles(stop, rows_of(2, 10), whole)]
    assert cut == [(slice(2, 5), slice(0, 3)), (slice(5, 8), slice(3, 6)), (slice(8, 10), slice(6, 8))]
    few = rows_of(2, 5)
    assert [tile.rows for tile in tiles.tiles(stop, few, whole)] == [few]


def test_several_edits_that_all_take_heads_apart_are_tiled_and_others_are_not():
    one, other, whole = tap_of(), tap_of(), tap_of(apart=False)
    assert Stop([one, other]).apart
    assert not Stop([one, whole]).apart
    assert not Stop([one, tap_of((0, 1))]).apart  # the second sees two of all heads
    assert Stop([tap_of((0, 1)), tap_of((0, 1))]).apart


def test_a_function_of_ones_own_sees_all_heads_and_keys_at_once(monkeypatch):
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", 1)
    family, shapes = case("llava"), []

    def across(pattern, keys):
        shapes.append(tuple(pattern.shape))
        return pattern.mean(1, keepdim=True).expand_as(pattern)

    family.lens.run(family.prompt, [EditPattern(across, rows="all", layers=[1])])
    assert shapes == [(1, 4, family.prompt.n_tokens, family.prompt.n_tokens)]
