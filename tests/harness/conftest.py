"""A model in a folder and local tasks about it, as lmms-eval reads both; no download."""

import json
import textwrap
from types import SimpleNamespace

import pytest
import torch

from lmm_lens import AblateHeads, Lens
from lmm_lens.bundled import shapes
from lmm_lens.interventions import to_json

UTILS = '''
def visual(doc):
    return [doc["image"].convert("RGB")]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def right(doc, results):
    said = results[0]
    return {"right": float(said.strip().lower() == doc["answer"]), "pope": {"id": doc["id"], "score": float(len(said))}}

def mean(values):
    return sum(values) / len(values)

def score(values):
    return sum(each["score"] for each in values) / len(values)

def choices(doc):
    return list(doc["choices"])

def target(doc):
    return list(doc["choices"]).index(doc["answer"])

def rounds(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    """What is asked first, then the same after the answer, and an end."""
    if not round_idx:
        return doc["question"]
    if round_idx == 2:
        return None, None, True, previous_output, previous_round_info
    return visual(doc), doc["question"] + " " + previous_output[-1], False, previous_output, round_idx

def all_rounds(doc, results):
    return {"right": float(len(results[0]))}
'''
TASK = """
dataset_path: parquet
dataset_kwargs:
  data_files: {{test: {data}}}
task: {name}
test_split: test
output_type: {kind}
doc_to_visual: !function utils.visual
doc_to_text: !function utils.{text}
doc_to_target: {target}
{more}
metric_list:
{metrics}
"""
METRIC = "  - {{metric: {}, aggregation: !function utils.{}, higher_is_better: true}}\n"


@pytest.fixture(scope="session")
def lens():
    return Lens.demo()


@pytest.fixture(scope="session")
def examples():
    return [e for e in shapes.examples(60, seed=5) if e.answer not in ("yes", "no")][:8]


@pytest.fixture(scope="session")
def given(tmp_path_factory, lens, examples):
    """A folder with the model, one with tasks, and a file of interventions."""
    import datasets

    root = tmp_path_factory.mktemp("harness")
    lens.model.save_pretrained(root / "model")
    lens.processor.save_pretrained(root / "model")
    choices = sorted({e.answer for e in examples})[:2]
    rows = [
        {
            "id": i,
            "image": e.image,
            "question": e.question,
            "answer": e.answer,
            "choices": [e.answer, next(c for c in choices if c != e.answer)],
        }
        for i, e in enumerate(examples)
    ]
    data = root / "tasks" / "data.parquet"
    data.parent.mkdir()
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(str(data))
    (root / "tasks" / "utils.py").write_text(UTILS)
    right, score = METRIC.format("right", "mean"), METRIC.format("pope", "score")

    def task(name, kind, metrics, more="", text="text", target="answer"):
        content = TASK.format(name=name, kind=kind, data=data, metrics=metrics, more=more, text=text, target=target)
        (root / "tasks" / f"{name}.yaml").write_text(textwrap.dedent(content))

    def generates(**options):
        return f"process_results: !function utils.right\ngeneration_kwargs: {json.dumps(options)}"

    task("shapes", "generate_until", right + score, generates(max_new_tokens=4, temperature=0, do_sample=False))
    task("shapes_until", "generate_until", right + score, generates(max_new_tokens=4, until=["e", "\n\n"]))
    task("shapes_odd", "generate_until", right + score, generates(max_new_tokens=4, image_aspect_ratio="pad"))
    task(
        "shapes_choice",
        "multiple_choice",
        "  - {metric: acc, aggregation: mean, higher_is_better: true}\n",
        "doc_to_choice: !function utils.choices",
        target="!function utils.target",
    )
    task(
        "shapes_rounds",
        "generate_until_multi_round",
        right,
        'process_results: !function utils.all_rounds\ngeneration_kwargs: {"max_new_tokens": 4}',
        text="rounds",
    )
    edits = [AblateHeads([(1, 4), (3, 4)], rows="generating")]
    (root / "edits.json").write_text(to_json(edits))
    return SimpleNamespace(
        root=root,
        model=str(root / "model"),
        tasks=str(root / "tasks"),
        edits=str(root / "edits.json"),
        interventions=edits,
    )


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield
