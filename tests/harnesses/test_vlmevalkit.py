"""The model class of VLMEvalKit on the source of its base class (tests/support/vlmevalkit)."""

import sys
from pathlib import Path

import pytest
import torch

from lmm_lens import AblateHeads
from lmm_lens.bundled import shapes
from lmm_lens.errors import LensError, PromptError
from lmm_lens.interventions import to_json

SOURCE = Path(__file__).parents[1] / "support" / "vlmevalkit"
EDIT = AblateHeads([(1, 4), (3, 4)], rows="generating")
SHORT = {"max_new_tokens": 4}


@pytest.fixture(scope="module")
def module():
    """The module, with VLMEvalKit's own base class to import."""
    sys.path.insert(0, str(SOURCE))
    try:
        from lmm_lens.harnesses import vlmevalkit

        yield vlmevalkit
    finally:
        sys.path.remove(str(SOURCE))
        for name in [name for name in sys.modules if name.partition(".")[0] == "vlmeval"]:
            del sys.modules[name]
        sys.modules.pop("lmm_lens.harnesses.vlmevalkit", None)


@pytest.fixture(scope="module", autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def example():
    return shapes.examples(12, kinds=["color"], seed=3)[5]


@pytest.fixture(scope="module")
def picture(tmp_path_factory, example):
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    example.image.save(path)
    return str(path)


@pytest.fixture
def edits(tmp_path):
    path = tmp_path / "edits.json"
    path.write_text(to_json([EDIT]))
    return str(path)


def test_every_form_of_message_gives_the_lenss_answer(module, lens, example, picture):
    model = module.LensModel(lens, generation=SHORT)
    prompt = lens.prompt(example.question, images=example.image)
    expected = lens.generate(prompt, max_new_tokens=4).text[0]
    listed = [{"type": "image", "value": picture}, {"type": "text", "value": example.question}]
    assert model.generate(listed, "POPE") == expected
    assert model.generate([picture, example.question]) == expected
    text = lens.generate(lens.prompt(example.question), max_new_tokens=4).text[0]
    assert model.generate(example.question) == model.generate({"type": "text", "value": example.question}) == text
    assert model.INTERLEAVE
    assert not model.is_api
    assert not model.use_custom_prompt("POPE")
    assert not model.VIDEO_LLM  # LLaVA-1.5's kind takes none


def test_interventions_of_a_file_are_made(module, lens, example, picture, edits):
    prompt = lens.prompt(example.question, images=example.image)
    expected = [lens.generate(prompt, each, max_new_tokens=4).text[0] for each in ([], [EDIT])]
    model = module.LensModel(lens, interventions=edits, generation=SHORT)
    assert model.generate([picture, example.question]) == expected[1]


def test_conversations(module, lens, example, picture):
    model = module.LensModel(lens, generation=SHORT)
    turns = [
        {"role": "user", "content": [picture, example.question]},
        {"role": "assistant", "content": example.answer},
        {"role": "user", "content": example.question},
    ]
    prompt = lens.prompt(
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.question}]},
            {"role": "assistant", "content": [{"type": "text", "text": example.answer}]},
            {"role": "user", "content": [{"type": "text", "text": example.question}]},
        ],
        images=[example.image],
    )
    assert model.chat(turns) == lens.generate(prompt, max_new_tokens=4).text[0]


def test_errors_stop_the_run_also_in_conversations(module, lens, picture):
    model = module.LensModel(lens, generation={**SHORT, "nonsense": 1})
    with pytest.raises(LensError, match="does not know the option 'nonsense'"):
        model.generate([picture, "What is it?"])
    with pytest.raises(LensError, match="does not know the option 'nonsense'"):
        model.chat([{"role": "user", "content": [picture, "What is it?"]}])
    with pytest.raises(PromptError, match="has a part of type 'audio'"):
        module.LensModel(lens).generate_inner([{"type": "audio", "value": "a.wav"}])


def test_the_name_in_its_table_holds_what_is_applied(module, lens, edits):
    from vlmeval.config import supported_VLM

    plain = module.register("demo")
    edited = module.register("demo", interventions=edits)
    Path(edits).write_text(to_json([AblateHeads([(1, 4)])]))
    changed = module.register("demo", interventions=edits)
    named = module.register("demo", name="mine")
    assert set(supported_VLM) == {plain, edited, changed, named}
    assert (plain, named) == ("lmm_lens-demo", "mine")
    assert edited.startswith("lmm_lens-demo-edits-")
    model = supported_VLM[changed]()
    assert model.asker.interventions == (AblateHeads([(1, 4)]),)
    with pytest.raises(LensError, match="cannot be read"):
        module.register("demo", interventions="missing.json")
