"""What edits report is added up at the end, whatever was noted pass by pass."""

import pytest
import torch

from lmm_lens.core.noted import MOST, Noted, as_given, totals
from lmm_lens.core.tapping import Tapping


def test_rows_are_counted_where_they_are_above_0_or_true_and_attention_is_summed():
    noted = Noted(as_given)
    noted.add((torch.tensor([[0.5, 0.0, 1e-30]]), torch.tensor([[0.25, 0.0, 0.5]])))
    noted.add((torch.tensor([[2.0]]), torch.tensor([[1.0]])))
    flags = Noted(as_given)
    flags.add((torch.tensor([True, False, True]),))
    flags.add((torch.tensor(4),))  # a whole number is as many
    assert totals([noted, flags, Noted(as_given)]) == [[3, 1.75], [6], []]


def test_layers_that_note_alike_are_read_together_and_told_apart():
    asked = []
    layers = [Noted(lambda x: asked.append(x.shape) or (x,)) for _ in range(2)]
    layers[1].read = layers[0].read
    for step in range(3):
        for layer, noted in enumerate(layers):
            noted.add((torch.tensor([[1.0, 0.0, float(step == layer)], [0.0, 0.0, 1.0]]),))
    assert totals(layers) == [[7], [7]]
    assert asked == [(12, 3)]
    layers[1].add((torch.ones(1, 4),))
    assert totals(layers) == [[7], [11]]


def test_many_passes_are_added_up_on_the_way():
    noted = Noted(lambda x: (x, 2 * x))
    for _ in range(5):
        noted.add((torch.ones(1, MOST + 1),))
    assert not noted.held
    assert totals([noted]) == [[5 * (MOST + 1), 10 * (MOST + 1)]]


def test_one_tap_may_say_less_than_another_of_its_intervention_and_count_in_another_way():
    """By one function alone, numbers meant for another would be read wrongly."""
    from lmm_lens.core.taps import TapContext

    tapping = Tapping([4])
    course = tapping.start(1, [])
    valid = torch.ones(1, 1, dtype=torch.bool)
    context = TapContext(0, (0,), torch.zeros(1, 1, dtype=torch.long), valid, 1, course.state, None, all_valid=True)
    context.note(torch.tensor([[1.0, 0.0]]))
    context.note(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.5, 0.5]]))
    context.note_as(lambda x: (x > 10, x), torch.tensor([[3.0, 30.0]]))
    tapping.settle()
    assert tapping.edited == {(0, 0): 1 + 2 + 1}
    assert tapping.moved == {(0, 0): pytest.approx(34.0)}
    assert tapping.short == {}
