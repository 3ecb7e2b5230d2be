"""A task of lmms-eval as data, where lmms-eval is not installed; where it is, in tests/harness."""

import sys

import pytest

from lmm_lens import data
from lmm_lens.errors import ScoreError


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(ScoreError) as error:
        data.lmms_eval("pope")
    first, second = str(error.value).splitlines()
    assert first.startswith("data.lmms_eval('pope') reads a task of lmms-eval, which cannot be imported here: ")
    assert second == "  pip install 'lmm-lens[lmms-eval]'"
    with pytest.raises(ScoreError, match="pip install"):
        data.named("lmms_eval", task="pope")
