"""`lmm-lens demo` as a user runs it: one real process, its numbers checked against a computation of our own."""

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lmm_lens import HeadScores
from lmm_lens.bundled import shapes
from tests.cli.printed import heads_in
from tests.support.eager import Eager, phi
from tests.support.page import Page

N = 14
SCRIPT = Path(sys.executable).parent / "lmm-lens"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Output and folder of one run."""
    folder = tmp_path_factory.mktemp("run") / "new" / "demo"
    command = [SCRIPT, "demo", "--n", str(N), "--out", folder]
    done = subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT, cwd=folder.parent.parent, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    page = (folder / "report.html").read_text(encoding="utf-8")
    return SimpleNamespace(out=done.stdout, folder=folder, html=page, page=Page(page))


@pytest.fixture(scope="module")
def questions(lens):
    """The demo's visual and text-only questions, processed without the library."""
    visual = shapes.examples(N, seed=0)
    text = shapes.examples(N // 2, kinds=shapes.TEXT_KINDS, seed=0)
    return {"visual": visual, "text": text}


def inputs_of(lens, example):
    slot = "<image> " if example.image is not None else ""
    return lens.processor(
        text=f"<s> USER: {slot}{example.question} ASSISTANT:",
        images=example.image,
        add_special_tokens=False,
        return_tensors="pt",
    )


def right_answers(lens, examples, ablated=()) -> float:
    """The share of questions that the model without some heads answers rightly, greedily and in full."""
    model = Eager(lens.model, ablated).model
    right = 0
    for example in examples:
        inputs = inputs_of(lens, example)
        new = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        answer = lens.processor.tokenizer.decode(new, skip_special_tokens=True)
        right += answer.lower().split() == example.answer.lower().split()
    return right / len(examples)


def printed_accuracy(demo, condition: str) -> list[float]:
    """The visual and the text-only accuracy of the first table row of that name."""
    line = next(line for line in demo.out.splitlines() if condition in line)
    return [float(number) for number in re.findall(r"\d\.\d{3}", line)]


def as_head(name: str) -> tuple[int, int]:
    layer, head = re.findall(r"\d+", name)
    return int(layer), int(head)


@pytest.fixture(scope="module")
def expected_mass(lens, questions):
    """Mean raw and non-sink visual mass [layer, head] of eager attention, summed patch by patch."""
    eager, raw, nonsink = Eager(lens.model), np.zeros((6, 8)), np.zeros((6, 8))
    for example in questions["visual"]:
        inputs = inputs_of(lens, example)
        patches = (inputs["input_ids"][0] == lens.model.config.image_token_index).nonzero().flatten().tolist()
        seen = eager.prefill(inputs)
        for layer in range(6):
            sinks = [j for j in patches if phi(seen.resid[layer][0, j], (5, 77)) >= 7]
            for head in range(8):
                row = seen.row(layer, 0, head, -1)
                raw[layer, head] += sum(row[j] for j in patches) / N
                nonsink[layer, head] += sum(row[j] for j in patches if j not in sinks) / N
    return {"raw": raw, "nonsink": nonsink}


def test_the_demo_writes_figures_scores_and_a_page(demo):
    names = {
        "attention.png",
        "heads.png",
        "nonsink_mass.safetensors",
        "picture.png",
        "report.html",
        "visual_mass.safetensors",
    }
    assert {path.name for path in demo.folder.iterdir()} >= names
    for name in ("attention.png", "heads.png"):
        pixels = np.asarray(Image.open(demo.folder / name).convert("L"))
        assert pixels.shape[0] > 200
        assert pixels.std() > 20


def test_it_ends_by_saying_where_the_report_is(demo):
    report, other = demo.out.strip().splitlines()[-2:]
    assert report.endswith(str(demo.folder / "report.html"))
    assert other == 'a real language model that learned to see: Lens.demo("emoji")'


def test_it_asks_a_question_and_shows_the_annotated_sequence(demo):
    example = shapes.examples(1, kinds=("color",), seed=1)[0]
    assert example.question in demo.out
    assert f"(expected: {example.answer})" in demo.out
    assert "row 0: <s> USER: [image 0: 36 tokens, 6 x 6, at 2 to 37]" in demo.out


def test_the_printed_heads_have_the_mass_of_eager_attention(demo, expected_mass):
    heads = heads_in(demo.out)
    assert len(heads) == 16
    for listed, expected in ((heads[:8], expected_mass["raw"]), (heads[8:], expected_mass["nonsink"])):
        assert [mean for _, mean, _, _ in listed] == pytest.approx(np.sort(expected[1:].flatten())[:-9:-1], abs=6e-4)
        for name, mean, low, high in listed:
            assert mean == pytest.approx(expected[as_head(name)], abs=6e-4)
            assert low <= mean <= high


@pytest.mark.parametrize("condition", ["nothing ablated", "by non-sink mass", "by raw mass"])
def test_the_printed_accuracies_are_those_of_a_model_without_the_heads(demo, lens, questions, expected_mass, condition):
    first, last = map(int, re.search(r"heads of layers (\d) to (\d)", demo.out).groups())
    mass = {"nothing ablated": None, "by raw mass": "raw", "by non-sink mass": "nonsink"}[condition]
    ablated = []
    if mass:
        allowed = [(layer, head) for layer in range(first, last + 1) for head in range(8)]
        ablated = sorted(allowed, key=lambda head: -expected_mass[mass][head])[:8]
    visual, text = printed_accuracy(demo, condition)
    assert visual == pytest.approx(right_answers(lens, questions["visual"], ablated), abs=6e-4)
    assert text == pytest.approx(right_answers(lens, questions["text"], ablated), abs=6e-4)


def test_a_control_shows_the_spread_of_its_draws(demo):
    visual_mean, visual_low, visual_high, text_mean, text_low, text_high = printed_accuracy(demo, "random, same layers")
    assert visual_low <= visual_mean <= visual_high
    assert text_low <= text_mean <= text_high


def test_the_heads_that_look_are_needed_for_pictures_and_not_for_text(demo):
    """What the bundled model was trained to show, on these few questions."""
    (visual, text), (without, text_without) = (
        printed_accuracy(demo, condition) for condition in ("nothing ablated", "top 8 by non-sink mass")
    )
    assert visual > 0.85
    assert text > 0.95
    assert without < 0.6
    assert without < printed_accuracy(demo, "random, same layers")[0] - 0.1
    assert text_without > 0.8


@pytest.mark.parametrize("metric", ["visual_mass", "nonsink_mass"])
def test_the_saved_scores_are_the_printed_ones(demo, lens, expected_mass, metric):
    path = demo.folder / f"{metric}.safetensors"
    saved = HeadScores.load(path, lens=lens)
    assert (saved.metric, saved.query, saved.n_prompts) == (metric, "last", N)
    expected = expected_mass["raw" if metric == "visual_mass" else "nonsink"]
    np.testing.assert_allclose(saved.values.numpy(), expected, atol=1e-5)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert json.loads(data[8 : 8 + length])["per_prompt"]["shape"] == [N, 6, 8]


def test_the_page_holds_everything_and_fetches_nothing(demo):
    assert not re.search(r"https?://", demo.html)
    assert not re.search(r"url\(|@import", demo.html)
    assert all(address.startswith(("data:", "#")) for address in demo.page.fetched)
    assert "script" not in {tag for tag, _ in demo.page.tags}


def test_the_page_nests_and_is_the_whole_of_a_document(demo):
    tags = [tag for tag, _ in demo.page.tags]
    assert demo.html.lower().startswith("<!doctype html>")
    assert [tags.count(tag) for tag in ("html", "head", "title", "body", "h1")] == [1] * 5
    assert all(attrs.get("alt") is not None for tag, attrs in demo.page.tags if tag == "img")


def test_the_page_shows_the_figures_that_were_written(demo):
    shown = {picture.tobytes() for picture in demo.page.pictures()}
    for name in ("attention.png", "heads.png"):
        assert Image.open(demo.folder / name).tobytes() in shown


def test_the_page_shows_the_numbers_that_were_printed(demo):
    cells = {cell.strip() for table in demo.page.tables for row in table for cell in row}
    for name, mean, low, high in heads_in(demo.out):
        assert name in cells
        assert f"{mean:.3f} ({low:.3f} to {high:.3f})" in cells
    for condition in ("nothing ablated", "top 8 by non-sink mass", "top 8 by raw mass"):
        visual, text = printed_accuracy(demo, condition)
        assert [condition, f"{visual:.3f}", f"{text:.3f}"] in [row for table in demo.page.tables for row in table]


# ---------------------------------------------------------------------- other processes


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['lmm-lens', '--help']\n"
        "from lmm_lens.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert "HEAVY []" in done.stdout, done.stderr
    assert "demo" in done.stdout


def test_an_error_of_ours_ends_the_process_with_status_2_and_no_traceback():
    done = subprocess.run([SCRIPT, "info", "NONSENSE"], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: 'NONSENSE' cannot be opened as an image-text-to-text model")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_the_demo_leaves_torch_with_the_threads_it_had():
    from lmm_lens.cli.demo import _one_thread

    before = torch.get_num_threads()
    with _one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
