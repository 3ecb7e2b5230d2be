"""What users write themselves travels: functions, interventions, traces. And the other ways to say where to run."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import lmm_lens
from lmm_lens import VAR, AblateHeads, Intervention, Lens, Read, activation_patching, score_heads
from lmm_lens.core.taps import Tap, TapContext
from lmm_lens.errors import HookError, LensError, ModelError, RemoteError
from lmm_lens.prompts.rows import bind_rows
from tests.backends.remote.audit import Payload
from tests.backends.remote.clients import REPO, same, same_generation, same_run
from tests.backends.remote.service import Service
from tests.support.cases import SITES

TEMPERATURE = {"of": torch.tensor(0.5), "floor": 1e-9}


def entropy(pattern: Tensor, context: TapContext) -> Tensor:
    """In bits, of the image's part of each row: uses a helper, a constant of this module and another module."""
    return -plogp(pattern ** (1 / TEMPERATURE["of"])).sum(-1) + 0 * context.n_seen


def plogp(x: Tensor) -> Tensor:
    return x * torch.log(x.clamp_min(TEMPERATURE["floor"])) / math.log(2)


def test_a_users_function_reduces_on_the_service(served: Lens, native: Lens, batch: Any, sent: list[Payload]) -> None:
    read = [Read("pattern", [1, 4], rows="question", reduce=entropy, name="entropy")]
    same_run(served.run(batch, read=read), native.run(batch, read=read))
    assert any("def plogp" in source for source in sent[-1].sources)
    sent.pop().loaded()[1].remove("math")  # the one module more that is asked for


@dataclass(frozen=True)
class Sharpen(Intervention):
    """Attention of some layers to a power."""

    layers: tuple[int, ...]
    power: float = 2.0

    def taps(self, prompt: Any, shape: Any) -> list[Tap]:
        power, visual = self.power, prompt.mask("visual")

        def sharpen(pattern: Tensor, context: TapContext) -> Tensor:
            image = context.columns(visual, pattern.shape[-1])[:, None, None]
            sharp = torch.where(image, pattern**power, pattern)
            context.add("sharpened", (sharp - pattern).abs().sum())
            return sharp / sharp.sum(-1, keepdim=True)

        return [Tap("pattern", layer, bind_rows("after_image", prompt), sharpen, edits=True) for layer in self.layers]


def test_a_users_intervention(served: Lens, native: Lens, pair: Any) -> None:
    edits = [Sharpen((1, 2, 3))]
    given, expected = (lens.run(pair[0], edits, read=["pattern"]) for lens in (served, native))
    same_run(given, expected)
    same(given.sums, expected.sums)
    assert float(given.sums["sharpened", 2]) > 0.1
    given, expected = (lens.generate(pair[0], edits, max_new_tokens=3, logits=True) for lens in (served, native))
    same_generation(given, expected)


@dataclass(frozen=True)
class BreakLate(Intervention):
    """NaN in the row of the token that is third in an answer, and in no other."""

    def taps(self, prompt: Any, shape: Any) -> list[Tap]:
        row = prompt.n_tokens + 1

        def spoil(z: Tensor, context: TapContext) -> Tensor:
            return torch.where(context.positions[:, :, None, None] == row, torch.nan, z)

        return [Tap("z", 2, bind_rows("all", prompt), spoil, edits=True)]


@pytest.mark.parametrize("options", [{}, {"do_sample": True}])
def test_nan_of_a_late_step_is_an_error(served: Lens, native: Lens, pair: Any, options: dict[str, Any]) -> None:
    for lens in (native, served):
        with pytest.raises(ModelError, match=f"NaN in the logits after {pair[0].n_tokens + 2} tokens"):
            lens.generate(pair[0], [BreakLate()], max_new_tokens=5, eos_token_id=[], **options)


def by_name(x: Tensor, context: TapContext) -> Tensor:
    return lmm_lens.core.kernels.mass(x, x > 0)


def with_numpy(x: Tensor, context: TapContext) -> Tensor:
    return torch.from_numpy(numpy.asarray(x) * 2)


def with_a_file(x: Tensor, context: TapContext) -> Tensor:
    return x * len(Path("/etc/passwd").read_text())


def test_a_function_that_needs_this_library_by_name_is_refused_before_sending(
    served: Lens, pair: Any, service: Service, sent: list[Payload]
) -> None:
    n_before = len(service.log())
    with pytest.raises(RemoteError, match=r"does not have lmm-lens: it uses lmm_lens(.|\n)*use torch, plain values"):
        served.run(pair[0], read=[Read("pattern", reduce=by_name)])
    with (
        pytest.raises(RemoteError, match=r"does not have lmm-lens: it uses lmm_lens"),
        served.trace(pair[0]),
    ):
        lmm_lens.HeadSet([(1, 2)], 6, 8).save()
    assert len(service.log()) == n_before
    assert sent == []


def test_a_function_that_the_service_cannot_load_says_which_module(
    served: Lens, pair: Any, sent: list[Payload], service: Service
) -> None:
    if not service.strict:
        pytest.skip("this server lets blocks import whatever it has")
    with pytest.raises(RemoteError, match=r"No module named 'pathlib'(.|\n)*could not rebuild what was sent"):
        served.run(pair[0], read=[Read("z", reduce=with_a_file)])
    sent.clear()  # it asked for more than the list has: that is the point


def test_numpy_works_too(served: Lens, native: Lens, pair: Any, sent: list[Payload]) -> None:
    read = [Read("z", [1], reduce=with_numpy)]
    same_run(served.run(pair[0], read=read), native.run(pair[0], read=read))
    assert sent.pop().loaded()[1] >= {"numpy"}


# ---------------------------------------------------------------------- errors of our own, raised there


def test_an_error_raised_there_is_the_one_raised_here(served: Lens, native: Lens, pair: Any) -> None:
    from lmm_lens import KnockoutSinks, head_means
    from lmm_lens.errors import InterventionError

    text_only = native.prompt("what color is the star?")
    cases = [
        (InterventionError, [AblateHeads([(1, 2)], "mean", reference=head_means(native, text_only))]),
        (InterventionError, [KnockoutSinks(tuple(range(128)), 0.001, control=1)]),
    ]
    for kind, edits in cases:
        texts = []
        for lens in (native, served):
            with pytest.raises(kind) as caught:
                lens.run(pair[0], edits)
            assert type(caught.value) is kind
            texts.append(str(caught.value))
        assert texts[0] == texts[1]
        assert texts[0].count("\n") <= 2


def test_a_hook_point_that_is_not_there(served: Lens, pair: Any, service: Service) -> None:
    n_before = len(service.log())
    with (
        pytest.raises(HookError, match="layer 9 is out of range: the model has layers 0 to 5"),
        served.trace(pair[0]),
    ):
        served.read(9, "z").save()
    with (
        pytest.raises(HookError, match=r"layer 1 has no hook point 'zz'\n  it has: resid_pre"),
        served.trace(pair[0]),
    ):
        served.read(1, "zz").save()
    with (
        pytest.raises(HookError, match=r"z of layer 1 is \(2, 45, 8, 16\), given \(2, 45\)"),
        served.trace(pair[0]),
    ):
        served.write(1, "z", torch.zeros(2, 45))
    assert len(service.log()) == n_before + 3


def test_the_vision_tower_in_a_trace(served: Lens, native: Lens, pair: Any, service: Service) -> None:
    """Its hook points."""
    one = pair[0]
    expected = native.run(one, read=["vision.z", "vision.pattern", "vision.resid_pre", "vision.resid_post"])
    with served.trace(one):
        entering = served.read(0, "vision.resid_pre").save()
        pattern = served.read(1, "vision.pattern").save()
        z = served.read(1, "vision.z").save()
        features = served.read(2, "vision.resid_post").save()
        decoder = served.read(1, "z").save()
    same(entering, expected.reads["vision.resid_pre", 0])
    same(z, expected.reads["vision.z", 1])
    same(pattern, expected.reads["vision.pattern", 1])
    same(features, expected.reads["vision.resid_post", 2])
    same(decoder, native.run(one, read=["z"]).reads["z", 1])
    heads = [(1, head) for head in range(4)]
    with served.trace(one):
        served.write(1, "vision.z", served.read(1, "vision.z") * 0)
        logits = served.envoy.output.logits.save()
    same(logits, native.run(one, [AblateHeads(heads, part="vision")]).logits)


def nothing(x: Tensor, context: TapContext) -> Tensor:
    return x * float("nan")


@dataclass(frozen=True)
class Broken(Intervention):
    """NaN from layer 3 on."""

    def taps(self, prompt: Any, shape: Any) -> list[Tap]:
        return [Tap("mlp_out", 3, bind_rows("all", prompt), nothing, edits=True)]


def test_nan_is_found_in_the_layer_where_it_arises(served: Lens, pair: Any) -> None:
    for call in (served.run, served.generate):
        with pytest.raises(ModelError, match="NaN") as caught:
            call(pair[0], [Broken()])
        assert type(caught.value) is ModelError
    with pytest.raises(ModelError, match="NaN in the model's activations under these interventions, first at mlp_out"):
        served.run(pair[0], [Broken()])


# ---------------------------------------------------------------------- a local simulation, and a lens without weights


def test_the_simulation_gives_the_same_without_a_service(native: Lens, pair: Any) -> None:
    lens = Lens.demo(backend="nnsight", remote="local")
    edits = [AblateHeads([(1, 2)]), VAR(sink_dims="auto", sink_threshold="auto", min_nonsink_ratio=0.1), Sharpen((2,))]
    same_run(lens.run(pair[0], edits, read=list(SITES)), native.run(pair[0], edits, read=list(SITES)))
    given, expected = (each.generate(pair[0], edits, max_new_tokens=3, logits=True) for each in (lens, native))
    same_generation(given, expected)
    same(score_heads(lens, pair[0]).values, score_heads(native, pair[0]).values)
    grids = [activation_patching(each, *pair, site="z", by="head", layers=[2]).per_pair for each in (lens, native)]
    same(*grids)
    with lens.trace(pair[0]):
        z = lens.read(2, "z").save()
    same(z, native.run(pair[0], read=["z"]).reads["z", 2])
    with pytest.raises(RemoteError, match="does not have lmm-lens"):
        lens.run(pair[0], read=[Read("pattern", reduce=by_name)])


def test_a_lens_without_weights(
    native: Lens, pair: Any, batch: Any, model_folder: Path, service: Service, known: None, sent: list[Payload]
) -> None:
    lens = Lens.from_pretrained(str(model_folder), backend="nnsight", remote=service.url)
    lens._backend.served_as = REPO  # a folder of the Hub would be called that
    assert {weight.device.type for weight in lens.model.parameters()} == {"meta"}
    assert lens.remote == service.url
    assert lens.device == torch.device("cpu")
    assert repr(lens).startswith("Lens on LlavaForConditionalGeneration (family llava, backend nnsight")
    assert (lens.n_layers, lens.n_heads, lens.d_head) == (6, 8, 16)
    assert lens.identity["n_layers"] == 6
    assert lens.identity["weights"] != native.identity["weights"]
    edits = [VAR(sink_dims="auto", sink_threshold="auto", min_nonsink_ratio=0.1)]
    same_run(lens.run(batch, edits, read=["pattern"]), native.run(batch, edits, read=["pattern"]))
    prompt = lens.prompt("what color is the star?", images=lmm_lens.bundled.shapes.blank(0))
    assert lens.generate(prompt).text == native.generate(prompt).text
    for remote in (False, "local"):
        with pytest.raises(LensError, match=r"opened for a server and has no weights here\n  give remote=... to the"):
            lens.run(prompt, remote=remote)
        with pytest.raises(LensError, match="has no weights here"):
            lens.trace(prompt, remote=remote)


def test_where_to_run_must_be_said_in_a_way_that_can_be_understood(native: Lens, served: Lens, pair: Any) -> None:
    for remote in ("ndif", "127.0.0.1:5001", 3):
        with pytest.raises(LensError, match=r"remote is False, True .NDIF., \"local\" or the address of a server"):
            served.run(pair[0], remote=remote)  # type: ignore[arg-type]
    with pytest.raises(LensError, match="remote=True needs backend=\"nnsight\", this lens has 'native'"):
        native.run(pair[0], remote=True)
    with pytest.raises(LensError, match="needs backend=\"nnsight\", given backend='native'"):
        Lens.demo(remote=True)


def test_two_lenses_in_one_job_are_refused(served: Lens, pair: Any, service: Service) -> None:
    """Modules travel by their names, so both would read the model of the job."""
    other = Lens.demo("plain", backend="nnsight", remote=service.url)
    n_before = len(service.log())
    text = r"one job runs on one model, and two lenses are used in this one\n  send one job for each"
    with pytest.raises(RemoteError, match=text), served.trace(pair[0]):  # noqa: PT012  (nothing of it runs)
        served.read(1, "z").save()
        other.read(2, "z").save()
    assert len(service.log()) == n_before
