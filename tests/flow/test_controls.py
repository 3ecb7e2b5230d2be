"""Random keys: as many, of the same kind, and nothing that they must not be."""

import pytest
import torch

from lmm_lens import Knockout, information_flow, shapes
from lmm_lens.flow.routes import random_keys
from tests.support.cases import case, double


def half_of_the_image(prompt):
    return prompt.mask("image") & (prompt.mask("image").cumsum(1) % 2 == 0)


def test_they_are_as_many_of_the_same_kind_and_in_neither_span():
    family = case("llava")
    prompt = family.lens.prompt(inputs=family.pair()[1])
    source, target = half_of_the_image(prompt), prompt.mask("last")
    drawn = [random_keys(prompt, source, target, f"{seed}") for seed in range(20)]
    for keys in drawn:
        assert not (keys & source).any()
        assert (keys & ~prompt.mask("visual")).sum() == 0
        others = prompt.mask("image") & ~source
        assert torch.equal(keys.sum(1), torch.minimum(source.sum(1), others.sum(1)))
    assert torch.equal(drawn[0], random_keys(prompt, source, target, "0"))
    few = prompt.mask("image") & (prompt.mask("image").cumsum(1) == 1)
    assert len({tuple(random_keys(prompt, few, target, f"{s}").flatten().tolist()) for s in range(20)}) > 1


def test_words_are_compared_with_words_that_the_rows_see_and_not_with_the_beginning():
    family = case("llava")
    prompt = family.prompt
    source, target = prompt.mask("question") & ~prompt.mask("last"), prompt.mask("last")
    keys = random_keys(prompt, source, target, "0")
    allowed = prompt.mask("text") & ~prompt.mask("bos") & ~source & ~target
    assert torch.equal(keys & allowed, keys)
    everything = prompt.mask("text") & ~prompt.mask("last")
    assert not random_keys(prompt, everything, target, "0").any()
    first = torch.zeros_like(source)
    first[0, 2] = True
    later = random_keys(prompt, prompt.mask("question"), first, "0")
    assert not later[:, 2:].any()  # those behind the target row are not seen


def test_the_control_is_the_cut_of_these_very_keys():
    family = double("llava")
    route = (half_of_the_image, "last")
    flow = information_flow(family.lens, family.prompt, [route], 1, n_random=2, seed=5)
    token = int(family.lens.run(family.prompt, logits="last").logits[0, 0].argmax())
    plain = family.lens.run(family.prompt, logits="last").logits[0, 0].log_softmax(-1)[token]
    source, target = half_of_the_image(family.prompt), family.prompt.mask("last")
    for layer in range(family.n_layers):
        changes = []
        for draw in (1, 2):
            keys = random_keys(family.prompt, source, target, f"5 0 half_of_the_image -> last {draw}")
            run = family.lens.run(family.prompt, [Knockout(keys, "last", [layer])], logits="last")
            changes.append(100 * ((run.logits[0, 0].log_softmax(-1)[token] - plain).exp() - 1))
        assert float(flow.control[0, layer]) == pytest.approx(float(sum(changes) / 2), abs=1e-5)
    n_own, n_image = int(source.sum()), int(family.prompt.mask("image").sum())
    assert flow.n_random_keys.tolist() == [[min(n_own, n_image - n_own)]]


def test_on_the_model_in_the_box_the_things_carry_the_answer_and_as_many_other_patches_do_not(lens):
    examples = {x.question: x for x in shapes.examples(12, kinds=["color"], seed=1)}
    prompts = [lens.prompt(x.question, images=x.image) for x in examples.values()]
    scenes = dict(zip(map(id, prompts), examples.values(), strict=True))

    def things(prompt):
        positions = set()
        for box in shapes.boxes(scenes[id(prompt)].scene).values():
            positions |= set(prompt.positions_in_box(box))
        return sorted(positions)

    flow = information_flow(lens, prompts, [(things, "last"), ("image", "last")], 3)
    assert flow.values[0, 2] < -50
    assert flow.control[0, 2] > flow.values[0, 2] / 2
    assert flow.control[1].isnan().all()
    assert flow.matched[1] == 0
    assert "things -> last" in repr(flow)
    assert "there are no other keys of its kind" in repr(flow)
