"""Llama 4's mixtures of experts give the tokens of all batch rows end to end: read and edited in their places."""

from functools import cache

import pytest
import torch
from torch import nn

from lmm_lens import Edit, PatchResidual, Read, activation_patching
from lmm_lens.core.flat import in_rows
from lmm_lens.core.tapping import check_stream
from lmm_lens.errors import HookError
from tests.support.cases import Case, close, plain
from tests.support.decoders import DECODERS

FLAT, DENSE = 1, 0  # experts in every other layer
BACKENDS = ["native", "transformer_lens", pytest.param("nnsight", marks=pytest.mark.long), "remote"]


@cache
def llama4() -> Case:
    return Case("llama4", *DECODERS["llama4"]())


def zeroed_by_hand(case, inputs, positions):
    """Logits with the experts' output set to 0 at a position of each batch row, and that output as it was."""
    kept = {}

    def after(module: nn.Module, args, output):
        flat, routing = output
        assert flat.ndim == 2
        rows = flat.reshape(*inputs["input_ids"].shape, -1).clone()
        kept["out"] = rows.clone()
        for row, position in enumerate(positions):
            rows[row, position] = 0
        return rows.reshape(flat.shape), routing

    hook = case.model.get_decoder().layers[FLAT].feed_forward.register_forward_hook(after)
    try:
        return plain(case.model, inputs), kept["out"]
    finally:
        hook.remove()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_a_batch_with_padding_are_read_and_edited_where_they_are(backend):
    case = llama4()
    _, inputs = case.pair()
    lens = case.on(backend)
    prompt = lens.prompt(inputs=inputs)
    first, asked = (prompt.mask(name).int().argmax(1).tolist() for name in ("all", "question"))
    assert first[0] != first[1], "one row is padded on the left"
    at = [first[0] + 1, asked[1]]
    expected, out = zeroed_by_hand(case, inputs, at)
    rows = torch.zeros_like(prompt.mask("question"))
    rows[[0, 1], at] = True
    run = lens.run(prompt, [Edit("mlp_out", lambda x, context: 0 * x, rows=rows, layers=[FLAT])])
    real, uncut = prompt.mask("all"), plain(case.model, inputs)
    close(run.logits[real], expected[real])
    assert (run.logits - uncut)[real].abs().max() > 1e-3
    read = lens.run(prompt, read=[Read("mlp_out", [FLAT, DENSE], rows=rows)])
    close(read.reads["mlp_out", FLAT][:, 0], out[[0, 1], at])
    close(read.logits[real], uncut[real])


@pytest.mark.parametrize("backend", BACKENDS)
def test_while_generating_too(backend):
    case = llama4()
    lens, prompt = case.on(backend), case.prompt
    pixels = case.pair()[0][1]["pixel_values"]
    other = case.lens.prompt(inputs={**case.inputs, "pixel_values": pixels})
    clean = case.lens.run(other, read=[Read("mlp_out", [FLAT], rows="last")])
    edits = [PatchResidual([FLAT], clean, rows="last", site="mlp_out"), Edit("mlp_out", half, rows="generating")]
    native, given = (each.generate(prompt, edits, max_new_tokens=3, logits=True) for each in (case.lens, lens))
    assert given.tokens.tolist() == native.tokens.tolist()
    close(given.logits, native.logits)
    assert [report.n_edits for report in given.reports] == [report.n_edits for report in native.reports]
    assert (native.logits - case.lens.generate(prompt, max_new_tokens=3, logits=True).logits).abs().max() > 1e-3


def half(x, context):
    return 0.5 * x


def test_patched_by_replay_it_is_what_forwards_give():
    case = llama4()
    clean, corrupt = case.pair()[0]
    prompts = [
        case.lens.prompt(inputs=inputs) for inputs in (clean, {**clean, "pixel_values": corrupt["pixel_values"]})
    ]
    task = {"answers": [(3, 4)], "site": "mlp_out", "by": "span"}
    scores = activation_patching(case.lens, *prompts, **task)
    run = case.lens.run(prompts[0], read=[Read("mlp_out", [FLAT], rows="image")])
    patched = PatchResidual([FLAT], run, "image", "mlp_out")
    lds = []
    for prompt, edits in ((prompts[0], []), (prompts[1], []), (prompts[1], [patched])):
        logits = case.lens.run(prompt, edits, logits="last").logits[0, 0]
        lds.append(float(logits[3] - logits[4]))
    expected = (lds[2] - lds[1]) / (lds[0] - lds[1])
    assert float(scores.values[FLAT, scores.units.index("image")]) == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be_told_apart_is_refused_and_said():
    flat = torch.zeros(6, 4)
    assert in_rows(flat, torch.zeros(2, 3, 4)).shape == (2, 3, 4)
    for entered in (None, torch.zeros(6, 4), torch.zeros(1, 3, 4)):
        assert in_rows(flat, entered) is flat
    with pytest.raises(HookError) as caught:
        check_stream(flat, "mlp_out", 3)
    assert str(caught.value).splitlines() == [
        "mlp_out of layer 3 is not [batch, token, width] but (6, 4): its module does not keep the tokens of batch rows "
        "apart, as some mixtures of experts do not",
        "  read and edit resid_pre and resid_post instead, whose difference holds it",
    ]
