"""The boost of attention against scores that are raised before the softmax."""

import pytest
import torch

from lmm_lens import BoostAttention
from lmm_lens.core.kernels import boost
from lmm_lens.errors import HookError, InterventionError
from tests.support.cases import close, edits_of
from tests.support.models import FAMILIES
from tests.support.oracle import each_row, spans
from tests.support.planted import planted

NEW = 5


@pytest.fixture(params=list(FAMILIES))
def case(request):
    return planted(request.param)


def raised(layers, keys, rows, alpha):
    """e += alpha |e| on the keys a row sees."""

    def change(row, b, oldest, own):
        for j in keys[b]:
            if 0 <= j - oldest < len(row) and row[j - oldest] > -torch.inf:
                row[j - oldest] += alpha * row[j - oldest].abs()

    return each_row(layers, rows, None, change)


def test_rows_that_generate_look_harder_at_the_image_from_layer_two_on(case):
    layers = [layer for layer in case.self_attending if layer >= 2]
    roles = spans(case.inputs, NEW)
    edit = raised(layers, roles["image"], roles["generating"], 0.2)
    given = case.lens.generate(case.prompt, [BoostAttention()], max_new_tokens=NEW, logits=True)
    with case.reference.editing(scores=edit):
        tokens, logits = case.reference.generate(case.inputs, NEW)
    assert torch.equal(given.tokens, tokens)
    close(given.logits, logits)
    assert given.reports[0].edits == dict.fromkeys(layers, 4 * NEW)
    unedited = case.lens.generate(case.prompt, max_new_tokens=NEW, logits=True)
    assert (given.logits - unedited.logits).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma2", "qwen2_5_vl", "internvl"])
def test_other_keys_rows_layers_and_strengths(name):
    case = planted(name)
    roles = spans(case.inputs)
    keys = sorted(roles["image"][0])[:2]
    run = case.lens.run(case.prompt, [BoostAttention(1.5, [1, 2], keys, "question")])
    with case.reference.editing(scores=raised([1, 2], [set(keys)], roles["question"], 1.5)):
        close(run.logits, case.reference.run(case.inputs))
    assert set(run.reports[0].edits) == {1, 2}
    assert (run.logits - case.logits).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["llava", "paligemma2"])
def test_rows_of_a_padded_batch_look_at_their_own_image(name):
    case = planted(name)
    prompts, batch = case.batch()
    given = case.lens.run(case.lens.prompt(inputs=batch), [BoostAttention(1.0, rows="after_image")])
    for row, inputs in enumerate(prompts):
        alone = case.lens.run(case.lens.prompt(inputs=inputs), [BoostAttention(1.0, rows="after_image")])
        close(given.logits[row, -alone.logits.shape[1] :], alone.logits[0])


def test_a_very_strong_boost_does_not_overflow():
    case = planted("llava")
    logits = case.lens.run(case.prompt, [BoostAttention(1e4, rows="after_image")]).logits
    assert logits.isfinite().all()


def test_the_kernel_equals_the_softmax_of_raised_scores():
    scores = 4 * torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[..., 6] = -torch.inf
    keys = torch.zeros(2, 7, dtype=torch.bool)
    keys[0, 1:4], keys[1, [0, 6]] = True, True
    given = boost(scores.softmax(-1), scores.nan_to_num(neginf=-3e38), keys, 0.3)
    more = torch.where(keys[:, None, None], scores + 0.3 * scores.abs(), scores)
    torch.testing.assert_close(given, more.masked_fill(scores == -torch.inf, -torch.inf).softmax(-1))


@pytest.mark.parametrize("alpha", [0, -0.2, float("inf"), float("nan")])
def test_a_strength_that_does_not_raise_is_refused(alpha):
    with pytest.raises(InterventionError, match=f"alpha must be positive, given {alpha}"):
        BoostAttention(alpha)


def test_what_is_not_there_is_refused():
    case = planted("llava")
    for edit, text in (
        (BoostAttention(keys="video"), "BoostAttention's keys 'video' select no token of this prompt"),
        (BoostAttention(layers=[7]), "layer 7 is out of range"),
        (BoostAttention(rows="video"), "touches nothing: rows 'video'"),
        (BoostAttention(keys="picture"), "unknown row scope 'picture'"),
    ):
        with pytest.raises((InterventionError, HookError)) as caught:
            case.lens.run(case.prompt, [edit])
        assert text in str(caught.value)


def test_a_model_of_two_layers_has_none_from_the_third_on():
    from lmm_lens import Lens
    from tests.support.planted import build

    model, inputs = build("llava", n_layers=2)
    lens = Lens(model)
    with pytest.raises(InterventionError, match="no layers"):
        lens.run(lens.prompt(inputs=inputs), [BoostAttention()])


def test_the_default_counts_the_last_prompt_row_and_every_generated_one():
    case = planted("llava")
    assert edits_of(case.lens.run(case.prompt, [BoostAttention()])) == [3 * 4]
    assert edits_of(case.lens.generate(case.prompt, [BoostAttention()], max_new_tokens=1)) == [3 * 4]
