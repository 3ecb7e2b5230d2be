"""Weights on a GPU are read again where their bits changed, and only there; here the CPU stands for one."""

import pytest
import torch

from lmm_lens.backends.identity import marks
from lmm_lens.backends.identity.marks import digests_of, marks_of
from lmm_lens.backends.identity.modules import parts_of
from lmm_lens.backends.identity.tensors import digest_of
from lmm_lens.backends.identity.weights import weights_of
from lmm_lens.bundled import shapes
from tests.support.bits import of_bits

MARKABLE = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2),
]


@pytest.fixture
def marking(monkeypatch):
    monkeypatch.setattr(marks, "DEVICES", {"cpu"})
    monkeypatch.setattr(marks, "LEAST", 1)


class Reader:
    """Counts what is read."""

    def __init__(self, *tensors):
        self.tensors, self.read = tensors, []

    def digests(self):
        self.read.clear()
        return digests_of(self.tensors, self.one)

    def one(self, index):
        self.read.append(index)
        return digest_of(self.tensors[index])


@pytest.mark.parametrize("dtype", MARKABLE, ids=str)
@pytest.mark.parametrize("shape", [(), (5,), (3, 5), (2, 3, 4)], ids=str)
def test_any_flipped_bit_is_another_mark(dtype, shape):
    tensor = of_bits(shape, dtype)
    bits = tensor.reshape(-1).view(torch.uint8)
    seen = {marks_of([tensor])[0]}
    for at in range(len(bits)):
        for bit in (0,) if dtype == torch.bool else (0, 7):
            bits[at] ^= 1 << bit
            seen.add(marks_of([tensor])[0])
            bits[at] ^= 1 << bit
    assert len(seen) == 1 + len(bits) * (1 if dtype == torch.bool else 2)
    assert marks_of([tensor])[0] in seen


def swapped(tensor, dim):
    return tensor.index_select(dim, torch.tensor([1, 0, *range(2, tensor.shape[dim])]))


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.data[3, 4].add_(1),
        lambda w: w.data.copy_(swapped(w.data, 0)),
        lambda w: w.data.copy_(swapped(w.data, 1)),
        lambda w: w.data[:, 8:16].zero_(),
        lambda w: w.data.neg_(),
        lambda w: w.data.copy_(w.data.flip(0, 1)),
        lambda w: setattr(w, "data", w.data + 1),
    ],
    ids=["an entry", "two rows", "two columns", "a head", "the sign", "turned", "exchanged"],
)
def test_a_weight_is_read_again_when_it_was_changed_behind_autograds_back(marking, change):
    weight, other = (torch.nn.Parameter(torch.randn(24, 32)) for _ in range(2))
    reader = Reader(weight, other)
    before = reader.digests()
    assert reader.read == [0, 1]
    assert reader.digests() == before
    assert reader.read == []
    change(weight)
    after = reader.digests()
    assert reader.read == [0]
    assert after == [digest_of(weight), before[1]]
    assert after[0] != before[0]


def test_what_cannot_be_marked_is_read_each_time(marking):
    turned, complex_, given = torch.randn(4, 6).T, torch.randn(3, 4, dtype=torch.complex64), torch.randn(3, 4)
    reader = Reader(turned, complex_, None)
    reader.one = lambda index: reader.read.append(index) or digest_of([turned, complex_, given][index])
    for _ in range(2):
        assert reader.digests() == [digest_of(each) for each in (turned, complex_, given)]
        assert reader.read == [0, 1, 2]


def test_of_the_cpu_everything_is_read_and_small_things_of_anywhere(monkeypatch):
    reader = Reader(torch.randn(200, 200))
    assert reader.digests() == reader.digests()
    assert reader.read == [0]
    monkeypatch.setattr(marks, "DEVICES", {"cpu"})
    small = Reader(torch.randn(8, 8))
    assert small.digests() == small.digests()
    assert small.read == [0]


def test_a_models_weights_have_the_same_digests_marked_or_not(monkeypatch):
    model, _ = shapes.load()
    parts = parts_of(model)
    expected = weights_of(model, parts)
    monkeypatch.setattr(marks, "DEVICES", {"cpu"})
    assert weights_of(model, parts) == weights_of(model, parts) == expected
    model.model.language_model.layers[2].self_attn.o_proj.weight.data[:, 32:64] = 0
    changed = weights_of(model, parts)
    assert {name for name in expected if changed[name] != expected[name]} == {
        "model.language_model.layers.2.self_attn.o_proj.weight"
    }
    monkeypatch.setattr(marks, "DEVICES", set())
    assert weights_of(model, parts) == changed


def test_a_mark_is_the_same_in_one_piece_or_many(monkeypatch):
    tensor = torch.randn(40, 30)
    whole = marks_of([tensor])
    monkeypatch.setattr(marks, "PIECE", 100)
    assert marks_of([tensor]) == whole
