"""Tensors are packed without loss."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmm_lens.core.packing import copies_in, pack, unpack

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SHAPES = [(1, 5000), (4, 3, 40, 40), (2, 64, 64), (5000,), (6, 1000), (3, 7), (), (0, 5), (1, 70000)]
ODD = [0.0, -0.0, float("nan"), float("inf"), float("-inf"), 5e-324, 6e-8]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(x: Tensor, y: Tensor) -> bool:
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    if not x.is_floating_point():
        return torch.equal(x, y)
    bits = BITS[x.element_size()]
    return torch.equal(x.contiguous().view(bits), y.contiguous().view(bits))


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Above and below the size that is packed, of few or many values, some of them odd, some of it copies."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(
        st.sampled_from([(1, 5000), (4, 3, 40, 40), (2, 64, 64), (5000,), (6, 1000), (3, 7), (), (0, 5), (1, 70000)])
    )
    n_values = draw(st.sampled_from([1, 2, 200, 256, 257, 40000]))
    table = torch.randn(n_values, generator=generator, dtype=torch.float64)
    odd = draw(
        st.lists(st.sampled_from([0.0, -0.0, float("nan"), float("inf"), float("-inf"), 5e-324, 6e-8]), max_size=4)
    )
    table = torch.cat([table, torch.tensor(odd, dtype=torch.float64)]).to(dtype)
    x = table[torch.randint(len(table), shape, generator=generator)]
    copies = draw(st.sampled_from([1, 1, 2, 3]))
    if copies > 1 and x.ndim:
        x = torch.cat([x] * copies)
    return x.transpose(-1, -2) if x.ndim > 2 and draw(st.booleans()) else x


@settings(max_examples=60, deadline=None)
@given(tensors())
def test_nothing_is_lost(x: Tensor) -> None:
    before = x.clone()
    assert same_bits(unpack(pack(x)), x)
    assert same_bits(x, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("odd", [float("nan"), -0.0, float("inf"), 5e-324])
def test_one_odd_value_among_many_copies(dtype: torch.dtype, odd: float) -> None:
    x = torch.zeros(4, 3, 40, 40, dtype=dtype)
    for at in ((0, 0, 0, 0), (3, 2, 39, 39)):
        changed = x.clone()
        changed[at] = odd
        assert same_bits(unpack(pack(changed)), changed)
    everywhere = torch.full_like(x, odd)
    assert same_bits(unpack(pack(everywhere)), everywhere)


def test_nan_payloads_survive() -> None:
    bits = torch.arange(0x7FC00000, 0x7FC00000 + 5000, dtype=torch.int32)
    x = bits.view(torch.float32).reshape(2, 2500)
    assert same_bits(unpack(pack(x)), x)


@pytest.mark.parametrize(
    "x",
    [torch.arange(9000).reshape(3, 3000), torch.ones(5000, dtype=torch.bool), [1, 2], None, "packed", (), 3.5],
)
def test_what_is_no_float_tensor_stays_what_it_is(x: object) -> None:
    result = unpack(pack(x))
    assert type(result) is type(x)
    assert same_bits(result, x) if isinstance(x, Tensor) else result == x


def test_pixels_become_bytes_and_copies_go_once() -> None:
    pixels = torch.randint(0, 256, (1, 3, 64, 64)) / 255 - 0.5
    kind, index, table, shape = pack(pixels)
    assert (kind, index.dtype, len(table), shape) == ("packed", torch.uint8, 256, (1, 3, 64, 64))
    assert copies_in(torch.cat([pixels] * 6)) == 6
    kind, n, inner = pack(torch.cat([pixels] * 6))
    assert (kind, n, inner[0], inner[3]) == ("copies", 6, "packed", (1, 3, 64, 64))
    assert copies_in(torch.cat([pixels, pixels + 1, pixels])) == 1
