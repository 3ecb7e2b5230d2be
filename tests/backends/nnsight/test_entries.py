"""The residual stream where it enters a layer, read and edited as on a server, is the native one on every family."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from lmm_lens import AblateHeads, Intervention, Knockout, Lens, Read
from lmm_lens.backends.nnsight.entries import entries_of
from lmm_lens.backends.nnsight.witness import check_witnesses, witnesses
from lmm_lens.core.taps import Tap
from lmm_lens.errors import HookError, RemoteError
from lmm_lens.prompts.rows import bind_rows
from tests.support.families import EVERY, lens_of, prompt_of

TOLERANCE = 1e-4
STREAMS = ["gemma3n", "glm5_next"]
"""Whose layers hand on several residual streams."""
REFUSED = ["inkling2"]
"""Whose layers hand the stream to a mix of the streams of all layers before, beside these."""
UNSWITCHED = ["gemma3n", "fast_vlm"]
"""Whose tiny vision towers cannot be switched to eager attention, as a server does for every request."""
UNFOLLOWED = ["kimi_k25", "mistral_large4", "dots3_note", "got_ocr2", "pp_chart2table"]
"""Whose pattern is refused on a server: not the output of their attention, or not given by it."""
NOT_GENERATING = ["minimax_m3_vl"]
"""Whose `generate` does not take what their processor gives."""
SERVED = [name for name in EVERY if name not in (*STREAMS, *REFUSED, *UNSWITCHED)]


@dataclass(frozen=True)
class Reverse(Intervention):
    """The dimensions of a hook point in reverse."""

    layer: int
    site: str = "resid_pre"

    def taps(self, prompt: Any, shape: Any) -> list[Tap]:
        return [Tap(self.site, self.layer, bind_rows("all", prompt), lambda x, context: x.flip(-1), edits=True)]


@cache
def simulated(name: str) -> Lens:
    native = lens_of(name)
    return Lens(native.model, native.processor, backend="nnsight", remote="local")


def close(given: torch.Tensor, expected: torch.Tensor) -> None:
    scale = expected.abs().nan_to_num().max().clamp_min(1)
    assert given.shape == expected.shape
    assert float(((given - expected).abs() / scale).nan_to_num().max()) < TOLERANCE
    assert torch.equal(given.isnan(), expected.isnan())


@pytest.mark.parametrize("name", SERVED)
def test_edits_and_reads_in_every_layer_give_the_native_answer(name):
    prompt, shape = prompt_of(name), lens_of(name).shape
    edits = [Reverse(layer) for layer in range(shape.n_layers)]
    native, given = (lens.run(prompt, edits, read=["resid_pre"]) for lens in (lens_of(name), simulated(name)))
    close(given.logits, native.logits)
    for layer in range(shape.n_layers):
        close(given.reads["resid_pre", layer], native.reads["resid_pre", layer])
    assert (native.logits - lens_of(name).run(prompt).logits).abs().max() > 1e-3, "the edits have no effect to compare"


@pytest.mark.parametrize("name", [name for name in SERVED if name not in (*UNFOLLOWED, *NOT_GENERATING)])
def test_beside_edits_of_pattern_and_z_in_the_same_layer_step_by_step(name):
    prompt, layer = prompt_of(name), lens_of(name).shape.self_attention[-1]
    edits = [Reverse(layer), AblateHeads([(layer, 1)], rows="after_image"), Knockout("last", "text", layers=[layer])]
    options = {
        "read": [Read("resid_pre", [layer])],
        "max_new_tokens": 3,
        "logits": True,
        "min_new_tokens": 3,
        "pad_token_id": 0,
    }
    native, given = (lens.generate(prompt, edits, **options) for lens in (lens_of(name), simulated(name)))
    assert torch.equal(given.tokens, native.tokens)
    close(given.logits, native.logits)
    close(given.reads["resid_pre", layer], native.reads["resid_pre", layer])
    assert [report.edits for report in given.reports] == [report.edits for report in native.reports]


@pytest.mark.parametrize(("name", "generates"), [(name, name not in NOT_GENERATING) for name in SERVED])
def test_the_two_witnesses_agree(name, generates):
    lens, prompt = simulated(name), prompt_of(name)
    with torch.no_grad():
        done = lens._backend.run_job(pair_of(lens, prompt, generates))
    check_witnesses(done, "here")
    assert done[0].tapping.kept.keys() == done[1].tapping.kept.keys() == {("witness", lens.n_layers - 1)}


def pair_of(lens: Lens, prompt: Any, generates: bool) -> list[Any]:
    """The witnesses of a run that reads the stream as it enters every layer."""
    backend = lens._backend
    taps = lambda prompt: [Tap("resid_pre", layer, bind_rows("all", prompt), len) for layer in range(lens.n_layers)]  # noqa: E731
    run = backend.forward_run(prompt, taps, False)
    if generates:
        run = replace(run, options=backend.generating({"max_new_tokens": 7}), inputs=prompt.inputs)
    return witnesses(run, lens.n_layers)


@pytest.mark.parametrize("name", [name for name in STREAMS if name not in UNSWITCHED])
def test_several_streams_are_refused_as_natively(name):
    for lens in (lens_of(name), simulated(name)):
        with pytest.raises(HookError, match="residual stream"):
            lens.run(prompt_of(name), read=["resid_pre"])


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_that_uses_the_stream_in_another_way_is_refused(name):
    lens = simulated(name)
    entered = [bool(envoys.entries) for envoys in lens._backend.model_envoys.layers]
    assert True in entered
    assert False in entered
    layer = entered.index(False)
    with pytest.raises(HookError, match=rf"layer {layer} \(\w+\) has no resid_pre on a server") as caught:
        lens.run(prompt_of(name), [Reverse(layer)])
    assert str(caught.value).count("\n") == 1


# ---------------------------------------------------------------------- forwards


class Layer(nn.Module):
    """The parts of the forwards below."""

    def __init__(self, norm_first: bool = True) -> None:
        super().__init__()
        self.norm, self.attention, self.norm_first = nn.LayerNorm(4), Attention(), norm_first


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, mask):
        shape = x.shape[:-1]
        return (self.query(x) * self.key(input=x)).view(*shape, -1)


class PreNorm(Layer):
    def forward(self, hidden, mask=None):
        width = hidden.size(-1)
        kept = hidden
        hidden = self.norm(hidden)
        return kept + self.attention(hidden, mask) + width


class PostNorm(Layer):
    def forward(self, hidden, mask=None):
        kept = hidden
        hidden = self.norm(self.attention(hidden, mask=mask))
        return kept + hidden


class Conditional(Layer):
    def forward(self, hidden, mask=None):
        kept = hidden
        if self.norm_first:
            hidden = self.norm(hidden)
            return kept + hidden
        hidden = self.norm(self.norm(hidden))
        return kept + hidden


class Chosen(Layer):
    def forward(self, hidden, mask=None):
        kept = hidden
        return kept + (self.norm(hidden) if self.norm_first else self.attention(self.norm(hidden), mask))


class Converting(Layer):
    def forward(self, hidden, mask=None):
        device = hidden.device
        stream: torch.Tensor = hidden
        hidden = self.norm(hidden.to(dtype=torch.float32))
        return stream.to(device) + hidden


class Added(Layer):
    def forward(self, hidden, mask=None):
        return hidden + self.attention(self.norm(hidden), mask)


class Looped(Layer):
    def forward(self, hidden, mask=None):
        kept = hidden
        for _ in range(2):
            hidden = self.norm(hidden)
        return kept + hidden


class AtRunTime(Layer):
    def forward(self, hidden, mask=None):
        kept = hidden
        if mask is not None:
            hidden = self.norm(hidden)
        return kept + hidden


FORWARDS = [
    (PreNorm(), ["kept_0.output", "self_norm_0.input"]),
    (PostNorm(), ["kept_0.output", "self_query_0.input", "self_key_0.input"]),
    (Conditional(), ["kept_0.output", "self_norm_0.input"]),
    (Conditional(norm_first=False), ["kept_0.output", "self_norm_1.input"]),
    (Chosen(), ["kept_0.output", "self_norm_0.input"]),
    (Chosen(norm_first=False), ["kept_0.output", "self_norm_1.input"]),
    (Converting(), ["stream_0.output", "hidden_to_0.output"]),
    (Added(), []),
    (Looped(), []),
    (AtRunTime(), []),
]


@pytest.mark.parametrize(("layer", "expected"), FORWARDS, ids=lambda each: type(each).__name__)
def test_uses_are_found_in_forwards_of_every_form(layer, expected):
    found = entries_of(layer)
    assert [f"{entry.label}.{entry.end}" for entry in found] == expected
    assert {type(entry.module) for entry in found} <= {type(layer), Attention}


@pytest.mark.parametrize("layer", [layer for layer, expected in FORWARDS if expected], ids=lambda x: type(x).__name__)
def test_what_is_written_to_all_of_them_is_what_the_layer_gets(layer):
    """By nnsight itself, with the labels that it gives."""
    import nnsight

    from lmm_lens.core.layer_envoys import LayerEnvoys

    torch.manual_seed(0)
    given, other = torch.randn(2, 1, 3, 4)
    envoy = nnsight.NNsight(layer)
    at = {id(module._module): module for module in envoy.modules()}
    entries = tuple((at[id(entry.module)], entry.label, entry.end) for entry in entries_of(layer))
    served = LayerEnvoys(0, 1, 4, ("resid_pre",), envoy, entries=entries)
    with envoy.trace(given):
        seen = served.entering().save()
        served.enter(other)
        out = envoy.output.save()
    assert torch.equal(seen, given)
    assert torch.equal(out, layer(other))
    assert not torch.equal(out, layer(given))


# ---------------------------------------------------------------------- what the witnesses catch


def test_an_edit_that_is_put_in_at_one_place_alone_is_caught(monkeypatch):
    from lmm_lens.core.layer_envoys import LayerEnvoys

    whole = LayerEnvoys.enter

    def in_part(self, stream):
        everywhere, self.entries = self.entries, self.entries[1:]
        whole(self, stream)
        self.entries = everywhere

    name = "llava"
    lens = simulated(name)
    pair = pair_of(lens, prompt_of(name), True)
    monkeypatch.setattr(LayerEnvoys, "enter", in_part)
    with torch.no_grad():
        done = lens._backend.run_job(pair)
    with pytest.raises(RemoteError, match=r"one edit gave two answers on http://x: .*\n.*no answer of it was taken"):
        check_witnesses(done, "http://x")
