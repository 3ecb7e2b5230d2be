"""Tasks of the real lmms-eval as data sets: what the harness asks and takes as right, sample by sample."""

import textwrap

import pytest
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from PIL import ImageChops

from lmm_lens import compare, data, head_effects
from lmm_lens.errors import ScoreError

pytestmark = pytest.mark.filterwarnings("ignore")  # what the harness warns of is the harness's

ODD = """
def visual(doc):
    return [{"array": [0.0]}] if doc["shows"] == "sound" else []

def text(doc, lmms_eval_specific_kwargs=None):
    if doc["shows"] == "nothing":
        raise KeyError("question")
    return lmms_eval_specific_kwargs["pre_prompt"] + doc["question"] + lmms_eval_specific_kwargs["post_prompt"]

def target(doc):
    return {"list": ["two", "2"], "none": "", "beyond": "Maybe"}.get(doc["shows"], "Yes")
"""
TASK = """
dataset_path: parquet
dataset_kwargs:
  data_files: {{test: {file}}}
task: {task}
test_split: test
output_type: generate_until
{more}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
FUNCTIONS = """doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: !function utils.target
lmms_eval_specific_kwargs:
  default: {pre_prompt: "", post_prompt: " Say yes or no."}
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A folder of tasks: documents with defects, one without answers, and the two as a group."""
    import datasets

    root = tmp_path_factory.mktemp("odd")
    shows = ["text", "list", "none", "sound", "nothing", "text"]
    rows = [{"shows": show, "question": f"Is {i} odd?", "category": "parity"} for i, show in enumerate(shows)]
    datasets.Dataset.from_list(rows).to_parquet(str(root / "data.parquet"))
    (root / "utils.py").write_text(ODD)
    for task, more in (
        ("odd", FUNCTIONS),
        ("unanswered", FUNCTIONS.replace("doc_to_target: !function utils.target\n", "")),
    ):
        (root / f"{task}.yaml").write_text(TASK.format(file=root / "data.parquet", task=task, more=more))
    (root / "both.yaml").write_text(
        textwrap.dedent("""
        group: both
        task:
          - odd
          - unanswered
    """)
    )
    return root


def test_samples_are_what_the_harness_asks_and_takes_as_right(given, examples):
    logged = simple_evaluate(
        model="lmm_lens",
        model_args=f"pretrained={given.model}",
        tasks=["shapes"],
        task_manager=TaskManager(include_path=given.tasks, include_defaults=False, model_name="lmm_lens"),
        device="cpu",
        force_simple=True,
        process_docs_parallel=1,
    )["samples"]["shapes"]
    samples = list(data.lmms_eval("shapes", include_path=given.tasks))
    assert [sample.id for sample in samples] == [f"lmms_eval/shapes/{each['doc_id']}" for each in logged]
    assert [sample.question for sample in samples] == [each["arguments"][0] for each in logged]
    assert [sample.answer for sample in samples] == [each["target"] for each in logged]
    for sample, example in zip(samples, examples, strict=True):
        assert ImageChops.difference(sample.images[0], example.image).getbbox() is None


def test_it_is_as_good_as_any_data_set(given, lens, examples):
    asked = data.lmms_eval("shapes", include_path=given.tasks)
    assert len(asked) == len(examples)
    assert asked.settings["task"] == "shapes"
    assert given.tasks not in str(asked.settings)
    assert [s.id for s in asked.shuffled(1).take(3)] != [s.id for s in asked.take(3)]
    assert compare(lens, asked.take(4), {"plain": []}, "exact_match").of("plain").tolist() == [1] * 4
    assert head_effects(lens, asked.take(2), heads=None).values.shape == (lens.n_layers, lens.n_heads)


def test_of_two_choices_the_other_is_the_wrong_one(given, examples):
    samples = list(data.named("lmms_eval", task="shapes_choice", include_path=given.tasks))
    choices = sorted({e.answer for e in examples})[:2]
    for sample, example in zip(samples, examples, strict=True):
        assert (sample.answer, sample.wrong) == (example.answer, next(c for c in choices if c != example.answer))


def test_documents_that_are_no_samples_are_named_and_counted(odd):
    with pytest.raises(ScoreError, match=r"row 3 of odd: the document has no right answer"):
        list(data.lmms_eval("odd", include_path=odd))
    asked = data.lmms_eval("odd", include_path=odd, on_bad="skip", template="Think. {question}")
    samples = list(asked)
    assert [sample.id for sample in samples] == [f"lmms_eval/odd/{i}" for i in (0, 1, 5)]
    assert samples[0].question == "Think. Is 0 odd? Say yes or no."
    assert [(sample.answer, sample.wrong) for sample in samples] == [("Yes", "No"), ("two", None), ("Yes", "No")]
    assert samples[1].given == ("two", "2")
    assert {sample.category for sample in samples} == {"parity"}
    assert dict(asked.problems.by_reason) == {"no answer": 1, "no picture": 1, "task fails": 1}
    assert "doc_to_text of the task fails: KeyError: 'question'" in str(asked.problems)


def test_what_is_no_task_with_questions_and_answers_is_refused(odd, given, tmp_path):
    with pytest.raises(ScoreError, match=r"'both' is a group of tasks, expected one of them: odd, unanswered"):
        data.lmms_eval("both", include_path=odd)
    with pytest.raises(ScoreError, match=r"lmms-eval cannot open its task 'unanswered': TypeError"):
        data.lmms_eval("unanswered", include_path=odd)
    with pytest.raises(
        ScoreError, match=r"lmms-eval knows no task 'mmbench_en_devs' among [\d,]+\n  near to it: mmben"
    ):
        data.lmms_eval("mmbench_en_devs")
    with pytest.raises(ScoreError, match="include_path is a folder of tasks"):
        data.lmms_eval("odd", include_path=tmp_path / "none")


def test_a_task_whose_data_is_not_here_says_that_it_is_downloaded():
    with pytest.raises(
        ScoreError, match=r"lmms-eval cannot open its task 'pope': .+\n  data that is not in the cache of"
    ):
        data.lmms_eval("pope")
