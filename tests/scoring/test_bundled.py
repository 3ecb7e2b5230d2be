"""Scores of the bundled model, where the layout of the picture is known: boxes, batches, sinks and stop tokens."""

import copy
from functools import cache

import pytest
import torch

from lmm_lens import AblateHeads, Lens, score_heads
from tests.support.eager import Eager, Keys, phi, scores, sinks_by_layer

VISUAL = range(2, 38)  # after <s> and USER:
SINK_DIMS = (5, 77)
METRICS = ("visual_mass", "nonsink_mass", "concentration", "visual_preference", "region_mass")


def patches(box: tuple[float, float, float, float]) -> list[int]:
    """Positions of the 8 x 8 pixel patches, six a row, that share some area with a box."""
    x0, y0, x1, y1 = box
    return [
        2 + 6 * row + column
        for row in range(6)
        for column in range(6)
        if 8 * column < x1 and 8 * column + 8 > x0 and 8 * row < y1 and 8 * row + 8 > y0
    ]


def close(given, expected, tolerance=1e-5):
    torch.testing.assert_close(given, expected, atol=tolerance, rtol=0, equal_nan=True)


@pytest.fixture(scope="module")
def eager(lens):
    """What eager attention shows of a prompt: (prefill, decoding step), each computed once."""
    reference = Eager(lens.model)

    @cache
    def passes(prompt):
        return reference.decode(prompt.inputs)

    return passes


@pytest.mark.parametrize("query", ["last", "answer"])
@pytest.mark.parametrize("metric", METRICS)
def test_every_row_of_a_padded_batch_equals_eager_attention_on_its_prompt_alone(lens, asked, eager, metric, query):
    box = (12, 0, 36, 20)
    options = {"boxes": [box] * 7} if metric == "region_mass" else {}
    if metric == "nonsink_mass":
        options = {"sink_dims": SINK_DIMS, "sink_threshold": 3.0}
    given = score_heads(lens, asked.batch, metric, query, **options).per_prompt
    assert given.shape == (7, 6, 8)
    for row, prompt in enumerate(asked.singles):
        prefill, step = eager(prompt)
        sinks = sinks_by_layer(prefill, 0, SINK_DIMS, 3.0) if metric == "nonsink_mass" else {}
        keys = Keys(VISUAL, sinks, patches(box))
        close(given[row], scores(metric, prefill if query == "last" else step, -1, keys))


def test_the_models_own_card_says_which_tokens_are_sinks(lens, asked, eager):
    given = score_heads(lens, asked.singles[0], "nonsink_mass")
    prefill, _ = eager(asked.singles[0])
    close(
        given.per_prompt[0], scores("nonsink_mass", prefill, -1, Keys(VISUAL, sinks_by_layer(prefill, 0, SINK_DIMS, 7)))
    )
    assert given.settings["sink_dims"] == [5, 77]
    assert given.settings["sink_threshold"] == 7


@pytest.mark.filterwarnings("ignore:.*of the visual tokens are sinks")
def test_a_sink_threshold_of_the_users_takes_the_cards_place(lens, asked, eager):
    prefill, _ = eager(asked.singles[0])
    found = sorted(phi(x, SINK_DIMS) for layer in range(6) for x in prefill.resid[layer][0, 2:38])
    middle = (found[108] + found[109]) / 2  # half of the visual tokens of all layers are sinks
    given = score_heads(lens, asked.singles[0], "nonsink_mass", sink_threshold=middle)
    sinks = sinks_by_layer(prefill, 0, SINK_DIMS, middle)
    close(given.per_prompt[0], scores("nonsink_mass", prefill, -1, Keys(VISUAL, sinks)))
    raw = score_heads(lens, asked.singles[0], "visual_mass")
    assert 0 < float(given.values.sum()) < float(raw.values.sum())


def test_without_sink_dimensions_all_visual_mass_is_nonsink_mass(lens, asked):
    nonsink = score_heads(lens, asked.singles[0], "nonsink_mass", sink_dims=())
    close(nonsink.per_prompt, score_heads(lens, asked.singles[0], "visual_mass").per_prompt, 1e-6)


@pytest.mark.parametrize("query", ["last", "answer"])
def test_prompts_in_any_grouping_give_the_same_rows_in_their_order(lens, asked, query):
    questions, pictures = [e.question for e in asked.examples], [e.image for e in asked.examples]
    grouped = [
        asked.singles[0],
        lens.prompt(questions[1:4], images=pictures[1:4]),
        lens.prompt(questions[4:], images=pictures[4:]),
    ]
    apart = score_heads(lens, asked.singles, "concentration", query)
    assert apart.n_prompts == 7
    close(score_heads(lens, grouped, "concentration", query).per_prompt, apart.per_prompt)
    backwards = score_heads(lens, (prompt for prompt in reversed(asked.singles)), "concentration", query)
    close(backwards.per_prompt.flip(0), apart.per_prompt)
    close(apart.values, apart.per_prompt.double().mean(0).float(), 1e-6)


def test_boxes_follow_the_rows_through_several_prompts(lens, asked):
    boxes = [(8 * i, 0, 8 * i + 8, 48) for i in range(4)]
    questions, pictures = [e.question for e in asked.examples], [e.image for e in asked.examples]
    grouped = [lens.prompt(questions[:3], images=pictures[:3]), asked.singles[3]]
    given = score_heads(lens, grouped, "region_mass", boxes=boxes).per_prompt
    for row, (prompt, box) in enumerate(zip(asked.singles[:4], boxes, strict=True)):
        close(given[row], score_heads(lens, prompt, "region_mass", boxes=[box]).per_prompt[0])


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ((0, 0, 16, 16), [2, 3, 8, 9]),
        ((7.9, 8, 8.1, 9), [8, 9]),  # a sliver of two patches
        ((8, 8, 16, 16), [9]),  # touches eight others
        ((40, 40, 100, 100), [37]),
        ([(0, 0, 8, 8), (40, 40, 48, 48)], [2, 37]),
        ([(0, 0, 8, 8), (0, 0, 9, 8)], [2, 3]),  # what both cover counts once
    ],
)
def test_region_mass_is_the_attention_on_the_patches_that_overlap_the_boxes(lens, asked, eager, boxes, expected):
    if isinstance(boxes, tuple):
        assert patches(boxes) == expected
    given = score_heads(lens, asked.singles[0], "region_mass", boxes=[boxes]).per_prompt[0]
    prefill, _ = eager(asked.singles[0])
    close(given, scores("region_mass", prefill, -1, Keys(VISUAL, region=expected)))


def test_the_region_of_the_whole_picture_has_all_visual_mass(lens, asked):
    whole = score_heads(lens, asked.singles[0], "region_mass", boxes=[(0, 0, 48, 48)])
    close(whole.per_prompt, score_heads(lens, asked.singles[0]).per_prompt, 1e-6)


def test_regions_count_in_the_first_of_several_pictures(lens, asked):
    prompt = lens.prompt("what color is the circle?", images=[asked.examples[0].image, asked.examples[1].image])
    given = score_heads(lens, prompt, "region_mass", boxes=[(0, 0, 48, 8)]).per_prompt[0]
    close(given, scores("region_mass", Eager(lens.model).prefill(prompt.inputs), -1, Keys((), region=range(2, 8))))


@pytest.mark.parametrize("query", ["last", "answer"])
def test_scores_under_an_ablation_are_those_of_the_model_without_the_heads(lens, asked, query):
    heads = [(0, 1), (0, 5), (2, 3)]
    given = score_heads(lens, asked.singles[0], query=query, interventions=[AblateHeads(heads)]).per_prompt[0]
    prefill, step = Eager(lens.model, heads).decode(asked.singles[0].inputs)
    close(given, scores("visual_mass", prefill if query == "last" else step, -1, Keys(VISUAL)))
    with lens.apply(AblateHeads(heads)):
        close(score_heads(lens, asked.singles[0], query=query).per_prompt[0], given, 1e-6)


def test_scoring_leaves_the_model_as_it_was(lens, asked):
    before = lens.run(asked.batch).logits
    for metric, query in (("nonsink_mass", "last"), ("visual_mass", "answer")):
        score_heads(lens, asked.batch, metric, query)
    assert torch.equal(lens.run(asked.batch).logits, before)


def test_a_model_that_answers_with_its_stop_token_is_scored_at_that_token(lens, asked):
    prompt = asked.singles[0]
    expected = score_heads(lens, prompt, query="answer").per_prompt
    model = copy.deepcopy(lens.model)
    model.generation_config.eos_token_id = int(lens.generate(prompt, max_new_tokens=1).tokens[0, 0])
    close(score_heads(Lens(model, lens.processor), prompt, query="answer").per_prompt, expected)


def test_a_progress_bar_changes_no_number(lens, asked, capsys):
    with_bar = score_heads(lens, asked.singles[:2], progress=True)
    assert torch.equal(with_bar.per_prompt, score_heads(lens, asked.singles[:2]).per_prompt)
