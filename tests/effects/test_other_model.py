"""A sweep belongs to the model it was begun with, here and in every worker."""

import copy
import pickle

import pytest
import torch

from lmm_lens import HeadSet, Lens, data, head_effects
from lmm_lens.bundled import shapes
from lmm_lens.effects.ablations import Ablation
from lmm_lens.effects.work import MakeEffectsWork
from lmm_lens.errors import LensError, ScoreError
from lmm_lens.interventions import AblateHeads
from lmm_lens.lens.travelling import TravellingLens, origin_of

HEADS = HeadSet([(0, 4)], 6, 8)


@pytest.fixture
def own():
    return Lens(*copy.deepcopy(shapes.load()))


def test_a_folder_is_not_gone_on_with_when_a_weight_or_the_processor_has_changed(own, tmp_path):
    samples = data.shapes(n=2, seed=3)
    head_effects(own, samples, heads=HEADS, folder=tmp_path / "run")
    own.processor.image_processor.image_mean = [0.4, 0.5, 0.5]
    with pytest.raises(ScoreError, match="1 field; of the model the processor differs\n"):
        head_effects(own, samples, heads=HEADS, folder=tmp_path / "run")
    with torch.no_grad():
        own.model.lm_head.weight[3, 4] += 1
    with pytest.raises(ScoreError, match="of the model the weights and the processor differ\n"):
        head_effects(own, samples, heads=HEADS, folder=tmp_path / "run")


def test_nor_inside_a_block_that_applies_something(own, tmp_path):
    samples = data.shapes(n=1, seed=3)
    head_effects(own, samples, heads=HEADS, folder=tmp_path / "run")
    with own.apply(AblateHeads([(2, 1)])):
        own.run(own.prompt("what color is it?", images=shapes.blank(0)))
        with pytest.raises(ScoreError, match=r"applied: nothing there, .*AblateHeads"):
            head_effects(own, samples, heads=HEADS, folder=tmp_path / "run")


def test_a_worker_that_opens_another_model_by_name_is_refused(own):
    opened = Lens.demo()
    opened.model, opened.processor = own.model, own.processor  # a model opened by name, and changed since
    with torch.no_grad():
        own.model.lm_head.weight[3, 4] += 1
    change = Ablation((HEADS,), "zero", "all", None)
    make = MakeEffectsWork(TravellingLens(opened, "cpu", opened.origin, opened.identity), change, None)
    assert make().lens is opened
    with pytest.raises(LensError) as caught:
        pickle.loads(pickle.dumps(make))()
    assert str(caught.value).startswith("a Ray worker has opened another model than the one here: the weights differ\n")
    plain = Lens.demo()
    make = MakeEffectsWork(TravellingLens(plain, "cpu", origin_of(plain), plain.identity), change, None)
    assert pickle.loads(pickle.dumps(make))().lens is not plain
