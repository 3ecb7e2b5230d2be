"""VideoLLaMA 3's videos with its real processor: patches that look as in the frame before have no token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_lens.adapters.grid_thw import pieces
from lmm_lens.prompts.spans import Box
from tests.support.evidence import check_it_runs, picture
from tests.support.families import lens_of
from tests.support.families.grid_thw import check_bookkeeping, places

STILL = [picture(112, 84)] * 2
MOVING = [picture(112, 84, mark) for mark in (None, (56, 28, 112, 56), (56, 28, 112, 56), (0, 56, 112, 84))]


def outline(spans):
    return [(s.kind, s.positions, s.image, s.video, s.frame, s.grid) for s in spans]


def test_only_the_first_frame_of_a_film_has_all_its_tokens():
    lens = lens_of("video_llama_3")
    prompt = lens.prompt("What moves?", videos=[STILL, MOVING])
    check_bookkeeping(lens, prompt)
    check_it_runs(lens, prompt)
    boxes = {}
    for span in prompt.spans[0]:
        if span.kind == "video":
            boxes.setdefault((span.video, span.frame), []).append((span.grid, span.region))
    assert boxes == {
        (0, 0): [((3, 4), (0, 0, 112, 84))],
        (0, 1): [((1, 1), (0, 0, 28, 28))],  # the processor keeps one token of a frame without news
        (1, 0): [((3, 4), (0, 0, 112, 84))],
        (1, 1): [((1, 2), (56, 28, 112, 56))],
        (1, 2): [((1, 1), (0, 0, 28, 28))],
        (1, 3): [((1, 2), (56, 28, 112, 56)), ((1, 4), (0, 56, 112, 84))],
    }
    assert prompt.patch_at(80, 40, video=1, frame=1) in prompt.mask("video")[0].nonzero()


def test_time_stamps_between_and_before_frames_are_no_text():
    lens = lens_of("video_llama_3")
    prompt = lens.prompt("At Time 1.0s: what moves?", videos=[STILL, MOVING], images=picture(60, 60))
    text = prompt.inputs["input_ids"][0][prompt.mask("text")[0]]
    assert lens.processor.tokenizer.decode(text) == "<|user|>At Time 1.0s: what moves?<|assistant|>"
    marked = prompt.inputs["input_ids"][0][prompt.mask("marker")[0]]
    stamps = "Time 0.0s:,Time 1.0s:Time 0.0s:,Time 1.0s:,Time 2.0s:,Time 3.0s:"
    assert lens.processor.tokenizer.decode(marked) == stamps


def test_the_box_of_every_token_is_where_its_gradient_lies_in_its_frame():
    lens = lens_of("video_llama_3")
    inputs = lens.prompt("?", videos=[MOVING, STILL]).inputs
    prompt = lens.prompt(inputs=dict(inputs))
    tokens = prompt.mask("video")[0].nonzero().flatten().tolist()
    frame_of = {p: span.frame for span in prompt.spans[0] if span.kind == "video" for p in span.positions}
    for position, (video, frames, box) in zip(tokens, places(lens, "video", inputs), strict=True):
        assert prompt.box(position) == box
        assert frames == {frame_of[position]}
        assert prompt.positions_in_box(box, video=video, frame=frame_of[position]) == (position,)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_gives_every_row_the_spans_it_has_alone(side, monkeypatch):
    lens = lens_of("video_llama_3")
    monkeypatch.setattr(lens.processor.tokenizer, "padding_side", side)
    texts, films = ["What moves here?", "Nothing", "And here?"], [[MOVING, STILL], None, [MOVING[:2]]]
    prompt = lens.prompt(texts, videos=films)
    check_bookkeeping(lens, prompt)
    check_it_runs(lens, prompt)
    for row, (text, own) in enumerate(zip(texts, films, strict=True)):
        pad = int(prompt.mask("pad")[row].sum()) if side == "left" else 0
        moved = [(kind, tuple(p - pad for p in at), *rest) for kind, at, *rest in outline(prompt.spans[row])]
        assert moved == outline(lens.prompt(text, videos=own).spans[0])


def test_without_a_compression_mask_every_patch_has_its_token():
    lens = lens_of("video_llama_3")
    inputs = dict(lens.prompt("?", videos=[STILL], images=picture(60, 90)).inputs)
    ids, video = inputs["input_ids"][0], lens.processor.video_token_id
    last = int((ids == video).nonzero()[-1])
    ids = torch.cat([ids[:last], torch.full((12,), video), ids[last + 1 :]])[None]
    del inputs["video_compression_mask"]
    prompt = lens.prompt(inputs={**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert [span.grid for span in prompt.spans[0] if span.kind == "video"] == [(3, 4), (3, 4)]
    check_it_runs(lens, prompt)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_pieces_hold_every_cell_once_in_its_place(rows, columns, data):
    cells = sorted(data.draw(st.sets(st.integers(0, rows * columns - 1), min_size=1)))
    positions = tuple(range(100, 100 + len(cells)))
    held = {}
    for part, (n_rows, n_columns), box in pieces(positions, cells, (rows, columns), Box(0, 0, columns, rows)):
        assert (box.x1 - box.x0, box.y1 - box.y0) == (n_columns, n_rows)
        inside = [(y, x) for y in range(int(box.y0), int(box.y1)) for x in range(int(box.x0), int(box.x1))]
        held |= dict(zip(part, inside, strict=True))
    assert held == {100 + i: divmod(cell, columns) for i, cell in enumerate(cells)}
