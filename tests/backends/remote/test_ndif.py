"""Ask the real NDIF, or any service: does all this work there? Collected only where somebody wants it:

    LMM_LENS_NDIF_MODEL=llava-hf/llava-1.5-7b-hf NDIF_API_KEY=... python -m pytest -s tests/backends/remote/test_ndif.py

Tests run offline, so the model's config and processor must be in the Hub's cache before (`hf download NAME --include
"*.json"`). NDIF_HOST=http://127.0.0.1:PORT asks a service instead, a folder is then the model's name:

    python -I -S tests/backends/remote/server.py --packages SITE_PACKAGES --model FOLDER --repo FOLDER --port PORT

It prints what it finds; what a server may lack without harm (nested sources, large payloads) fails no test.
"""

import os
import time
from typing import Any

import httpx
import nnsight
import pytest
import torch
from PIL import Image

from lmm_lens import VAR, AblateHeads, HeadSet, Lens, Read, activation_patching, find_sinks, score_heads
from lmm_lens.backends.nnsight.refusals import running_models
from lmm_lens.backends.nnsight.remote import ServerBackend
from lmm_lens.errors import RemoteError, ScoreError

MODEL, HOST = os.environ["LMM_LENS_NDIF_MODEL"], os.environ.get("NDIF_HOST")
MEGABYTES = (1, 4, 16, 64)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlike elsewhere, with the key of whoever runs this."""
    monkeypatch.setattr(nnsight.CONFIG.APP, "REMOTE_LOGGING", False)
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", os.environ["NDIF_API_KEY"])
    if HOST:
        monkeypatch.setattr(nnsight.CONFIG.API, "HOST", HOST)


@pytest.fixture(scope="module")
def remote_lens() -> Lens:
    """Without weights here."""
    return Lens.from_pretrained(MODEL, backend="nnsight", remote=HOST or True, timeout=900)


@pytest.fixture(scope="module")
def question(remote_lens: Lens) -> Any:
    half = Image.new("RGB", (336, 336), "red")
    half.paste((0, 0, 255), (0, 0, 168, 336))
    return remote_lens.prompt("What color is the left side of the picture?", images=half)


@pytest.fixture(autouse=True)
def told(request: pytest.FixtureRequest) -> Any:
    """How long each question took."""
    started = time.monotonic()
    yield
    print(f"  ({request.node.name}: {time.monotonic() - started:.1f} s)")


def test_which_models_are_hosted() -> None:
    told = httpx.get(f"{nnsight.CONFIG.API.HOST}/status", timeout=60).raise_for_status().json()
    found = dict(running_models(told["deployments"]))  # nnsight.status() leaves out what a server cannot describe
    seeing = [name for name, task in found.items() if "image-text" in str(task)]
    print(f"\n  hosted: {len(found)} models, of them vision-language models: {', '.join(seeing) or 'none'}")
    assert MODEL in seeing, f"{MODEL} is not among them; hosted are: {found}"


def test_versions() -> None:
    there = nnsight.ndif.get_remote_env(force_refresh=True)
    found = {name: there["packages"].get(name) for name in ("nnsight", "torch", "transformers")}
    print(f"\n  there: {found}")
    assert all(found.values())


def test_a_run(remote_lens: Lens, question: Any) -> None:
    reads = [Read("pattern", rows="last"), Read("z", rows="last"), Read("resid_post", [0], rows="last")]
    run = remote_lens.run(question, read=reads, logits="last")
    layer = remote_lens.n_layers - 1
    sums = run.reads["pattern", layer].sum(-1)
    print(
        f"\n  run: best next token {run.logits[0, -1].argmax().item()}, pattern rows sum to {sums.min():.3f} and more"
    )
    assert run.logits.isfinite().all()
    assert (sums - 1).abs().max() < 0.02
    again = remote_lens.run(question, logits="last").logits
    assert (again - run.logits).abs().max() <= 0.05 * run.logits.abs().max()


def test_a_generation_and_an_edit(remote_lens: Lens, question: Any) -> None:
    plain = remote_lens.generate(question, max_new_tokens=8)
    every = HeadSet(
        [(layer, head) for layer in range(1, remote_lens.n_layers) for head in range(remote_lens.n_heads)],
        remote_lens.n_layers,
        remote_lens.n_heads,
    )
    edited = remote_lens.generate(question, [AblateHeads(every, rows="after_image")], max_new_tokens=8)
    print(f"\n  generate: {plain.text[0]!r}; without its heads {edited.text[0]!r}")
    assert edited.reports[0].n_edits > 0
    assert not torch.equal(plain.tokens, edited.tokens)


def test_var_and_sinks(remote_lens: Lens, question: Any) -> None:
    report = find_sinks(remote_lens, question)
    print(f"\n  {report}")
    assert all(0 <= dim < remote_lens.shape.d_model for dim in report.dims)
    if report:
        var = VAR(sink_dims=report.dims, sink_threshold=report.threshold, min_nonsink_ratio=0.1)
        out = remote_lens.generate(question, [var], max_new_tokens=8)
        print(f"  {out.reports[0]}; {out.text[0]!r}")
        assert out.reports[0].n_edits > 0


def test_scores(remote_lens: Lens, question: Any) -> None:
    scores = score_heads(remote_lens, question)
    print(f"\n  {scores.top(5)}")
    assert scores.values.isfinite().any()
    assert float(scores.values.nan_to_num().max()) <= 1.001


def test_a_patching_job(remote_lens: Lens, question: Any) -> None:
    other = remote_lens.prompt(
        "What color is the left side of the picture?", images=Image.new("RGB", (336, 336), "red")
    )
    layers = [remote_lens.n_layers // 2]
    says = {int(remote_lens.run(prompt, logits="last").logits[0, 0].argmax()) for prompt in (question, other)}
    if len(says) == 1:
        with pytest.raises(ScoreError, match="no logit difference tells the two runs apart"):
            activation_patching(remote_lens, question, other, layers=layers)
    else:
        grid = activation_patching(remote_lens, question, other, layers=layers)
        print(f"\n  {grid}")
        assert grid.values.isfinite().all()


def test_a_trace(remote_lens: Lens, question: Any) -> None:
    with remote_lens.trace(question):
        z = remote_lens.read(1, "z").save()
        remote_lens.write(1, "z", z * 0)
        logits = remote_lens.envoy.output.logits[:, -1].save()
    read = remote_lens.run(question, read=[Read("z", [1])], logits="last")
    print(f"\n  trace: z of layer 1 is {tuple(z.shape)}")
    assert (z.cpu() - read.reads["z", 1].cpu()).abs().max() <= 0.05 * z.abs().max()
    assert not torch.equal(logits.cpu(), read.logits[:, 0].cpu())


def test_nested_sources(remote_lens: Lens, question: Any) -> None:
    """lmm-lens needs none; nnsight's own examples use them."""
    layer = remote_lens._backend.model_envoys.layers[1]
    attention, call = layer.attention, layer.attention_call
    try:
        with remote_lens.trace(question):
            names = nnsight.save(list(getattr(attention.source, call).source.names))
    except Exception as error:
        print(f"\n  nested sources: no ({str(error).splitlines()[0][:150]})")
    else:
        print(f"\n  nested sources: yes, {len(names)} operations")
        assert names


def test_how_large_a_payload_may_be(remote_lens: Lens, question: Any) -> None:
    accepted = 0
    for size in MEGABYTES:
        ballast = torch.randint(0, 256, (size, 1024, 1024), dtype=torch.uint8)
        try:
            with remote_lens.trace(question):
                total = nnsight.save(int(ballast.sum()))
        except RemoteError as error:
            print(f"\n  payload of {size} MB: {str(error).splitlines()[0][:150]}", end="")
            break
        assert total == int(ballast.sum())
        accepted = size
    print(f"\n  payloads of {accepted} MB are accepted; a photo on LLaVA-1.5-7B needs less than 0.5")
    assert accepted >= 1


def test_the_key_is_not_shown(remote_lens: Lens, question: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = "not-a-key-0123456789"
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", wrong)
    backend = ServerBackend("x", HOST, {}, 1.0)
    assert wrong not in repr(backend)
    try:
        remote_lens.run(question)
        said = "accepted"
    except RemoteError as error:
        said = f"{error}\n{error.details}"
    print(f"\n  a wrong key: {said.splitlines()[0]}")
    assert wrong not in said
