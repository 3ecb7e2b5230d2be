"""VAR's parameters by meaning: ranges, the paper's tasks, the released code's numbers, and the known row end to end."""

from dataclasses import dataclass

import pytest
import torch
import transformers as hf

from lmm_lens import VAR, Intervention, Lens, LensError, Read
from lmm_lens.core.taps import Tap
from lmm_lens.errors import InterventionError, ScoreError
from lmm_lens.prompts.rows import bind_rows
from lmm_lens.warnings import NothingChangedWarning
from tests.support.known_row import BY_FRACTION, ROW
from tests.support.models import IMAGE
from tests.support.oracle import SlowVAR
from tests.support.planted import DIMS, THRESHOLD, planted

SINKS = {"sink_dims": DIMS, "sink_threshold": THRESHOLD}
LOOSE = {**SINKS, "min_nonsink_ratio": 0.0, "min_visual_mass": 0.0}


# ---------------------------------------------------------------------- the known row, through a model


@dataclass(frozen=True)
class KnownRow(Intervention):
    """Puts the known row into the last prompt row of every head of a layer."""

    layer: int
    keys: tuple[int, ...]  # text sink, text, visual sink, visual, visual, text

    def taps(self, prompt, shape):
        def put(pattern, context):
            known = torch.zeros_like(pattern)
            known[..., list(self.keys)] = torch.tensor(ROW)
            return known

        return [Tap("pattern", self.layer, bind_rows("last", prompt), put, edits=True)]


@pytest.fixture(scope="module")
def known():
    """The layer and the keys of the known row in the tiny llava: its own sinks, and tokens that are none."""
    case = planted("llava")
    slow = SlowVAR(case.reference, case.inputs, DIMS, THRESHOLD)
    with case.reference.editing(pattern=slow):
        case.reference.run(case.inputs)
    ids, sinks = case.inputs["input_ids"][0].tolist(), slow.sinks[2][0]
    assert 0 in sinks
    patches = [i for i, token in enumerate(ids) if token == IMAGE]
    sink = next(i for i in patches if i in sinks)
    one, other = [i for i in patches if i not in sinks][:2]
    keys = (0, 1, sink, one, other, len(ids) - 1)
    assert not {1, len(ids) - 1} & sinks
    return case, keys


def known_row_after(known, var):
    case, keys = known
    run = case.lens.run(case.prompt, [KnownRow(2, keys), var], read=[Read("pattern", [2], rows="last")])
    row = run.reads["pattern", 2][0, :, 0]
    rest = [i for i in range(row.shape[-1]) if i not in keys]
    assert (row[:, rest] == 0).all()
    return row[:, list(keys)], run.reports[1]


@pytest.mark.parametrize(
    ("var", "p"),
    [
        (lambda **sinks: VAR(**sinks), 0.6),
        (lambda **sinks: VAR(transfer_fraction=0.4, min_nonsink_ratio=0.7, **sinks), 0.4),
        (lambda **sinks: VAR.from_reference_code(rho=0.5, p=0.6, **sinks), 0.4),
        (lambda **sinks: VAR.from_reference_code(rho=0.5, p=0.4, **sinks), 0.6),
        (lambda **sinks: VAR.from_reference_code(**sinks), 0.4),
    ],
)
def test_the_known_row_of_a_run_gives_the_known_answer(known, var, p):
    row, report = known_row_after(known, var(sink_dims=DIMS, sink_threshold=THRESHOLD))
    torch.testing.assert_close(row, torch.tensor([BY_FRACTION[p]] * 4), atol=1e-6, rtol=0)
    assert report.edits[2] >= 4


@pytest.mark.parametrize(
    "var",
    [
        lambda **sinks: VAR(min_nonsink_ratio=0.8, **sinks),
        lambda **sinks: VAR.from_reference_code(rho=0.2, p=0.6, **sinks),
    ],
)
def test_the_known_row_of_a_run_is_not_chosen_at_a_ratio_of_four_fifths(known, var):
    row, _ = known_row_after(known, var(sink_dims=DIMS, sink_threshold=THRESHOLD))
    torch.testing.assert_close(row, torch.tensor([ROW] * 4), atol=0, rtol=0)


def test_the_released_codes_numbers_mean_what_is_left():
    var = VAR.from_reference_code(rho=0.2, p=0.3, sink_dims=(1,), sink_threshold=5)
    assert (var.transfer_fraction, var.min_nonsink_ratio) == pytest.approx((0.7, 0.8))
    assert (var.sink_dims, var.sink_threshold, var.min_visual_mass) == ((1,), 5, 0.2)


# ---------------------------------------------------------------------- defaults and ranges


def test_the_defaults_are_the_papers():
    var = VAR()
    assert (var.transfer_fraction, var.min_visual_mass, var.sink_threshold) == (0.6, 0.2, 20)
    assert (var.first_layer, var.skip_last_layer, var.rows) == (2, True, "after_image")
    assert var.sink_dims == (1415, 2533)


def refused(**parameters) -> str:
    with pytest.raises(LensError) as caught:
        VAR(**parameters)
    text = str(caught.value)
    assert len(text.splitlines()) <= 3
    return text


@pytest.mark.parametrize("value", [0, -0.1, 1.0001, 60, float("nan"), float("inf")])
def test_a_fraction_outside_its_range_is_refused_with_the_way_to_port_the_code(value):
    assert refused(transfer_fraction=value) == (
        f"transfer_fraction is the share taken from the sinks, in (0, 1], given {value}\n"
        "  numbers of the released code go through VAR.from_reference_code(rho=..., p=...)"
    )


@pytest.mark.parametrize("name", ["min_nonsink_ratio", "min_visual_mass"])
@pytest.mark.parametrize("value", [-0.01, 1.5, 80, float("nan")])
def test_a_share_outside_its_range_is_refused_by_its_name(name, value):
    assert refused(**{name: value}) == f"{name} lies in [0, 1], given {value}"


def test_at_one_end_of_the_ranges_every_row_gives_all_that_its_sinks_have(known):
    var = VAR(transfer_fraction=1, min_nonsink_ratio=0, min_visual_mass=0, first_layer=0, **SINKS)
    row, report = known_row_after(known, var)
    others = [0.20 + 0.40 * 20 / 35, 0.15 + 0.40 * 15 / 35]  # of .30 and .10, in proportion
    torch.testing.assert_close(row, torch.tensor([[0, 0.10, 0, *others, 0.15]] * 4), atol=1e-6, rtol=0)
    assert min(report.edits) == 0, "the first layer is edited"


def test_at_the_other_end_no_row_is_chosen(known):
    with pytest.warns(NothingChangedWarning, match="no head met min_visual_mass and min_nonsink_ratio"):
        row, report = known_row_after(known, VAR(min_nonsink_ratio=1, min_visual_mass=1, **SINKS))
    assert torch.equal(row, torch.tensor([ROW] * 4))
    assert report.n_edits == 0


def test_whole_numbers_are_taken_as_numbers():
    case = planted("llava")
    whole = VAR(transfer_fraction=1, min_nonsink_ratio=0, min_visual_mass=0, sink_dims=DIMS, sink_threshold=4)
    run = case.lens.run(case.prompt, [whole])
    assert torch.equal(run.logits, case.lens.run(case.prompt, [VAR(1.0, 0.0, 0.0, 4.0, DIMS)]).logits)


def test_other_parameters_are_refused_by_name():
    assert refused(first_layer=-1) == "first_layer counts from 0, given -1"
    assert refused(sink_threshold="20") == "sink_threshold is a value or \"auto\", given '20'"
    assert refused(sink_dims="5, 77") == "sink_dims is a value or \"auto\", given '5, 77'"
    assert refused(sink_dims=()) == 'VAR needs sink_dims, or sink_dims="auto"'


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sink_dims": (64,)}, "sink dimensions [64] lie outside the model: d_model is 64"),
        ({"sink_threshold": 20.0}, "sink_threshold 20 can never be reached: phi is at most sqrt(d_model) = 8.0"),
        ({"sink_threshold": -1.0}, "sink_threshold must be positive, given -1.0"),
        ({"first_layer": 4}, "VAR has no layer to act in: first_layer 4, skip_last_layer True, the model has layers 0"),
        ({"first_layer": 9, "skip_last_layer": False}, "VAR has no layer to act in: first_layer 9"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_when_it_meets_it(changes, text):
    case = planted("llava")
    with pytest.raises((InterventionError, ScoreError)) as caught:
        case.lens.run(case.prompt, [VAR(**{**LOOSE, **changes})])
    assert str(caught.value).startswith(text)


def test_defaults_for_a_large_model_are_refused_by_a_small_one():
    case = planted("llava")
    with pytest.raises(ScoreError, match=r"sink dimensions \[1415, 2533\] lie outside the model: d_model is 64"):
        case.lens.run(case.prompt, [VAR()])


def test_rows_after_an_image_that_is_not_there_are_refused():
    case = planted("llava")
    prompt = case.lens.prompt(inputs={"input_ids": torch.tensor([[1, 5, 6, 22]])})
    with pytest.raises(InterventionError, match="touches nothing: rows 'after_image'"):
        case.lens.run(prompt, [VAR(**LOOSE)])


# ---------------------------------------------------------------------- the paper's tasks


def lens_of(text, **card):
    """A lens on a model that has a config alone."""
    config = hf.LlavaConfig(vision_config=hf.CLIPVisionConfig(), text_config=text)
    if card:
        config.lmm_lens = card
    with torch.device("meta"):
        return Lens(hf.LlavaForConditionalGeneration(config).eval())


def llama(width: int, vocabulary: int = 32064):
    return hf.LlamaConfig(
        hidden_size=width,
        vocab_size=vocabulary,
        num_hidden_layers=2,
        intermediate_size=64,
        num_attention_heads=width // 128 or 1,
    )


@pytest.mark.parametrize(("task", "rho"), [("general", 0.8), ("hallucination", 0.5), ("vision_centric", 0.9)])
def test_each_task_has_the_papers_settings(task, rho):
    var = VAR.for_task(task, lens_of(llama(4096)))
    assert var == VAR(0.6, rho, 0.2, 20.0, (1415, 2533), 2, True, "after_image")


def test_a_model_of_13b_gets_its_own_dimensions():
    """The released code uses those of the 7B model for it."""
    assert VAR.for_task("general", lens_of(llama(5120))).sink_dims == (2100, 4743)


def test_the_models_card_names_dimensions_and_threshold():
    var = VAR.for_task("hallucination", lens_of(llama(128), sink_dims=[5, 77], sink_threshold=7.0))
    assert (var.sink_dims, var.sink_threshold) == ((5, 77), 7.0)


def test_of_an_unknown_model_both_are_left_to_be_discovered():
    for unknown in (lens_of(llama(4096, 128_320)), planted("llava").lens):
        var = VAR.for_task("general", unknown)
        assert (var.sink_dims, var.sink_threshold, var.min_nonsink_ratio) == ("auto", "auto", 0.8)


def test_a_tasks_settings_can_be_changed():
    var = VAR.for_task("general", lens_of(llama(4096)), sink_threshold=25.0, min_nonsink_ratio=0.6, rows="last")
    assert (var.sink_threshold, var.min_nonsink_ratio, var.rows) == (25, 0.6, "last")


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(InterventionError) as caught:
        VAR.for_task("halucination", planted("llava").lens)
    assert str(caught.value) == (
        "unknown task 'halucination', did you mean 'hallucination'?\n  valid: general, hallucination, vision_centric"
    )


def test_for_a_model_measured_to_have_no_sinks_the_error_says_so():
    """Its card says sink_dims []: nothing was forgotten by the user."""
    with pytest.raises(
        LensError, match=r"no attention sinks \(the model's own card says so\), so VAR has nothing to do"
    ):
        VAR.for_task("general", lens_of(llama(128), sink_dims=[], sink_threshold=7.0))
