"""Answers, losses of given answers and what was edited, against the model itself."""

import hashlib

import pytest
import torch
from transformers import LogitsProcessorList

from lmm_lens import AblateHeads
from lmm_lens.bundled import shapes
from lmm_lens.errors import InterventionError, LensError
from lmm_lens.harnesses.asking import Asker, interventions_of
from lmm_lens.harnesses.options import Asked
from lmm_lens.interventions import to_json

HEADS = AblateHeads([(1, 4), (3, 4)], rows="generating")
SHORT = Asked.of({}, 4)


@pytest.fixture(scope="module", autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def asked():
    return [e for e in shapes.examples(20, seed=5) if " " in e.answer][:1] + shapes.examples(3, seed=5)


@pytest.fixture(scope="module")
def prompts(lens, asked):
    return [lens.prompt(e.question, images=e.image) for e in asked]


@pytest.mark.parametrize("edits", [(), (HEADS,)])
def test_answers_are_what_the_lens_says_and_a_batch_says_the_same(lens, asked, prompts, edits):
    asker = Asker(lens, edits)
    alone = [asker.answers(prompt, SHORT)[0] for prompt in prompts]
    for prompt, answer in zip(prompts, alone, strict=True):
        done = lens.generate(prompt, edits, max_new_tokens=4)
        assert (answer.text, answer.reports, answer.n_rows) == (done.text[0], done.reports, 1)
        assert answer.n_tokens == (prompt.n_tokens, len(lens.adapter.tokenizer(answer.text).input_ids) - 1)
    batch = lens.prompt([e.question for e in asked], images=[e.image for e in asked])
    together = asker.answers(batch, SHORT)
    assert [a.text for a in together] == [a.text for a in alone]
    if edits:
        assert sum(a.reports[0].n_edits for a in alone) == together[0].reports[0].n_edits
        assert together[0].edits()[0]["questions"] == len(asked)
        assert alone[0].edits()[0]["intervention"] == str(HEADS)


def test_an_answer_stops_where_it_is_told_to(lens, prompts):
    whole = Asker(lens).answers(prompts[0], SHORT)[0].text
    assert " " in whole
    stop = whole.split()[1][:2]
    stopped = Asker(lens).answers(prompts[0], Asked.of({"until": stop}, 20))[0]
    assert stopped.text == whole[: whole.index(stop)].strip()
    endless = Asked.of({"until": stop, "eos_token_id": []}, 50)
    assert Asker(lens).answers(prompts[0], endless)[0].n_tokens[1] < 10  # it did not go on behind the text


@pytest.mark.parametrize("answer", ["red", "middle left", " red"])
def test_losses_without_edits_are_those_of_one_forward_over_question_and_answer(lens, prompts, answer):
    tokenizer = lens.adapter.tokenizer
    for prompt in prompts[:2]:
        before = prompt.inputs["input_ids"]
        tail = tokenizer.decode(before[0, -3:])
        ids = tokenizer(tail + answer, add_special_tokens=False, return_tensors="pt").input_ids[:, 3:]
        inputs = {**prompt.inputs, "input_ids": torch.cat([before, ids], 1)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        logits = lens.model(**inputs).logits[0, before.shape[1] - 1 : -1]
        found = Asker(lens).loss(prompt, answer)
        expected = torch.nn.functional.cross_entropy(logits, ids[0])
        assert found.loss == pytest.approx(float(expected), abs=1e-4)
        assert found.greedy == bool((logits.argmax(-1) == ids[0]).all())
        assert found.answer.n_tokens == (prompt.n_tokens, ids.shape[1])


def test_losses_under_edits_are_those_of_generation(lens, asked, prompts):
    """The model is made to say the answer, with transformers' own list of processors, under the same edit."""
    prompt, answer = prompts[0], asked[0].answer
    ids = lens.adapter.tokenizer(" " + answer, add_special_tokens=False).input_ids
    said = iter(ids)

    def force(input_ids, scores):
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([next(said)]), 0.0)

    done = lens.generate(
        prompt, [HEADS], max_new_tokens=len(ids), logits=True, logits_processor=LogitsProcessorList([force])
    )
    assert done.tokens[0].tolist() == ids
    expected = torch.nn.functional.cross_entropy(done.logits[0], torch.tensor(ids))
    found = Asker(lens, (HEADS,)).loss(prompt, " " + answer)
    assert found.loss == pytest.approx(float(expected), abs=1e-4)
    assert found.loss != pytest.approx(Asker(lens).loss(prompt, " " + answer).loss, abs=1e-4)
    assert found.answer.reports[0].n_edits == 2 * len(ids)


def test_losses_that_have_no_meaning_are_refused(lens, asked, prompts):
    with pytest.raises(LensError, match="the answer '' has no tokens"):
        Asker(lens).loss(prompts[0], "")
    batch = lens.prompt([e.question for e in asked], images=[e.image for e in asked])
    with pytest.raises(LensError, match="losses are of one question at a time, given a batch of 4"):
        Asker(lens).loss(batch, "red")


def test_interventions_come_from_a_file_that_can_be_made_sure_of(tmp_path):
    path = tmp_path / "edits.json"
    path.write_text(to_json([HEADS]))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert interventions_of(None) == ()
    assert interventions_of(str(path)) == interventions_of(f"{path}#{digest[:8]}") == (HEADS,)
    with pytest.raises(InterventionError, match=rf"were changed: expected SHA-256 0000, found {digest[:4]}"):
        interventions_of(f"{path}#0000")
    with pytest.raises(InterventionError, match=r"cannot be read: No such file[^\n]*\n  write them with"):
        interventions_of(str(tmp_path / "other.json"))
