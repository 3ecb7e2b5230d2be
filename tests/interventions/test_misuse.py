"""What a user gets wrong is refused in our words, when the intervention is made or when it meets the prompt."""

import pytest

from lmm_lens import (
    VAR,
    AblateHeads,
    BoostAttention,
    HeadSet,
    Knockout,
    KnockoutSinks,
    LensError,
    PatchHeads,
    PatchPattern,
    PatchResidual,
)
from tests.support.cases import edits_of
from tests.support.planted import DIMS, planted


@pytest.fixture(scope="module")
def llava():
    return planted("llava")


WRONG = {
    "no heads": (lambda prompt: Knockout("image", "last", heads=[]), "no heads"),
    "no layers": (lambda prompt: Knockout("image", "last", layers=[]), "no layers"),
    "no layers to boost": (lambda prompt: BoostAttention(layers=[]), "no layers"),
    "a layer, not layers": (lambda prompt: Knockout("image", "last", layers=3), "layers"),
    "a prompt, not a run": (lambda prompt: PatchHeads([(0, 0)], prompt), "lens.run"),
    "no run": (lambda prompt: PatchPattern([(0, 0)], None), "lens.run"),
    "a prompt as residual": (lambda prompt: PatchResidual([0], prompt), "lens.run"),
    "a dimension, not dimensions": (lambda prompt: VAR(sink_dims=5), "sink_dims"),
    "half a layer": (lambda prompt: VAR(sink_dims=DIMS, sink_threshold=4.0, first_layer=2.5), "first_layer"),
    "a fraction in words": (lambda prompt: VAR(transfer_fraction="0.6"), "transfer_fraction"),
    "sinks in words": (lambda prompt: KnockoutSinks("automatic"), "sink_dims"),
    "a sink dimension": (lambda prompt: KnockoutSinks(5), "sink_dims"),
    "another model's heads": (
        lambda prompt: AblateHeads(HeadSet([(0, 0)], 3, 4)),
        "made for a model of 3 layers x 4 heads",
    ),
    "heads in words": (lambda prompt: AblateHeads(["L0H1"]), "a head is a (layer, head) pair"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_argument_of_another_kind_is_refused(llava, what):
    make, text = WRONG[what]
    with pytest.raises(LensError) as caught:
        llava.lens.run(llava.prompt, [make(llava.prompt)])
    assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("twice", [{"heads": [1, 1], "layers": [2]}, {"heads": [1], "layers": [2, 2]}])
def test_what_is_named_twice_is_edited_and_counted_once(llava, twice):
    once = llava.lens.run(llava.prompt, [Knockout("image", "last", heads=[1], layers=[2])])
    run = llava.lens.run(llava.prompt, [Knockout("image", "last", **twice)])
    assert edits_of(run) == edits_of(once) == [1]


def test_heads_named_twice_are_ablated_once(llava):
    assert edits_of(llava.lens.run(llava.prompt, [AblateHeads([(1, 2), (1, 2)], rows="last")])) == [1]


def test_a_row_that_comes_only_while_generating_is_said_not_to_be_reached(llava):
    edit = Knockout("image", "answer")
    with pytest.warns(UserWarning, match="changed nothing: the target rows were not reached"):
        llava.lens.run(llava.prompt, [edit])
    assert edits_of(llava.lens.generate(llava.prompt, [edit], max_new_tokens=3)) == [4 * 5]
