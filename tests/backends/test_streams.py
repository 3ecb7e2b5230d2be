"""What a layer is handed is found by place and by name, or refused by name."""

import pytest
import torch
from torch import nn

from lmm_lens.backends.streams import NAMES, stream_into, stream_of
from lmm_lens.errors import HookError

X = torch.ones(1, 2, 3)


@pytest.mark.parametrize(
    ("args", "kwargs", "name"), [((X, 1), {}, ""), *[((), {"mask": None, name: X}, name) for name in NAMES]]
)
def test_it_is_found_where_models_put_it(args, kwargs, name):
    found = stream_of(nn.Identity(), args, kwargs)
    assert found[0] == name
    assert found[1] is X


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((), {"tokens": X}), ((3,), {}), ((), {"x": None})])
def test_where_there_is_none_it_says_so(args, kwargs):
    assert stream_into(args, kwargs)[1] is None
    with pytest.raises(HookError, match="Identity is handed no tensor by place or as one of hidden_states"):
        stream_of(nn.Identity(), args, kwargs)
