"""Information flow over streams: in a folder that loses nothing, over Ray, with rows of a data set that are no use."""

import os
import signal
from dataclasses import replace

import pytest
import torch

from lmm_lens import InformationFlow, Knockout, data, information_flow
from lmm_lens.errors import LensError, ScoreError
from lmm_lens.flow.work import FlowItems
from lmm_lens.prompts.prompt import Prompt
from lmm_lens.runs import RunFolder

ROUTES = [("image", "last"), ("question", "last")]
OPTIONS = {"routes": ROUTES, "window": 2, "layers": [0, 2]}
NUMBERS = ("per_prompt", "control_per_prompt", "base", "n_keys", "n_random_keys", "n_tokens")


@pytest.fixture(scope="module")
def samples(lens):
    """Five questions, the third of which the model answers otherwise than it says there."""
    samples = list(data.shapes(5, kinds=["color"], seed=3))
    samples[2] = replace(samples[2], answer="two", wrong=None)
    return samples


@pytest.fixture(scope="module")
def whole(lens, samples) -> InformationFlow:
    return information_flow(lens, samples, **OPTIONS)


def same(one: InformationFlow, other: InformationFlow) -> bool:
    numbers = (torch.equal(getattr(one, name).nan_to_num(), getattr(other, name).nan_to_num()) for name in NUMBERS)
    told = (getattr(one, name) == getattr(other, name) for name in ("ids", "left_out", "how", "routes", "layers"))
    return all(numbers) and all(told)


def test_killed_again_and_again_it_ends_with_the_same_numbers(lens, samples, whole, tmp_path):
    def until(n):
        for index, sample in enumerate(samples):
            if index == n:
                os.kill(os.getpid(), signal.SIGKILL)
            yield sample

    kept = []
    for n in (1, 4):
        child = os.fork()
        if child == 0:  # a process of its own, with the model already loaded
            try:
                torch.set_num_threads(1)
                information_flow(lens, until(n), folder=tmp_path / "run", seconds_per_part=0.0, **OPTIONS)
            finally:
                os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        so_far = InformationFlow.open(tmp_path / "run")
        kept.append(so_far.n_prompts)
        assert torch.equal(so_far.per_prompt, whole.per_prompt[: so_far.n_prompts])
        assert not RunFolder.open(tmp_path / "run").finished
    assert kept == [1, 3]
    read = []
    given = information_flow(lens, _told(samples, read), folder=tmp_path / "run", **OPTIONS)
    assert same(given, whole)
    assert same(InformationFlow.open(tmp_path / "run"), whole)
    (right,) = (each.answer for each in data.shapes(5, kinds=["color"], seed=3) if each.id == samples[2].id)
    assert whole.left_out == {samples[2].id: right}
    assert read == [each.id for each in samples]


def _told(samples, read):
    for sample in samples:
        read.append(sample.id)
        yield sample


def test_rows_of_a_batch_and_answers_of_several_tokens_are_found_again(lens, samples, tmp_path):
    asked = [sample.prompt(lens) for sample in samples[:2]]
    batch = lens.prompt(
        [sample.question for sample in samples[:2]], images=[sample.images[0] for sample in samples[:2]]
    )
    answers = [sample.answer for sample in samples[:2]]
    first = information_flow(lens, batch, answers=answers, folder=tmp_path / "run", **OPTIONS)
    again = information_flow(lens, batch, answers=answers, folder=tmp_path / "run", **OPTIONS)
    assert same(again, first)
    assert first.ids == ("prompt 0", "prompt 1")
    torch.testing.assert_close(
        first.per_prompt, information_flow(lens, asked, **OPTIONS).per_prompt, atol=0.05, rtol=1e-3
    )
    with pytest.raises(ScoreError, match=r"item 1 \(prompt 1\) is another than before: its answers changed"):
        information_flow(lens, batch, answers=[answers[0], "two"], folder=tmp_path / "run", **OPTIONS)
    assert [item.number for item in FlowItems([batch, *asked], None)] == [0, 0, 1, 2]


def test_a_changed_question_is_refused_or_computed_anew(lens, samples, whole, tmp_path):
    information_flow(lens, samples, folder=tmp_path / "run", **OPTIONS)
    other = next(iter(data.shapes(1, kinds=["color"], seed=8)))
    swapped = [samples[0], replace(other, id=samples[1].id), *samples[2:]]
    with pytest.raises(ScoreError, match=rf"item 1 \({samples[1].id}\) is another than before"):
        information_flow(lens, swapped, folder=tmp_path / "run", **OPTIONS)
    given = information_flow(lens, swapped, folder=tmp_path / "run", changed="recompute", **OPTIONS)
    assert same(given, information_flow(lens, swapped, **OPTIONS))
    assert not same(given, whole)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"window": 3}, "window"),
        ({"layers": [1]}, "layers"),
        ({"routes": [("image", "last")]}, "routes"),
        ({"n_random": 2}, "n_random"),
        ({"seed": 1}, "seed"),
        ({"count": "first"}, "count"),
    ],
)
def test_a_folder_is_of_one_question(lens, samples, tmp_path, other, said):
    information_flow(lens, samples[:1], folder=tmp_path / "run", **OPTIONS)
    with pytest.raises(ScoreError, match=said):
        information_flow(lens, samples[:1], folder=tmp_path / "run", **{**OPTIONS, **other})


def test_functions_of_a_route_are_known_by_what_they_do(lens, samples, tmp_path):
    def things(first):
        def half(prompt: Prompt):
            return prompt.mask("image") & (prompt.mask("image").cumsum(1) % 2 == first)

        return half

    run = tmp_path / "run"
    first = information_flow(lens, samples[:1], [(things(0), "last")], 2, layers=[0], folder=run)
    again = information_flow(lens, samples[:1], [(things(0), "last")], 2, layers=[0], folder=run)
    assert same(first, again)
    with pytest.raises(ScoreError, match="functions"):
        information_flow(lens, samples[:1], [(things(1), "last")], 2, layers=[0], folder=run)


def test_an_enclosing_apply_is_another_run_and_does_not_travel(lens, samples, tmp_path):
    information_flow(lens, samples[:1], folder=tmp_path / "run", **OPTIONS)
    with lens.apply(Knockout("image", "last", [1])):
        with pytest.raises(ScoreError, match="applied"):
            information_flow(lens, samples[:1], folder=tmp_path / "run", **OPTIONS)
        with pytest.raises(LensError, match=r"open lenses of their own: Knockout would not be applied there"):
            information_flow(lens, samples[:1], ray=1, **OPTIONS)
        lens.run(samples[0].prompt(lens))


def test_rows_that_give_no_prompt_are_named_beside_those_answered_otherwise(lens, tmp_path):
    good = list(data.shapes(2, kinds=["color"], seed=3))
    for number, sample in enumerate(good):
        sample.images[0].save(tmp_path / f"{number}.png")
    lines = [f"{i},{sample.question},{sample.answer},{i}.png" for i, sample in enumerate(good)]
    table = tmp_path / "asked.csv"
    table.write_text("\n".join(["id,question,answer,image", *lines, "9,what color is it?,red,gone.png"]) + "\n")
    rows = data.table(table, on_bad="skip")
    flow = information_flow(lens, rows, **OPTIONS)
    assert flow.n_prompts == 2
    assert flow.problems.count == 1
    assert "gone.png" in str(flow.problems)
    assert "1 bad row left out" in repr(flow)
    assert flow.left_out == {}
    flow.save(tmp_path / "flow.safetensors")
    assert repr(InformationFlow.load(tmp_path / "flow.safetensors")) == repr(flow)


def test_when_memory_runs_out_the_folder_knows_the_smaller_batch(lens, samples, tmp_path):
    information_flow(lens, samples[:1], folder=tmp_path / "run", **OPTIONS)
    with pytest.raises(ScoreError, match="rows_per_pass is at least 1, given 0"):
        information_flow(lens, samples[:1], rows_per_pass=0, **OPTIONS)
    fresh = tmp_path / "halved"
    about = dict(RunFolder.open(tmp_path / "run").about)
    with RunFolder(fresh, "information flow", about) as folder:
        folder.note(rows_per_pass=64)  # as a run that was killed after memory ran out
    given = information_flow(lens, samples[:1], folder=fresh, **OPTIONS)
    assert "1 of them in smaller batches, since memory ran out" in given.how


@pytest.mark.long
def test_workers_of_a_cluster_give_the_same_numbers(lens, samples, tmp_path):
    # as tensors: a worker may have another image processor installed than the tests
    prompts, answers = [each.prompt(lens) for each in samples], [each.answer for each in samples]
    here, there = (
        information_flow(lens, prompts, answers=answers, ray=ray, folder=tmp_path / f"{ray}", **OPTIONS)
        for ray in (None, 1)
    )
    assert same(there, here)
    assert len(here.left_out) == 1
