"""The real lmms-eval, offline, on local tasks: a lens as its model, beside the harness's own class of that model."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model, get_model_manifest
from lmms_eval.tasks import TaskManager
from PIL import Image

from lmm_lens import AblateHeads
from lmm_lens.errors import InterventionError, LensError, PromptError
from lmm_lens.harnesses import compare_logs
from lmm_lens.harnesses.lmms_eval_models import ChatLensModel, SimpleLensModel
from lmm_lens.interventions import to_json

pytestmark = pytest.mark.filterwarnings("ignore")  # what the harness warns of is the harness's


@pytest.fixture(scope="module")
def evaluated(given):
    """What the harness finds: its results, and by task what it logged of each sample."""
    done = {}

    def evaluate(model, tasks, simple=False, batch_size=1, **arguments):
        key = (model, tasks, simple, batch_size, tuple(arguments.items()))
        if key not in done:
            done[key] = simple_evaluate(
                model=model,
                model_args=",".join(f"{k}={v}" for k, v in {"pretrained": given.model, **arguments}.items()),
                tasks=tasks.split("+"),
                task_manager=TaskManager(include_path=given.tasks, include_defaults=False, model_name=model),
                batch_size=batch_size,
                device="cpu",
                force_simple=simple,
                process_docs_parallel=1,
            )
        return done[key]

    return evaluate


def said(results, task="shapes"):
    return [sample["resps"][0][0] for sample in results["samples"][task]]


def counted(results, task="shapes"):
    return [sample["token_counts"] for sample in results["samples"][task]]


def test_the_harness_finds_it_by_its_entry_point():
    assert get_model_manifest("lmm_lens").model_id == "lmm_lens"
    assert get_model("lmm_lens") is ChatLensModel
    assert get_model("lmm_lens", force_simple=True) is SimpleLensModel


@pytest.mark.parametrize("simple", [False, True])
def test_without_interventions_it_answers_as_the_harnesss_own_class_does(evaluated, simple):
    own = evaluated("llava_hf", "shapes", simple, device_map="cpu")
    ours = evaluated("lmm_lens", "shapes+shapes_until", simple)
    assert said(ours) == said(own)
    assert ours["results"]["shapes"]["right,none"] == own["results"]["shapes"]["right,none"] == 1
    assert all(each[0]["interventions"] == [] for each in counted(ours))


@pytest.mark.parametrize("simple", [False, True])
def test_answers_end_where_the_task_says(evaluated, simple):
    ours = evaluated("lmm_lens", "shapes+shapes_until", simple)
    assert said(ours, "shapes_until") == [text.partition("e")[0].strip() for text in said(ours)]


def test_interventions_do_what_the_lens_does_with_them_and_are_logged(evaluated, given, lens, examples):
    edited = evaluated("lmm_lens", "shapes", interventions=given.edits)
    for example, text, (count,) in zip(examples, said(edited), counted(edited), strict=True):
        done = lens.generate(lens.prompt(example.question, images=example.image), given.interventions, max_new_tokens=4)
        assert text == done.text[0]
        assert count["interventions"] == [
            {
                "intervention": str(given.interventions[0]),
                "edits": done.reports[0].n_edits,
                "moved": 0,
                "questions": 1,
            }
        ]
    assert said(edited) != said(evaluated("lmm_lens", "shapes+shapes_until"))


def test_batches_say_the_same(evaluated, given):
    alone = evaluated("lmm_lens", "shapes", interventions=given.edits)
    together = evaluated("lmm_lens", "shapes", batch_size=3, interventions=given.edits)
    assert said(together) == said(alone)
    each = [count["interventions"][0] for (count,) in counted(together)]
    assert [edit["questions"] for edit in each] == [3] * 6 + [2] * 2
    total = sum(count["interventions"][0]["edits"] for (count,) in counted(alone))
    assert sum(edit["edits"] / edit["questions"] for edit in each) == pytest.approx(total)


def test_likelihoods_are_losses_of_which_the_harness_takes_the_smallest(evaluated, given, lens, examples):
    ours = evaluated("lmm_lens", "shapes_choice", True)
    tokenizer = lens.adapter.tokenizer
    for sample, example in zip(ours["samples"]["shapes_choice"], examples, strict=True):
        prompt = lens.prompt(example.question, images=example.image)
        found = [response[0] for response in sample["resps"]]
        assert len(found) == 2
        ids = tokenizer(" " + example.answer, add_special_tokens=False, return_tensors="pt").input_ids
        inputs = {**prompt.inputs, "input_ids": torch.cat([prompt.inputs["input_ids"], ids], 1)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        logits = lens.model(**inputs).logits[0, prompt.n_tokens - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, ids[0])
        assert found[0][0] == pytest.approx(float(expected), abs=1e-4)
        assert found[0] < found[1]
    assert ours["results"]["shapes_choice"]["acc,none"] == 1
    edited = evaluated("lmm_lens", "shapes_choice", True, interventions=given.edits)
    pairs = zip(said(edited, "shapes_choice"), said(ours, "shapes_choice"), strict=True)
    assert any(abs(a[0] - b[0]) > 0.1 for a, b in pairs)
    assert all(count["interventions"][0]["edits"] for counts in counted(edited, "shapes_choice") for count in counts)


@pytest.mark.parametrize("simple", [False, True])
def test_rounds_go_on_with_what_was_said(evaluated, lens, examples, simple):
    ours = evaluated("lmm_lens", "shapes_rounds", simple)
    for rounds, example in zip(said(ours, "shapes_rounds"), examples, strict=True):
        first = lens.generate(lens.prompt(example.question, images=example.image), max_new_tokens=4).text[0]
        second = lens.prompt(f"{example.question} {first}", images=example.image)
        assert rounds == [first, lens.generate(second, max_new_tokens=4).text[0]]


def test_an_option_that_nobody_knows_stops_the_run_and_may_be_left_out_by_name(evaluated):
    with pytest.raises(LensError, match="does not know the option 'image_aspect_ratio'"):
        evaluated("lmm_lens", "shapes_odd")
    named = evaluated("lmm_lens", "shapes_odd", leave_out="image_aspect_ratio+nothing")
    assert said(named, "shapes_odd") == said(evaluated("lmm_lens", "shapes+shapes_until"))


def test_errors_stop_the_run(evaluated, given):
    deep = given.root / "deep.json"
    deep.write_text(to_json([AblateHeads([(99, 0)])]))
    with pytest.raises(LensError, match="99"):
        evaluated("lmm_lens", "shapes", interventions=deep)
    with pytest.raises(InterventionError, match="cannot be read"):
        evaluated("lmm_lens", "shapes", interventions=given.root / "missing.json")
    with pytest.raises(InterventionError, match="were changed"):
        evaluated("lmm_lens", "shapes", interventions=f"{given.edits}#00")
    with pytest.raises(LensError, match="nonsense"):
        evaluated("lmm_lens", "shapes", nonsense=1)
    with pytest.raises(LensError, match="batch_size must be a whole number of at least 1, given 'auto'"):
        evaluated("lmm_lens", "shapes", batch_size="auto")


def request(*arguments):
    return Instance("generate_until", arguments, 0, {"task": "t", "doc_id": 0, "repeats": 1})


def test_several_pictures_no_picture_slots_and_system_prompts(lens, examples):
    a, b = examples[0].image, examples[1].image
    question = examples[0].question
    options = {"max_new_tokens": 4}

    def answer(prompt):
        return lens.generate(prompt, max_new_tokens=4).text[0]

    for shown, text, prompt in (
        ([a, b], question, lens.prompt(question, images=[a, b])),
        ([], question, lens.prompt(question)),
        (None, question, lens.prompt(question)),
        ([a], f"<image> {question}", lens.prompt(f"<image> {question}", images=a)),
    ):
        simple = SimpleLensModel(lens)
        simple.task_dict = {"t": {"test": [shown]}}
        (found,) = simple.generate_until([request(text, options, lambda doc: doc, 0, "t", "test")])
        assert found.text == answer(prompt)
    system = SimpleLensModel(lens, system_prompt="what color is it?")
    system.task_dict = {"t": {"test": [[a]]}}
    messages = [
        {"role": "system", "content": "what color is it?"},
        {"role": "user", "content": [{"type": "image", "image": a}, {"type": "text", "text": question}]},
    ]
    try:
        expected = lens.prompt([messages])
    except PromptError:  # a template that takes no system messages is not asked to
        with pytest.raises(PromptError):
            system.generate_until([request(question, options, lambda doc: doc, 0, "t", "test")])
    else:
        (found,) = system.generate_until([request(question, options, lambda doc: doc, 0, "t", "test")])
        assert found.text == answer(expected)


def test_sound_is_refused(lens):
    simple = SimpleLensModel(lens)
    simple.task_dict = {"t": {"test": [[{"array": [0.0], "sampling_rate": 16000}]]}}
    with pytest.raises(PromptError, match=r"a task shows \['array', 'sampling_rate'\]"):
        simple.generate_until([request("What?", {}, lambda doc: doc, 0, "t", "test")])
    chat = ChatLensModel(lens)
    chat.task_dict = {"t": {"test": [None]}}
    messages = [{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}]
    with pytest.raises(PromptError, match=r"a message shows \['type', 'url'\] of kind 'audio'"):
        chat.generate_until([request("", lambda doc: messages, {}, 0, "t", "test")])


def test_films_are_frames(tmp_path):
    """As many frames as were asked for are what the lens is given."""
    frames = [Image.new("RGB", (64, 64), (i * 20,) * 3) for i in range(9)]
    path = tmp_path / "film.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    asked = []
    lens = SimpleNamespace(prompt=lambda text, images, videos: asked.append((text, images, videos)))
    simple = SimpleLensModel.__new__(SimpleLensModel)
    simple.asker, simple.max_frames, simple.system_prompt = SimpleNamespace(lens=lens), 3, None
    simple._asking(["What happens?"], [[str(path)]])
    ((text, images, (film,)),) = [(t, i, v[0]) for t, i, v in asked]
    assert (text, images) == (["What happens?"], None)
    assert [frame.getpixel((0, 0))[0] for frame in film] == pytest.approx([0, 80, 160], abs=2)


def test_the_command_logs_two_conditions_that_make_a_paired_table(given, examples):
    """As people run it: two processes, their logs, and one table."""
    logs = {}
    environment = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for name, arguments in (("plain", ""), ("without two heads", f",interventions={given.edits}")):
        out = given.root / name.replace(" ", "-")
        command = [sys.executable, "-m", "lmms_eval", "--model", "lmm_lens", "--device", "cpu"]
        command += ["--model_args", f"pretrained={given.model}{arguments}", "--tasks", "shapes"]
        command += ["--include_path", given.tasks, "--log_samples", "--output_path", str(out), "--batch_size", "1"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        (logs[name],) = out.rglob("*_samples_shapes.jsonl")
    table = compare_logs(logs, "right")
    assert table.names == ("plain", "without two heads")
    assert table.ids == tuple(f"shapes/{index}" for index in range(len(examples)))
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in logs.values()]
    assert table.values.T.tolist() == [[line["right"] for line in each] for each in lines]
    assert table.said("plain") == tuple(example.answer for example in examples)
    assert table.edits[:, 0].tolist() == [0] * len(examples)
    assert int(table.edits[:, 1].min()) >= 2
    assert float(table.seconds.min()) > 0
    assert table.tests().iloc[0]["difference"] < 0
    assert compare_logs(logs, "pope").values[0, 0] == len(examples[0].answer)
