"""The identity is asked once for each experiment, however many prompts it has: it reads all weights."""

import pytest

from lmm_lens import HeadScores, HeadSet, Lens, activation_patching, data, head_effects, score_heads
from lmm_lens.bundled import shapes
from lmm_lens.patching import attribution_patching
from lmm_lens.viewer import view
from tests.support.color_pairs import color_batch


@pytest.fixture
def asked(monkeypatch):
    """How often a lens was asked."""
    calls, real = [], Lens.identity.fget
    monkeypatch.setattr(Lens, "identity", property(lambda lens: calls.append(lens) or real(lens)))
    return calls


@pytest.fixture
def pair(lens):
    batch = color_batch(lens)
    return batch.clean, batch.corrupt


@pytest.mark.parametrize("with_file", [False, True])
def test_once_an_experiment(lens, pair, asked, tmp_path, with_file):
    file = {"checkpoint": tmp_path / "x"} if with_file else {}
    scores = score_heads(lens, [*pair, pair[0]], **file)
    assert len(asked) == 1
    assert scores.model == lens.identity
    asked.clear()
    file = {"checkpoint": tmp_path / "y"} if with_file else {}
    effects = activation_patching(lens, *pair, site="z", by="head", layers=[2], **file)
    assert len(asked) == 1
    assert effects.model == lens.identity
    asked.clear()
    folder = {"folder": tmp_path / "run"} if with_file else {}
    head_effects(lens, data.shapes(n=3, seed=3), heads=HeadSet([(0, 4)], 6, 8), **folder)
    assert len(asked) == 1


def test_once_where_nothing_is_kept_and_never_for_a_run(lens, pair, asked, tmp_path):
    attribution_patching(lens, *pair, layers=[2])
    assert len(asked) == 1
    scores = score_heads(lens, pair[0])
    scores.save(tmp_path / "x")
    asked.clear()
    HeadScores.load(tmp_path / "x", lens)
    assert len(asked) == 1
    view(lens.prompt("what color is it?", images=shapes.blank(0)), scores, lens=lens)
    assert len(asked) == 2
    for action in (lambda: lens.run(pair[0]), lambda: lens.generate(pair[0], max_new_tokens=2), lambda: repr(lens)):
        action()
    assert len(asked) == 2
