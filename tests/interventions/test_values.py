"""Interventions are values: frozen, comparable, printable, and written to JSON unless they hold activations."""

import dataclasses
import json
from functools import cache

import pytest
import torch

from lmm_lens import (
    VAR,
    AblateHeads,
    AblateTokens,
    BoostAttention,
    Direction,
    Edit,
    EditPattern,
    HeadSet,
    Intervention,
    Knockout,
    KnockoutSinks,
    PatchHeads,
    PatchPattern,
    PatchResidual,
    ScaleAttention,
    Steer,
    head_means,
)
from lmm_lens.errors import InterventionError
from lmm_lens.interventions import from_json, to_json
from tests.support.cases import case
from tests.support.planted import DIMS, planted

PLAIN = [
    VAR(),
    VAR(0.4, 0.8, 0.1, 7.5, (5, 77), 0, False, "last"),
    VAR(sink_dims="auto", sink_threshold="auto"),
    VAR.from_reference_code(rho=0.5, p=0.6),
    AblateHeads([(0, 1), (2, 3)]),
    AblateHeads(HeadSet([(2, 3), (0, 1)], 3, 4), "uniform", "after_image"),
    AblateHeads([(0, 0)], "uniform_noncausal", rows=[3, 4]),
    AblateTokens(),
    AblateTokens([5, 6], "zero"),
    AblateTokens((5, 6)),  # what prompt.positions_in_box gives
    BoostAttention(),
    BoostAttention(0.5, [1, 2], "image", "last"),
    Knockout("image"),
    Knockout([5, 6], "question", range(1, 3), [0, 2]),
    KnockoutSinks((5, 77)),
    KnockoutSinks((9,), 4.0, 3, "last", [0, 2]),
    ScaleAttention(),
    ScaleAttention([5, 6], "last", 0.5, range(1, 3), renormalise=False),
    ScaleAttention(heads=[(0, 1), (2, 3)]),
    ScaleAttention("text", heads=HeadSet([(2, 3)], 3, 4)),
]
PLAIN_IDS = [f"{type(edit).__name__}-{index}" for index, edit in enumerate(PLAIN)]


@pytest.mark.parametrize("edit", PLAIN, ids=PLAIN_IDS)
def test_what_is_written_is_read_back_as_it_was(edit):
    text = to_json([edit])
    (again,) = from_json(text)
    assert type(again) is type(edit)
    assert repr(again) == repr(edit)
    assert to_json([again]) == text
    values = json.loads(text)[0]
    assert values.pop("intervention") == type(edit).__name__
    assert set(values) == {field.name for field in dataclasses.fields(edit)}


@pytest.mark.parametrize("edit", PLAIN, ids=PLAIN_IDS)
def test_what_is_read_back_is_equal(edit):
    (again,) = from_json(to_json([edit]))
    assert again == edit


@pytest.mark.parametrize("edit", PLAIN, ids=PLAIN_IDS)
def test_nobody_changes_one(edit):
    field = dataclasses.fields(edit)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(edit, field, None)


def test_several_keep_their_order():
    assert [repr(edit) for edit in from_json(to_json(PLAIN))] == [repr(edit) for edit in PLAIN]
    assert from_json("[]") == []


def test_what_is_read_back_acts_alike():
    planted_llava = planted("llava")
    edits = [
        VAR(sink_dims=DIMS, sink_threshold=4.0, min_nonsink_ratio=0.0),
        Knockout([6, 7], "question", [1]),
        AblateHeads(HeadSet([(0, 1)], 5, 4), "uniform"),
        KnockoutSinks(DIMS, 4.0, 2),
        AblateTokens([8]),
        BoostAttention(),
    ]
    run = planted_llava.lens.run(planted_llava.prompt, edits)
    again = planted_llava.lens.run(planted_llava.prompt, from_json(to_json(edits)))
    assert torch.equal(again.logits, run.logits)
    assert again.reports == run.reports


HOLDING = [
    "reference is a Run",
    "reference is a HeadMeans",
    "clean is a Run (heads)",
    "clean is a Run (residual)",
    "clean is a Run (pattern)",
    "rows is a Tensor",
    "source is a Tensor",
    "direction is a Direction",
    "function is a function (pattern)",
    "function is a function (rows)",
]


@cache
def holding():
    """One of each kind that holds activations."""
    llava = case("llava")
    run = llava.lens.run(llava.prompt, read=["z", "resid_pre", "pattern"])
    means = head_means(llava.lens, llava.prompt)
    edits = [
        AblateHeads([(0, 0)], "resample", reference=run),
        AblateHeads([(0, 0)], "mean", reference=means),
        PatchHeads([(0, 0)], run),
        PatchResidual([0], run),
        PatchPattern([(0, 0)], run),
        AblateHeads([(0, 0)], rows=llava.prompt.mask("image")),
        Knockout(torch.tensor([1, 2])),
        Steer(Direction(torch.ones(1, 4), (0,))),
        EditPattern(lambda pattern, keys: pattern),
        Edit("z", lambda z, context: z),
    ]
    return dict(zip(HOLDING, edits, strict=True))


@pytest.mark.parametrize("what", HOLDING)
def test_what_holds_activations_or_tensors_is_not_written(what):
    edit = holding()[what]
    with pytest.raises(InterventionError) as caught:
        to_json([Knockout("image"), edit])
    first, second = str(caught.value).splitlines()
    assert first == f"{type(edit).__name__} cannot be written as JSON: {what.split(' (')[0]}"
    assert second == "  save how it was made, and make it anew"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[{"intervention": "Knokout", "source": "image"}]',
            "unknown intervention 'Knokout', did you mean 'Knockout'?",
        ),
        ('[{"source": "image"}]', "unknown intervention None"),
        (
            '[{"intervention": "VAR", "transfer_fration": 0.6}]',
            "unknown parameter of VAR 'transfer_fration', did you mean 'transfer_fraction'?",
        ),
        ('[{"intervention": "VAR", "rho": 0.6}]', "unknown parameter of VAR 'rho'"),
        ('[{"intervention": "VAR", "transfer_fraction": 60}]', "transfer_fraction is the share taken from the sinks"),
        ('[{"intervention": "Knockout"}]', "source"),
        ('[{"intervention": "AblateHeads", "heads": []}]', "AblateHeads was given no heads"),
        ('{"intervention": "VAR"}', "list"),
        ("[3]", "intervention"),
        ("VAR()", "JSON"),
    ],
)
def test_what_describes_no_intervention_is_refused(text, message):
    with pytest.raises(InterventionError) as caught:
        from_json(text)
    assert message in str(caught.value)


def test_every_kind_is_covered_here():
    kinds = {name for name, kind in Intervention.kinds.items() if kind.__module__.startswith("lmm_lens.")}
    assert kinds == {type(edit).__name__ for edit in PLAIN} | {type(edit).__name__ for edit in holding().values()}


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (VAR(), "VAR(p=0.6, rho=0.5, tau=20, dims=[1415, 2533], rows='after_image')"),
        (VAR.from_reference_code(), "VAR(p=0.4, rho=0.5, tau=20, dims=[1415, 2533], rows='after_image')"),
        (AblateHeads([(0, 1)], rows="last"), "AblateHeads(L0H1, mode='zero', rows='last')"),
        (
            AblateHeads([(0, h) for h in range(8)]),
            "AblateHeads(L0H0 L0H1 L0H2 L0H3 L0H4 L0H5 and 2 more, mode='zero', rows='all')",
        ),
        (AblateTokens([4]), "AblateTokens(given positions, mode='mean')"),
        (BoostAttention(), "BoostAttention(alpha=0.2, keys='visual', rows='generating')"),
        (Knockout("image", "last", [1, 2]), "Knockout('image' -> 'last', layers=[1, 2])"),
        (ScaleAttention(), "ScaleAttention('image' x 1.3 in rows 'after_image')"),
        (
            ScaleAttention([4], "last", 0.5, [1, 2], renormalise=False),
            "ScaleAttention(given positions x 0.5 in rows 'last', layers=[1, 2], renormalise=False)",
        ),
        (ScaleAttention(heads=[(1, 2)]), "ScaleAttention('image' x 1.3 in rows 'after_image', L1H2)"),
        (KnockoutSinks((5,), control=3), "KnockoutSinks(as many random patches (seed 3) -> 'after_image')"),
    ],
)
def test_its_repr_says_what_it_does_and_where(edit, text):
    assert repr(edit) == text


def test_the_heads_of_a_knockout_are_part_of_what_it_says():
    assert repr(Knockout("image", heads=[1])) != repr(Knockout("image"))
