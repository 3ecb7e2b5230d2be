"""The digest of one tensor: every bit of it counts, and nothing of where and how it lies."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_lens.backends.identity import tensors
from lmm_lens.backends.identity.tensors import digest_of
from lmm_lens.errors import ModelError
from tests.support import pretend
from tests.support.bits import of_bits

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
    torch.float4_e2m1fn_x2,
]
SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4), (0,), (3, 0), (1, 1, 1)]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_data_type_and_shape_has_a_digest_that_a_flipped_bit_changes(dtype):
    seen = set()
    for shape in SHAPES:
        tensor = of_bits(shape, dtype)
        before = digest_of(tensor)
        assert before == digest_of(of_bits(shape, dtype))
        assert len(before) == 32
        seen.add(before)
        if tensor.numel():
            bits = tensor.reshape(-1).view(torch.uint8)
            bits[-1] ^= 1
            assert digest_of(tensor) != before
            bits[-1] ^= 1
        assert digest_of(tensor) == before
    assert len(seen) == len(SHAPES)


def test_the_same_bytes_of_another_type_or_shape_are_another_tensor():
    tensor = of_bits((4, 6), torch.float32)
    others = [
        tensor.view(torch.int32),
        tensor.view(torch.float16),
        tensor.reshape(6, 4),
        tensor.reshape(24),
        tensor[None],
    ]
    assert len({digest_of(x) for x in [tensor, *others]}) == 6


def test_zeros_of_both_signs_and_every_nan_are_told_apart():
    values = torch.tensor([0, -(2**31), 0x7FC00000, 0x7FC00001, 0x7F800000], dtype=torch.int32).view(torch.float32)
    assert len({digest_of(value) for value in values}) == 5


@pytest.fixture(params=[1 << 25, 64, 1], ids=["one piece", "pieces", "rows"])
def piece(request, monkeypatch):
    monkeypatch.setattr(tensors, "PIECE", request.param)


@pytest.mark.usefixtures("piece")
def test_it_does_not_hang_on_the_layout_in_memory():
    base = torch.randn(6, 10, 4)
    for tensor in (
        base.transpose(0, 2),
        base[1:, ::3],
        base[:, 2],
        base[2, 3, 1:],
        base[:1].transpose(1, 2),
        base.permute(1, 0, 2)[::2],
        base[0, :, None].expand(10, 7, 4),
        base[0, 0, 0].expand(5),
        torch.as_strided(base, (3, 4), (1, 2)),
        base.to(memory_format=torch.contiguous_format)[1],
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(3, 4, dtype=torch.complex64).conj(),
        torch.randn(3, 4, dtype=torch.complex64).mH,
        torch.randn(3, dtype=torch.complex64).conj().imag,
        torch.nn.Parameter(base).transpose(0, 1),
    ):
        assert digest_of(tensor) == digest_of(torch.tensor(tensor.tolist(), dtype=tensor.dtype).reshape(tensor.shape))


@pytest.mark.usefixtures("piece")
def test_it_is_the_same_on_another_device():
    for tensor in (of_bits((6, 10, 4), torch.float32), of_bits((33,), torch.bfloat16), of_bits((), torch.int64)):
        there = tensor.to(pretend.DEVICE)
        assert there.device.type == pretend.NAME
        assert digest_of(there) == digest_of(tensor)
        if tensor.ndim > 1:
            assert digest_of(there.transpose(0, 2)) == digest_of(tensor.transpose(0, 2))
    assert digest_of(torch.zeros(2, 0).to(pretend.DEVICE)) == digest_of(torch.zeros(2, 0))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_are_told_by_their_places_and_values():
    dense = torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    moved, changed = dense.roll(1, 1), dense * 2
    for layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
        assert len({digest_of(x.to_sparse(layout=layout)) for x in (dense, moved, changed)}) == 3
        assert digest_of(dense.to_sparse(layout=layout)) == digest_of(dense.clone().to_sparse(layout=layout))
    twice = torch.sparse_coo_tensor([[0, 1, 0], [1, 0, 1]], [1.5, 3.0, 0.5], (2, 3))
    assert digest_of(twice) == digest_of(dense.to_sparse())


@pytest.mark.filterwarnings("ignore:.*[Qq]uantiz:DeprecationWarning", "ignore:.*[Qq]uantiz:UserWarning")
def test_torchs_own_quantised_tensors_are_told_by_their_values_and_scales():
    values = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    kinds = ((0.1, 0), (0.2, 0), (0.1, 1))
    by_tensor = [torch.quantize_per_tensor(values, scale, zero, torch.qint8) for scale, zero in kinds]
    scales = torch.tensor([0.1, 0.2]), torch.tensor([0.1, 0.3])
    by_channel = [torch.quantize_per_channel(values, scale, torch.zeros(2), 0, torch.qint8) for scale in scales]
    assert len({digest_of(x) for x in by_tensor + by_channel}) == 5
    assert digest_of(by_tensor[0]) == digest_of(torch.quantize_per_tensor(values, 0.1, 0, torch.qint8))


def test_a_tensor_without_values_has_no_digest():
    with pytest.raises(ModelError, match="on the meta device has no values"):
        digest_of(torch.zeros(3, device="meta"))


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 3000), st.data())
def test_any_one_byte_of_any_length_counts(n, data):
    tensor = of_bits((n,), torch.uint8, seed=n)
    before = digest_of(tensor)
    tensor[data.draw(st.integers(0, n - 1))] ^= data.draw(st.integers(1, 255))
    assert digest_of(tensor) != before
