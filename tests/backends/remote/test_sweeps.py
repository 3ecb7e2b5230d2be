"""A sweep that loses its service goes on where it was, and ends with the numbers of one that lost nothing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lmm_lens import AblateHeads, Lens, activation_patching, score_heads
from lmm_lens.errors import RemoteError, ScoreError
from lmm_lens.patching import by_forwards
from lmm_lens.runs.checkpoint import unfinished
from tests.backends.remote.clients import same
from tests.backends.remote.service import Service

pytestmark = pytest.mark.attack

OPTIONS = {"site": "resid_pre", "by": "span", "layers": [1, 2, 3, 4], "tokens_per_pass": 400}
"""Four copies of the pair a pass and seven spans: two passes a layer."""


@pytest.fixture(autouse=True)
def small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer a job: four jobs after the two runs that find the answers."""
    monkeypatch.setattr(by_forwards, "PASSES_PER_JOB", 2)


@pytest.fixture
def undisturbed(served: Lens, pair: Any, once: dict[str, Any]) -> Any:
    """The grid of a sweep that lost nothing."""
    if "grid" not in once:
        once["grid"] = activation_patching(served, *pair, **OPTIONS)
    return once["grid"]


@pytest.fixture(scope="module")
def once() -> dict[str, Any]:
    return {}


def n_done(service: Service, since: int) -> int:
    return sum(entry.get("status") == "COMPLETED" for entry in service.log()[since:])


def test_killed_in_the_middle_and_started_again(
    native: Lens, pair: Any, undisturbed: Any, fresh_service: Service, sent: list, tmp_path: Path
) -> None:
    """The service's process ends at the second of the four jobs; once with what the lens kept, once with a file."""
    lens = Lens.demo(backend="nnsight", remote=fresh_service.url)
    file = tmp_path / "grid.ckpt"
    fresh_service.fault("die", after=3)
    with pytest.raises(RemoteError, match="nothing that finished is lost"):
        activation_patching(lens, *pair, **OPTIONS, checkpoint=file)
    assert fresh_service.wait() == 17
    on_disk = file.read_bytes()
    fresh_service.restart()

    assert lens.remote == fresh_service.url
    n_sent = len(sent)
    resumed = activation_patching(lens, *pair, **OPTIONS)  # without the file: what the lens has
    assert torch.equal(resumed.per_pair, undisturbed.per_pair)
    assert len(sent) - n_sent == 2 + 3  # the two runs, and the three jobs that were left
    assert not unfinished(lens)
    assert file.read_bytes() == on_disk

    other = Lens.demo(backend="nnsight", remote=fresh_service.url)
    n_before = len(fresh_service.log())
    resumed = activation_patching(other, *pair, **OPTIONS, checkpoint=file)
    assert torch.equal(resumed.per_pair, undisturbed.per_pair)
    assert n_done(fresh_service, n_before) == 2 + 3
    again = activation_patching(other, *pair, **OPTIONS, checkpoint=file)
    assert torch.equal(again.per_pair, undisturbed.per_pair)
    assert n_done(fresh_service, n_before) == 2 + 3 + 2
    same(resumed.per_pair, activation_patching(native, *pair, **OPTIONS).per_pair)


def test_refused_again_and_again(served: Lens, pair: Any, undisturbed: Any, service: Service) -> None:
    """One job succeeds before each failure."""
    failures = 0
    n_before = len(service.log())
    for after in (3, 3, 3):
        service.fault("drop", after=after)
        with pytest.raises(RemoteError):
            activation_patching(served, *pair, **OPTIONS)
        failures += 1
    service.fault(None)
    assert torch.equal(activation_patching(served, *pair, **OPTIONS).per_pair, undisturbed.per_pair)
    jobs = [entry for entry in service.log()[n_before:] if entry.get("status") == "COMPLETED"]
    assert len(jobs) == 2 * 4 + 4  # two runs of each of four calls, and each of the four jobs once
    assert failures == 3


def test_what_is_kept_is_not_taken_for_another_experiment(
    served: Lens, native: Lens, pair: Any, service: Service
) -> None:
    service.fault("drop", after=3)
    with pytest.raises(RemoteError):
        activation_patching(served, *pair, **OPTIONS)
    service.fault(None)
    clean, corrupt = pair
    for prompts, options in (((corrupt, clean), OPTIONS), (pair, {**OPTIONS, "site": "mlp_out"})):
        same(
            activation_patching(served, *prompts, **options).per_pair,
            activation_patching(native, *prompts, **options).per_pair,
        )


RESUME = """
import os, sys
import torch
torch.set_num_threads(1)
from lmm_lens import Lens, activation_patching
from lmm_lens.patching import by_forwards
url, file, inputs, out = sys.argv[1:]
by_forwards.PASSES_PER_JOB = 2
lens = Lens.demo(backend="nnsight", remote=url)
clean, corrupt = (lens.prompt(inputs=each) for each in torch.load(inputs))
grid = activation_patching(lens, clean, corrupt, checkpoint=file, **OPTIONS)
torch.save(grid.per_pair, out)
"""


def test_another_process_goes_on_with_the_file(
    served: Lens, pair: Any, undisturbed: Any, service: Service, tmp_path: Path
) -> None:
    """It gets the same tensors: with torchvision, as here, a processor's pixels differ in the last digit."""
    file, script, inputs, out = (tmp_path / name for name in ("grid.ckpt", "resume.py", "inputs.pt", "grid.pt"))
    torch.save([prompt.inputs for prompt in pair], inputs)
    service.fault("drop", after=4)
    with pytest.raises(RemoteError):
        activation_patching(served, *pair, **OPTIONS, checkpoint=file)
    service.fault(None)
    n_before = len(service.log())
    script.write_text(RESUME.replace("OPTIONS", repr(OPTIONS)))
    command = [sys.executable, str(script), service.url, str(file), str(inputs), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(out), undisturbed.per_pair)
    assert n_done(service, n_before) == 2 + 2


def test_checkpoints_that_do_not_fit(served: Lens, pair: Any, service: Service, tmp_path: Path) -> None:
    file = tmp_path / "grid.ckpt"
    grid = activation_patching(served, *pair, **OPTIONS, checkpoint=file)
    n_before = len(service.log())
    clean, corrupt = pair
    others = [
        ((corrupt, clean), OPTIONS, "prompts"),
        (pair, {**OPTIONS, "layers": [1, 2]}, "layers"),
        (pair, {**OPTIONS, "site": "mlp_out"}, "site"),
        (pair, {**OPTIONS, "by": "patch"}, "by, units"),
    ]
    for prompts, options, differs in others:
        with pytest.raises(
            ScoreError,
            match=rf"'grid.ckpt' belongs to another experiment: it differs in {differs}\n  give another file",
        ):
            activation_patching(served, *prompts, **options, checkpoint=file)
    with pytest.raises(ScoreError, match=r"another experiment: it differs in the model \(.*the weights.* differ\)\n"):
        activation_patching(Lens.demo("plain"), *pair, **OPTIONS, checkpoint=file)
    with pytest.raises(ScoreError, match=r"grid.ckpt"):
        score_heads(served, pair[0], checkpoint=file)
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-3], b"", b"not a checkpoint" * 10):
        file.write_bytes(damaged)
        with pytest.raises(ScoreError, match=r"grid.ckpt"):
            activation_patching(served, *pair, **OPTIONS, checkpoint=file)
        assert file.read_bytes() == damaged  # left for the user to look at
    with pytest.raises(ScoreError):
        activation_patching(served, *pair, **OPTIONS, checkpoint=tmp_path / "no such folder" / "grid.ckpt")
    assert len(service.log()) == n_before, "all of that is found out before anything is sent"
    file.write_bytes(whole)
    assert torch.equal(activation_patching(served, *pair, **OPTIONS, checkpoint=file).per_pair, grid.per_pair)
    assert [each.name for each in tmp_path.iterdir()] == ["grid.ckpt"]


# ---------------------------------------------------------------------- scores of many prompts


@pytest.fixture
def prompts(pair: Any, batch: Any) -> list[Any]:
    return [pair[0], batch, pair[1]]


@pytest.mark.parametrize("query", ["last", "answer"])
@pytest.mark.parametrize("kept", ["lens", "file"])
def test_scores_go_on_after_a_loss(
    served: Lens, native: Lens, prompts: list[Any], service: Service, tmp_path: Path, query: str, kept: str
) -> None:
    options = {"metric": "nonsink_mass", "query": query, "interventions": [AblateHeads([(1, 2)])]}
    expected = score_heads(served, prompts, **options)
    checkpoint = tmp_path / "scores.ckpt" if kept == "file" else None
    service.fault("drop", after=2)
    with pytest.raises(RemoteError):
        score_heads(served, prompts, **options, checkpoint=checkpoint)
    service.fault(None)
    n_before = len(service.log())
    if kept == "file":
        unfinished(served).clear()  # as in a new process
    given = score_heads(served, prompts, **options, checkpoint=checkpoint)
    assert len(service.log()) - n_before == 1  # the last prompt alone
    assert torch.equal(given.per_prompt, expected.per_prompt)
    same(given.per_prompt, score_heads(native, prompts, **options).per_prompt)
    assert not unfinished(served)


def test_kept_scores_are_not_taken_for_others(served: Lens, native: Lens, prompts: list[Any], service: Service) -> None:
    service.fault("drop", after=2)
    with pytest.raises(RemoteError):
        score_heads(served, prompts)
    service.fault(None)
    changed: list[dict[str, Any]] = [
        {"metric": "concentration"},
        {"query": "answer"},
        {"interventions": [AblateHeads([(1, 2)])]},
        {"interventions": [AblateHeads([(1, 3)])]},
    ]
    for options in changed:
        same(score_heads(served, prompts, **options).values, score_heads(native, prompts, **options).values)
    backwards = prompts[::-1]
    same(score_heads(served, backwards).per_prompt, score_heads(native, backwards).per_prompt)


def test_a_checkpoint_of_other_scores_is_refused(served: Lens, prompts: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "scores.ckpt"
    score_heads(served, prompts, "nonsink_mass", checkpoint=file)
    for options, differs in (
        ({"metric": "concentration"}, "metric"),
        ({"metric": "nonsink_mass", "query": "answer"}, "query"),
        ({"metric": "nonsink_mass", "interventions": [AblateHeads([(1, 2)])]}, "interventions"),
        ({"metric": "nonsink_mass", "sink_threshold": 3.0}, ""),
    ):
        with pytest.raises(ScoreError, match=rf"belongs to another experiment: it differs in .*{differs}"):
            score_heads(served, prompts, **options, checkpoint=file)
