"""The numbers of heads on a page, against sums one weight at a time."""

import math

import pytest
import torch

from lmm_lens import score_heads
from lmm_lens.bundled import shapes
from lmm_lens.viewer import view
from tests.support.cases import case
from tests.support.eager import Eager, sinks_by_layer
from tests.viewer.pages import Shown


@pytest.fixture(scope="module")
def asked(lens):
    example = shapes.examples(1, kinds=("color",), seed=1)[0]
    return lens.prompt(example.question, images=example.image)


def test_every_map_is_the_sum_that_its_name_says(lens, asked):
    shown = Shown(view(asked, lens, queries=[20, 41]).html)
    seen = Eager(lens.model).prefill(asked.inputs)
    sinks = sinks_by_layer(seen, 0, (5, 77), 7)
    patches = range(2, 38)  # after the first token and "USER:"
    for query, position in enumerate((20, 41, 44)):
        for layer in range(6):
            for head in range(8):
                row = seen.row(layer, 0, head, position)
                inside = sum(row[j] for j in patches)
                shares = [row[j] / inside for j in patches if row[j] > 0]
                expected = {
                    "visual_mass": inside,
                    "nonsink_mass": sum(row[j] for j in patches if j not in sinks[layer]),
                    "sink_mass": sum(row[j] for j in patches if j in sinks[layer]),
                    "text_mass": sum(row[j] for j in range(45) if j not in patches and j > 0),
                    "bos_mass": row[0],
                    "marker_mass": 0.0,
                    "concentration": 1 + sum(p * math.log(p) for p in shares) / math.log(36),
                    "entropy": -sum(p * math.log(p) for p in row if p > 0),
                }
                for name, value in expected.items():
                    assert shown.map(name)[query, layer, head] == pytest.approx(value, abs=2e-5), (name, layer, head)


def test_the_parts_of_a_head_add_up_to_one_also_with_markers():
    known = case("pixtral_llava")
    shown = Shown(view(known.prompt, known.lens, queries="text").html)
    parts = [shown.map(name) for name in ("visual_mass", "text_mass", "bos_mass", "marker_mass")]
    assert sum(parts) == pytest.approx(torch.ones(parts[0].shape).numpy(), abs=1e-5)
    assert parts[3].max() > 0.01


def test_the_last_token_has_the_masses_that_scoring_finds(lens, asked):
    shown = Shown(view(asked, lens).html)
    for metric in ("visual_mass", "nonsink_mass", "concentration"):
        expected = score_heads(lens, asked, metric).values.numpy()
        assert shown.map(metric)[0] == pytest.approx(expected, abs=1e-6)
