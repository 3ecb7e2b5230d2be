"""What a payload is made of, and how large it is: sent to a service that writes its size down and refuses."""

from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zstandard

import lmm_lens
from lmm_lens import VAR, AblateHeads, HeadSet, Lens, activation_patching, score_heads
from lmm_lens.backends.nnsight.travel import check_payload, imports_of
from lmm_lens.errors import RemoteError
from tests.backends.remote import audit, big
from tests.backends.remote.audit import Payload
from tests.backends.remote.service import Service

MEGABYTE = 1_000_000
ANSWERS = [("red", "blue")]


@pytest.fixture
def refusing(service: Service) -> Service:
    """Writes down what comes, and refuses."""
    service.fault("refuse")
    return service


@pytest.fixture(scope="module")
def llava(shared_service: Service, tmp_path_factory: pytest.TempPathFactory) -> Lens:
    return big.llava_1_5_7b(tmp_path_factory.mktemp("llava-1.5-7b"), shared_service.url)


def unpatched(lens: Lens, prompt: Any, **options: Any) -> SimpleNamespace:
    """What `activation_patching` needs of its two first runs."""
    seed = int(prompt.inputs["pixel_values"][0, 0, 0, 0] * 1e6)
    n_words = lens.adapter.config.get_text_config().vocab_size
    return SimpleNamespace(logits=torch.randn(1, 1, n_words, generator=torch.Generator().manual_seed(seed)))


def size(service: Service, call: Any, *arguments: Any, **options: Any) -> int:
    """Bytes of the one request that a call sends before it is refused."""
    before = len(service.log())
    with pytest.raises(RemoteError, match="being redeployed"):
        call(*arguments, **options)
    [entry] = service.log()[before:]
    return entry["payload_bytes"]


@pytest.mark.long
def test_jobs_on_llava_1_5_7b_with_a_noise_photo_stay_under_a_megabyte(
    llava: Lens, refusing: Service, sent: list[Payload], monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "what color is the circle?"
    photo, other = (llava.prompt(question, images=big.noise(seed)) for seed in (0, 1))
    batch = llava.prompt([question] * 2, images=[big.noise(0), big.noise(1)])
    assert (llava.n_layers, llava.n_heads, llava.d_head) == (32, 32, 128)
    assert int(photo.mask("image").sum()) == 576
    heads = HeadSet([(layer, 3) for layer in range(32)], 32, 32)
    sizes = {
        "run": size(refusing, llava.run, photo),
        "all hook points": size(refusing, llava.run, photo, read=["pattern", "z", "resid_post"]),
        "generate": size(refusing, llava.generate, photo, max_new_tokens=50),
        "VAR": size(refusing, llava.generate, photo, [VAR()]),
        "ablation": size(refusing, llava.generate, photo, [AblateHeads(heads, rows="after_image")]),
        "score_heads": size(refusing, score_heads, llava, photo, "nonsink_mass", sink_dims=[5], sink_threshold=20),
        "localization": size(refusing, score_heads, llava, photo, "localization", query="answer"),
        "two photos": size(refusing, score_heads, llava, batch),
    }
    monkeypatch.setattr(Lens, "run", unpatched)
    for site, by in (("resid_pre", "span"), ("resid_pre", "patch"), ("z", "head"), ("pattern", "head")):
        options = {"site": site, "by": by, "answers": ANSWERS}
        sizes[f"patching {site} {by}"] = size(refusing, activation_patching, llava, photo, other, **options)
    assert max(sizes.values()) < MEGABYTE, sizes
    assert sizes["run"] < 500_000  # one photo is 338,688 numbers of one byte and three of table, and noise
    assert max(sizes["VAR"], sizes["score_heads"]) < sizes["run"] + 50_000


def test_flattened_patches_of_qwen2_5_vl(refusing: Service, sent: list[Payload], tmp_path: Path) -> None:
    lens = big.qwen2_5_vl_7b(tmp_path, refusing.url)
    prompt = lens.prompt(inputs=big.qwen_inputs(lens, 0))
    assert prompt.inputs["pixel_values"].shape == (576, 1176)
    sizes = {"run": size(refusing, lens.run, prompt), "score_heads": size(refusing, score_heads, lens, prompt)}
    assert max(sizes.values()) < MEGABYTE, sizes


def test_an_ordinary_picture_is_much_smaller(served: Lens, pair: Any, service: Service) -> None:
    served.run(pair[0])
    assert service.log()[-1]["payload_bytes"] < 50_000


# ---------------------------------------------------------------------- what is in it


def test_what_the_service_was_asked_for_is_what_the_client_checked(
    served: Lens, pair: Any, service: Service, sent: list[Payload]
) -> None:
    """The list that a payload gives without being run, and what the service's unpickler met, are the same."""
    with served.apply(AblateHeads([(1, 2)]), VAR(sink_dims="auto", sink_threshold="auto")):
        served.generate(pair[0], max_new_tokens=2)
    activation_patching(served, *pair, layers=[1])
    with served.trace(pair[0]):
        served.write(1, "pattern", served.read(1, "pattern") * 0.5)
    entries = [entry for entry in service.log()[-len(sent) :] if entry["status"] == "COMPLETED"]
    assert len(entries) == len(sent) >= 5
    for payload, entry in zip(sent, entries, strict=True):
        assert set(entry["globals"]) == {f"{module}.{name}".rstrip(".") for module, name in payload.globals}


def test_only_source_travels_and_each_file_that_is_named_gave_some(
    served: Lens, pair: Any, sent: list[Payload], tmp_path: Path
) -> None:
    """The paths of the files that functions are in travel, as nnsight sends them for tracebacks, and nothing else."""
    served.generate(pair[0], [VAR(sink_dims=(5, 77), sink_threshold=5.3, min_nonsink_ratio=0.1)], max_new_tokens=2)
    payload = sent[-1]
    assert any("def redistribute(" in source for source in payload.sources)
    assert any("def through(" in source for source in payload.sources)
    assert all(Path(path).is_relative_to(Path(lmm_lens.__file__).parent) for path in payload.paths)
    everything = "\n".join(payload.strings)
    for word in (str(Path.cwd() / "tests"), str(tmp_path), "Bearer", "ndif-api-key"):
        assert word not in everything


def test_the_audit_itself_would_notice() -> None:
    """Payloads that have what they must not have."""
    import pickle

    def payload(thing: Any) -> Payload:
        plain = pickle.dumps([thing, "source\n"])
        return Payload(plain, plain)

    payload(OrderedDict(a=1)).check()
    for thing, message in (
        (Path("."), "pathlib"),
        (HeadSet([(1, 2)], 6, 8), "lmm_lens"),
        ("CodeType", "code that is not source"),
        (audit.SECRET, "SECRET"),
        ("/etc/passwd", "paths"),
    ):
        with pytest.raises(AssertionError, match=message):
            payload(thing).check()


@pytest.mark.parametrize("protocol", range(6))
def test_globals_are_found_in_every_protocol(protocol: int) -> None:
    import datetime
    import decimal
    import pickle

    one = datetime.date(2020, 1, 2)
    thing = {"datetime": one, "date": [one, datetime.timedelta(3), decimal.Decimal(1)], 5: ("os", "system")}
    thing[6] = (decimal.Decimal, datetime.date, OrderedDict([("decimal", decimal.Decimal(2))]))  # type: ignore[index]
    asked = set()

    class Recording(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            asked.add((module, name))
            return super().find_class(module, name)

    import io

    plain = pickle.dumps(thing, protocol)
    Recording(io.BytesIO(plain), fix_imports=False).load()
    assert imports_of(plain) == asked


def test_a_payload_with_our_code_by_name_is_refused() -> None:
    import pickle

    check_payload(pickle.dumps({"lmm_lens": "lmm_lens.hooks.heads"}))  # words are no globals
    with pytest.raises(RemoteError, match=r"it uses lmm_lens.hooks.heads.HeadSet\n"):
        check_payload(pickle.dumps([HeadSet([(1, 2)], 6, 8)]))


def test_what_is_sent_is_compressed(served: Lens, pair: Any, sent: list[Payload]) -> None:
    served.run(pair[0])
    assert len(sent[-1].blob) < len(sent[-1].plain) / 2
    assert zstandard.get_frame_parameters(sent[-1].blob).content_size == len(sent[-1].plain)
