"""What of a GGUF file is read without its package: names, the order of rows, and what stands before the tensors."""

import mmap
import struct

import numpy as np
import pytest

from lmm_lens.bundled.emoji.weights import ARRAY, STRING, Cursor, read_weights, renamed, unpaired


def text(word: str) -> bytes:
    return struct.pack("<Q", len(word.encode())) + word.encode()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("blk.7.attn_q.weight", "model.layers.7.self_attn.q_proj.weight"),
        ("blk.29.ffn_down.weight", "model.layers.29.mlp.down_proj.weight"),
        ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
    ],
)
def test_names_are_those_of_transformers(given, expected):
    assert renamed(given) == expected


def test_rows_of_a_head_that_were_interleaved_are_two_halves_again():
    """Two heads of four rows: 0 and 2 were the first half, 1 and 3 the second."""
    rows = np.arange(8)[:, None] * np.ones((1, 3))
    assert unpaired(rows, heads=2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_values_of_every_kind_are_stepped_over(tmp_path):
    values = [
        (4, struct.pack("<I", 7)),
        (6, struct.pack("<f", 0.5)),
        (7, b"\x01"),
        (STRING, text("words — of any kind")),
        (ARRAY, struct.pack("<IQ", 5, 3) + struct.pack("<iii", 1, 2, 3)),
        (ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("bc")),
        (12, struct.pack("<d", 1.0)),
    ]
    file = tmp_path / "values"
    file.write_bytes(b"".join(value for _, value in values) + text("the end"))
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = Cursor(data)
        for kind, _ in values:
            cursor.skip(kind)
        assert cursor.text() == "the end"


def test_another_file_is_refused(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"PK" * 20)
    with pytest.raises(ValueError, match=r"weights is no GGUF file"):
        read_weights(file, 9, 3)
