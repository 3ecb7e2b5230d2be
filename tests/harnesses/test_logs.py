"""Logs of two conditions as a paired comparison: numbers worked out by hand, and what is refused."""

import json

import pytest

from lmm_lens.comparisons import Comparison
from lmm_lens.errors import ScoreError
from lmm_lens.harnesses import compare_logs

EDIT = {"intervention": "VAR(...)", "edits": 12, "moved": 3.0, "questions": 4}


def sample(number, value, said="red", edits=(), **more):
    counts = {"output_tokens": 2, "seconds": 0.5, "interventions": list(edits)}
    return {
        "doc_id": number,
        "target": "red",
        "filtered_resps": said,
        "token_counts": [counts],
        "doc_hash": "h",
        "acc": value,
        "input": f"question {number}",
        **more,
    }


@pytest.fixture
def log(tmp_path):
    def write(name, samples, task="shapes"):
        path = tmp_path / f"{name}_samples_{task}.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in samples))
        return path

    return write


def test_two_conditions_on_the_same_samples(log, tmp_path):
    plain = log("plain", [sample(i, 1.0) for i in range(8)] + [sample(8, 0.0, "blue")])
    edited = log("var", [sample(i, float(i > 5), ["blue"], [EDIT]) for i in (8, 7, 6, 5, 4, 3, 2, 1, 0)])
    found = compare_logs({"plain": plain, "VAR": edited}, "acc")
    assert found.ids == tuple(f"shapes/{i}" for i in range(9))
    assert found.values.T.tolist() == [[1.0] * 8 + [0.0], [0.0] * 6 + [1.0] * 3]
    assert found.edits.T.tolist() == [[0] * 9, [3] * 9]
    assert found.moved[:, 1].tolist() == [0.75] * 9
    assert found.seconds.tolist() == [[0.5, 0.5]] * 9
    assert found.said("VAR") == ("blue",) * 9
    test = found.tests().iloc[0]
    assert (test["condition"], test["against"], test["test"]) == ("VAR", "plain", "McNemar, exact")
    assert test["p"] == pytest.approx(2 * (1 + 7) / 2**7)  # 6 of 7 that differ are worse
    assert test["difference"] == pytest.approx(-5 / 9)
    found.save(tmp_path / "table.safetensors")
    again = Comparison.load(tmp_path / "table.safetensors")
    assert repr(again) == repr(found)
    assert "acc of 9 items under 2 conditions" in repr(found)


def test_scores_in_dicts_and_several_tasks(log):
    def conditions(values):
        return [
            log(str(values), [sample(0, {"question_id": 1, "score": values[0]})], "mme"),
            log(str(values), [sample(0, {"question_id": 1, "score": values[1]})], "pope"),
        ]

    found = compare_logs({"a": conditions([1, 0]), "b": conditions([0, 0])}, "acc", baseline="b")
    assert found.ids == ("mme/0", "pope/0")
    assert found.values.tolist() == [[1, 0], [0, 0]]
    assert found.baseline == "b"


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([sample(0, 1.0)], r"'b' has 1 samples and 'a' 2: shapes/1 is in one alone\n"),
        (
            [sample(0, 1.0), sample(1, 1.0, doc_hash="x")],
            "not the same sample under 'b' and 'a': .*doc_hash",
        ),
        ([sample(0, 1.0), sample(1, 1.0, input="?")], "their input differ"),
        ([sample(0, 1.0), sample(1, "yes")], "acc of sample 1 is 'yes', expected a number or a dict with a score"),
        ([sample(0, 1.0), sample(1, {"right": 1})], "acc of sample 1 is "),
        ([sample(0, 1.0), sample(0, 1.0)], "has sample 0 twice: a task with several filters"),
        ([{"results": 1}], "is no log of lmms-eval's samples"),
        ([], "is no log of lmms-eval's samples"),
    ],
)
def test_what_is_no_pair_is_refused(log, samples, message):
    a = log("a", [sample(0, 1.0), sample(1, 0.0)])
    with pytest.raises(ScoreError, match=message):
        compare_logs({"a": a, "b": log("b", samples)}, "acc")


def test_what_is_not_there_is_refused(log, tmp_path):
    a = log("a", [sample(0, 1.0)])
    with pytest.raises(ScoreError, match=r"unknown metric of this log 'ac', did you mean 'acc'\?"):
        compare_logs({"a": a}, "ac")
    with pytest.raises(ScoreError, match=r"the log 'missing\.jsonl' cannot be read"):
        compare_logs({"a": tmp_path / "missing.jsonl"}, "acc")
    with pytest.raises(ScoreError, match="unknown condition to be the baseline 'c'"):
        compare_logs({"a": a}, "acc", baseline="c")
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(ScoreError, match="holds a line that is no JSON"):
        compare_logs({"a": tmp_path / "broken.jsonl"}, "acc")
    with pytest.raises(ScoreError, match="logs are named"):
        compare_logs({}, "acc")
