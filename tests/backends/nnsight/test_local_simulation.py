"""`remote="local"`: jobs packed and unpacked as for a server, from eager weights, give the native answer."""

import importlib
import sys

import pytest
import torch
from cloudpickle import register_pickle_by_value, unregister_pickle_by_value
from nnsight.intervention.backends.local import _SERVER_MODULES
from nnsight.schema.request import RequestModel

from lmm_lens import AblateHeads, Lens, LensError, Read, score_heads
from lmm_lens.backends.nnsight.local_simulation import SERVED
from lmm_lens.core import envoys
from lmm_lens.core.taps import TapContext
from lmm_lens.errors import HookError, InterventionError, RemoteError
from tests.support.cases import SITES, case
from tests.support.models import FAMILIES
from tests.support.nnsight_lenses import EDITS, FOUR, TWELVE, edit_of, pairs, same_generation, same_runs
from tests.support.untouched import implementations, state


def test_without_interventions_generation_is_the_models_own(family):
    same_generation(family, family.on("remote"))


@pytest.mark.parametrize("edits", [("var", "zero_after_image"), ("patch_heads", "knockout")], ids="-".join)
@pytest.mark.parametrize("name", TWELVE)
def test_interventions_give_the_native_answer_step_by_step(name, edits):
    same_generation(case(name), case(name).on("remote"), *edits)


ALL = [pair for pair in pairs(("gemma3", "mllama"), EDITS) if pair[1] != "boost"]


@pytest.mark.parametrize(("name", "edit"), ALL)
def test_every_intervention_gives_the_native_answer_step_by_step(name, edit):
    same_generation(case(name), case(name).on("remote"), edit)


@pytest.mark.parametrize(
    ("name", "side"), [*((name, "left") for name in FAMILIES), *((name, "right") for name in FOUR)]
)
def test_padded_batches_read_and_are_edited_as_natively(name, side):
    family = case(name)
    prompt = family.lens.prompt(inputs=family.pair(side)[1])
    edits = [AblateHeads(family.heads, rows="after_image"), edit_of(family.name, "knockout")]
    reads = [Read(site, family.layers_of(site)) for site in SITES]
    same_runs(*(each.run(prompt, edits, read=reads) for each in family.lenses("remote")))


@pytest.mark.parametrize(
    ("name", "query"), [*((name, "answer") for name in TWELVE), *((name, "last") for name in FOUR)]
)
def test_scores_are_the_native_ones(name, query):
    family = case(name)
    native, given = (score_heads(each, family.prompt, query=query).per_prompt for each in family.lenses("remote"))
    torch.testing.assert_close(given, native, atol=1e-5, rtol=0, equal_nan=True)


@pytest.mark.parametrize("logits", ["all", "last"])
@pytest.mark.parametrize("name", ["llava", "paligemma2", "idefics2", "gemma3"])
def test_logits_of_the_last_row_are_the_native_ones(name, logits):
    family = case(name)
    prompt = family.lens.prompt(inputs=family.pair("right")[1])
    same_runs(*(each.run(prompt, [edit_of(name, "uniform")], logits=logits) for each in family.lenses("remote")))


def test_the_pattern_is_taken_from_the_weights_and_not_from_queries_and_keys(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the arguments of a call are out of reach on a server")

    monkeypatch.setattr(envoys, "call_of", refuse)
    llava = case("llava")
    case("llava").on("remote").run(llava.prompt, [edit_of("llava", "knockout")], read=["pattern"])
    with pytest.raises(AssertionError):
        case("llava").on("nnsight").run(llava.prompt, read=["pattern"])


def test_the_model_is_switched_to_eager_attention_and_back(monkeypatch):
    llava, seen = case("llava"), []
    lens = Lens(llava.model, backend="nnsight", remote="local")
    mine = lens.envoy._module
    before, users = implementations(mine), state(llava.model)

    def look(module, *arguments):
        seen.append(module.config._attn_implementation)

    hook = mine.get_decoder().layers[1].self_attn.register_forward_pre_hook(look)
    lens.run(llava.prompt, read=["pattern"])
    hook.remove()
    assert seen == ["eager"]
    assert implementations(mine) == before
    assert state(llava.model) == users
    broken = {**llava.inputs, "pixel_values": llava.inputs["pixel_values"][:, :2]}
    with pytest.raises(RuntimeError):
        lens.run(lens.prompt(inputs=broken), read=["pattern"])
    assert implementations(mine) == before


def test_one_call_can_be_simulated():
    llava, lens = case("llava"), case("llava").on("nnsight")
    edits = [edit_of("llava", "knockout")]
    plainly = lens.run(llava.prompt, edits).logits
    in_eager = lens.run(llava.prompt, edits, remote="local").logits
    assert not torch.equal(plainly, in_eager)  # eager weights differ in the last bits
    assert (plainly - in_eager).abs().max() < 1e-5
    assert torch.equal(lens.run(llava.prompt, edits).logits, plainly)
    back = case("llava").on("remote").run(llava.prompt, edits, remote=False).logits
    assert torch.equal(back, plainly)


def test_a_reduction_of_ones_own_travels_by_source():
    llava = case("llava")
    visual = llava.prompt.mask("image")

    def mass(pattern, context):
        return (pattern * context.columns(visual, pattern.shape[-1])[:, None, None]).sum(-1)

    read = Read("pattern", rows="last", reduce=mass, name="mass")
    same_runs(*(each.run(llava.prompt, read=[read]) for each in llava.lenses("remote")))


def test_what_would_need_this_library_on_the_server_is_refused():
    from lmm_lens.hooks.results import Report

    llava = case("llava")

    def bad(pattern, context):
        return pattern[..., :1] + (Report is None)

    with pytest.raises(RemoteError, match=r"does not have lmm-lens: it uses lmm_lens\.hooks\.results\.Report"):
        case("llava").on("remote").run(llava.prompt, read=[Read("pattern", rows="last", reduce=bad, name="bad")])


def test_what_would_need_a_file_of_ones_own_on_the_server_is_refused(tmp_path, monkeypatch):
    llava = case("llava")
    llava.on("remote").run(llava.prompt)  # from here on nnsight does not look for local modules any more
    (tmp_path / "of_ones_own.py").write_text(
        "class Scale:\n    by = 2.0\n\n\ndef doubled(x):\n    return x * Scale.by\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = importlib.import_module("of_ones_own")
    scale = mine.Scale()

    def of_an_object(pattern, context):
        return pattern[..., :1] * scale.by

    def of_a_function(pattern, context):
        return mine.doubled(pattern[..., :1])

    for reduce in (of_an_object, of_a_function):
        read = [Read("pattern", rows="last", reduce=reduce, name="own")]
        with pytest.raises(
            RemoteError, match=r"does not have of_ones_own: .*from a folder, not installed\n.*register_pickle_by_value"
        ):
            llava.on("remote").run(llava.prompt, read=read)
    register_pickle_by_value(mine)  # as the error says
    try:
        for reduce in (of_an_object, of_a_function):
            reads = [Read("pattern", rows="last", reduce=reduce, name="own")]
            same_runs(*(each.run(llava.prompt, read=reads) for each in llava.lenses("remote")))
    finally:
        unregister_pickle_by_value(mine)
        del sys.modules["of_ones_own"]


def test_what_every_server_has_is_what_nnsight_says():
    assert SERVED == _SERVER_MODULES


def test_other_threads_find_their_modules_and_folders_while_a_job_is_unpacked(monkeypatch):
    """nnsight hides them meanwhile, and puts folders back behind all others."""
    llava = case("llava")
    before, seen = (dict(sys.modules), list(sys.path)), []
    deserialize = RequestModel.deserialize

    def watched(*args, **kwargs):
        seen.append(({name.partition(".")[0] for name in before[0].keys() - sys.modules.keys()}, list(sys.path)))
        return deserialize(*args, **kwargs)

    monkeypatch.setattr(RequestModel, "deserialize", watched)
    llava.on("remote").run(llava.prompt)
    assert seen == [({"cloudpickle"}, before[1])]
    assert sys.path == before[1]
    assert before[0].items() <= dict(sys.modules).items()


def test_what_is_unpacked_is_not_written_into_the_classes_that_were_packed():
    llava = case("llava")
    methods = {name: (method, method.__module__) for name, method in vars(TapContext).items() if callable(method)}
    llava.on("remote").run(llava.prompt, [edit_of("llava", "knockout")], read=["pattern"])
    assert {n: (method, method.__module__) for n, method in vars(TapContext).items() if callable(method)} == methods


def test_scores_before_the_softmax_are_out_of_reach_and_what_needs_them_is_refused():
    llava = case("llava")
    for call in (lambda: case("llava").on("remote").run, lambda: case("llava").on("remote").generate):
        with pytest.raises(InterventionError, match=r"out of reach on a server.*\n.*BoostAttention.*remote=False"):
            call()(llava.prompt, [edit_of("llava", "boost")])


def test_where_to_run_is_checked():
    llava = case("llava")
    for wrong in ("ndif", "localhost:5001", "Local", 3):
        with pytest.raises(LensError, match=r'remote is False, True \(NDIF\), "local" or the address of a server'):
            Lens(llava.model, backend="nnsight", remote=wrong)
        with pytest.raises(LensError, match="remote is False, True"):
            case("llava").on("nnsight").run(llava.prompt, remote=wrong)
    with pytest.raises(LensError, match=r'remote=\'local\' needs backend="nnsight", this lens has \'native\''):
        llava.lens.run(llava.prompt, remote="local")


def test_a_model_that_returns_no_weights_is_refused(monkeypatch):
    """As on a server that does not let a request choose its attention."""
    llava = case("llava")
    lens = Lens(llava.model, backend="nnsight", remote="local")
    monkeypatch.setattr(lens.envoy, "_remoteable_set_env", lambda env: None)
    with pytest.raises(HookError, match="layer 0 returned no attention weights: the model does not run eager"):
        lens.run(llava.prompt, read=["pattern"])
