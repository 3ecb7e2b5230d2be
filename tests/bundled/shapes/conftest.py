"""Checkpoints are loaded once for all tests of this folder."""

import pytest
import torch

from lmm_lens.bundled import shapes


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def loaded():
    """variant -> (model, processor)"""
    return {variant: shapes.load(variant) for variant in shapes.VARIANTS}


@pytest.fixture(params=shapes.VARIANTS)
def variant(request):
    return request.param
