"""Mean ablation: z of a head becomes its mean over a data set at tokens of the same role."""

import pytest
import torch

from lmm_lens import AblateHeads, head_means
from lmm_lens.errors import InterventionError
from lmm_lens.prompts.prompt import ROLES
from tests.support.cases import case, close, edits_of
from tests.support.models import BOS, IMAGE, another, joined
from tests.support.oracle import spans
from tests.support.planted import real_tokens

NAMES = ["llava", "qwen2_5_vl", "gemma3", "paligemma2", "qwen3_5", "idefics3", "glm4v"]


def role_of(ids, markers, position):
    """The role of a prompt token, from its id and place alone; these prompts have no answer turn."""
    image = [i for i, token in enumerate(ids) if token == IMAGE]
    if ids[position] == IMAGE:
        return "visual"
    if position in markers:
        return "marker"
    if ids[position] == BOS:
        return "bos"
    return "before_image" if position < max(image) else "question"


def roles_of(name, inputs):
    """By batch row and position; "pad" for padding."""
    prompt = case(name).lens.prompt(inputs=inputs)
    real = real_tokens(inputs)
    return [
        [
            role_of(ids.tolist(), prompt.mask("marker")[row].nonzero().flatten().tolist(), i) if real[row, i] else "pad"
            for i in range(len(ids))
        ]
        for row, ids in enumerate(inputs["input_ids"])
    ]


def slow_means(name, data):
    """Mean z of each layer and role, token by token: layer -> role -> [head, d_head]."""
    reference, family = case(name).reference, case(name)
    sums: dict = {layer: {} for layer in family.attending}
    for inputs in data:
        reference.run(inputs)
        for row, roles in enumerate(roles_of(name, inputs)):
            for position, role in enumerate(roles):
                if role != "pad":
                    for layer in family.attending:
                        sums[layer].setdefault(role, []).append(reference.read("z", layer)[row, position].double())
    return {layer: {role: torch.stack(z).mean(0).float() for role, z in by.items()} for layer, by in sums.items()}


def data_of(name):
    """Prompts of different form, a padded batch among them."""
    inputs = case(name).inputs
    return [inputs, another(inputs, 5), joined([another(inputs, 6), {**inputs}])]


@pytest.mark.parametrize("name", NAMES)
def test_the_means_are_those_of_a_loop_over_tokens(name):
    family = case(name)
    means = head_means(family.lens, [family.lens.prompt(inputs=inputs) for inputs in data_of(name)])
    expected = slow_means(name, data_of(name))
    assert set(means.values) == set(family.attending)
    for layer, by_role in expected.items():
        for role, value in by_role.items():
            close(means.values[layer][ROLES.index(role)], value, 1e-6)
    counted = [role for inputs in data_of(name) for row in roles_of(name, inputs) for role in row if role != "pad"]
    assert means.counts.tolist() == [counted.count(role) for role in ROLES]


@pytest.mark.parametrize("scope", ["all", "question", "image"])
@pytest.mark.parametrize("name", NAMES)
def test_heads_get_the_mean_of_the_tokens_role(name, scope):
    family = case(name)
    data = data_of(name)[:2]
    means = head_means(family.lens, [family.lens.prompt(inputs=inputs) for inputs in data])
    slow = slow_means(name, data)
    (roles,) = roles_of(name, family.inputs)
    rows = spans(family.inputs)[scope][0]

    def edit(layer, z, first):
        for own, head in family.heads:
            for i in rows if own == layer else ():
                z[0, i, head] = slow[layer][roles[i]][head]
        return z

    with family.reference.editing(z=edit):
        expected = family.reference.run(family.inputs)
    run = family.lens.run(family.prompt, [AblateHeads(family.heads, "mean", scope, means)])
    close(run.logits, expected)
    assert edits_of(run) == [len(rows) * len(family.heads)]
    assert (run.logits - family.logits).abs().max() > 1e-3


def test_each_row_of_a_padded_batch_gets_the_means_of_its_own_roles():
    llava = case("llava")
    prompts, batch = llava.pair()
    means = head_means(llava.lens, llava.prompt)
    edit = [AblateHeads(llava.heads, "mean", "all", means)]
    given = llava.lens.run(llava.lens.prompt(inputs=batch), edit)
    for row, inputs in enumerate(prompts):
        alone = llava.lens.run(llava.lens.prompt(inputs=inputs), edit)
        close(given.logits[row, -alone.logits.shape[1] :], alone.logits[0])


def test_the_mean_over_one_prompt_of_a_role_of_one_token_changes_nothing():
    """The beginning of the sequence is one token: its mean is itself."""
    llava = case("llava")
    means = head_means(llava.lens, llava.prompt)
    run = llava.lens.run(llava.prompt, [AblateHeads(llava.heads, "mean", [0], means)])
    close(run.logits, llava.logits, 1e-6)


def test_a_role_that_the_data_lacks_is_refused_by_name():
    llava = case("llava")
    means = head_means(llava.lens, llava.lens.prompt(inputs={"input_ids": torch.tensor([[1, 5, 6]])}))
    with pytest.raises(InterventionError) as caught:
        llava.lens.run(llava.prompt, [AblateHeads(llava.heads, "mean", "all", means)])
    assert str(caught.value) == (
        "the reference prompts of the means hold no token of role 'visual', which this prompt has\n"
        "  compute head_means over prompts of the same form"
    )
    close(llava.lens.run(llava.prompt).logits, llava.logits, 1e-6)  # and nothing is left behind


def test_generated_tokens_need_means_of_the_answer_turn():
    llava = case("llava")
    means = head_means(llava.lens, llava.prompt)
    with pytest.raises(InterventionError, match="no token of role 'answer_turn'"):
        llava.lens.generate(llava.prompt, [AblateHeads(llava.heads, "mean", "after_image", means)], max_new_tokens=3)


def test_means_need_prompts():
    with pytest.raises(InterventionError, match="head_means was given no prompts"):
        head_means(case("llava").lens, [])


def test_means_of_another_model_are_refused():
    """Same heads by number, another width: the error must not come from inside torch."""
    four_layers, llava = case("qwen3_5"), case("llava")
    means = head_means(four_layers.lens, four_layers.prompt)
    with pytest.raises(InterventionError):
        llava.lens.run(llava.prompt, [AblateHeads([(0, 1)], "mean", "image", means)])
