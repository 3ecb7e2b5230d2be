"""Runs that read and edit the vision tower, packed as for a server: the native answer on every kind of tower."""

import pytest

from lmm_lens import AblateHeads, Lens, Read
from tests.support.families import TOWERS, lens_of, prompt_of

QUICK = ("llava", "qwen2_5_vl", "mllama")
SITES = ("resid_pre", "z", "attn_out", "mlp_out", "resid_post")


@pytest.fixture(params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in TOWERS])
def name(request):
    return request.param


def test_a_run_on_a_server_reads_and_edits_as_one_here(name):
    native, prompt = lens_of(name), prompt_of(name)
    if not native.adapter.has_tower_heads:
        return
    lens = Lens(native.model, native.processor, backend="nnsight", remote="local")
    patterns = "pattern" in lens._backend.model_envoys.tower[0].sites
    assert patterns
    edits = [AblateHeads([(0, 1)], part="vision"), *([AblateHeads([(0, 0)], "uniform", part="vision")] * patterns)]
    reads = [Read(f"vision.{site}", [0]) for site in (*SITES, *(["pattern"] * patterns))]
    given, expected = (each.run(prompt, edits, reads) for each in (lens, native))
    assert float((given.logits - expected.logits).abs().max()) < 1e-4
    assert given.reads.keys() == expected.reads.keys()
    for at, value in expected.reads.items():
        assert float((given.reads[at] - value).abs().max()) < 1e-4, at
    assert [report.edits for report in given.reports] == [report.edits for report in expected.reports]
    assert (given.tower.n_rows, given.tower.n_tokens) == (expected.tower.n_rows, expected.tower.n_tokens)
