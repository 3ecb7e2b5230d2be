"""Rows of text files: places, encodings, and lines that cannot be read."""

import csv
import json

import pytest

from lmm_lens.data import table
from lmm_lens.data.text_files import Delimited, JsonLines
from lmm_lens.errors import ScoreError
from tests.data.builders import jsonl, reasons

ROWS = [{"question": f"grün {i}?", "answer": f'a "{i}",\nb'} for i in range(4)]


def texts(data):
    return [(sample.question, sample.answer) for sample in data]


EXPECTED = [(row["question"], row["answer"]) for row in ROWS]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_line_ends_and_blank_lines_change_nothing(tmp_path, mark, end):
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path = tmp_path / "t.jsonl"
    path.write_bytes(mark + (end + end.join([lines[0], "", *lines[1:], "  ", "", ""])).encode())
    data = table(path, image=None)
    assert texts(data) == EXPECTED
    assert len(data) == 4
    assert sorted(texts(data.shuffled(0))) == EXPECTED
    table_path = tmp_path / "t.csv"
    with table_path.open("w", newline="", encoding="utf-8-sig" if mark else "utf-8") as file:
        writer = csv.writer(file, lineterminator=end)
        writer.writerow(["question", "answer"])
        writer.writerows(EXPECTED[:2])
        file.write(end)
        writer.writerows(EXPECTED[2:])
        file.write(end * 3)
    data = table(table_path, image=None)
    assert texts(data) == EXPECTED
    assert len(data) == 4
    assert sorted(texts(data.shuffled(0))) == EXPECTED


def test_a_place_is_the_line_that_an_editor_shows(tmp_path):
    path = jsonl(tmp_path / "t.jsonl", ["", json.dumps(ROWS[0]), "", "{"])
    assert [row.where for row in JsonLines(path)] == ["row 1 (t.jsonl line 2)", "row 2 (t.jsonl line 4)"]
    path = tmp_path / "t.csv"
    path.write_text('question,answer\n"two\nlines",x\nq,y\n')
    rows = Delimited(path)
    assert [row.where for row in rows] == ["row 1 (t.csv line 2)", "row 2 (t.csv line 4)"]
    assert [rows[1].where, rows[1].values, rows[0].values["question"]] == [
        "row 2 (t.csv line 4)",
        {"question": "q", "answer": "y"},
        "two\nlines",
    ]


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        (
            b'{"question": "q", "answer" "x"}',
            "broken JSON",
            "the line is no JSON: Expecting ':' delimiter at column 28",
        ),
        (b'["question", "q"]', "broken JSON", "expected a JSON object, given "),
        (b'{"question": "\xff", "answer": "x"}', "not UTF-8", "the line is not UTF-8 text"),
        (b"[" * 100_000, "broken JSON", "the line is nested too deeply"),
    ],
)
def test_a_line_that_is_no_json_object_is_one_bad_row(tmp_path, line, reason, message):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\n".join([json.dumps(ROWS[0]).encode(), line, json.dumps(ROWS[1]).encode()]))
    data = table(path, image=None, on_bad="skip")
    assert texts(data) == EXPECTED[:2]
    assert data.problems.by_reason == {reason: 1}
    assert data.problems.first[0].startswith(f"row 2 (t.jsonl line 2): {message}")


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        (b"q,x,more", "broken row", "3 fields, but the header names 2"),
        (b"only", "broken row", "1 fields, but the header names 2"),
        (b'"q"t,x', "broken row", "it cannot be split into fields: ',' expected after '\"'"),
        (b"\xff,x", "not UTF-8", "it is not UTF-8 text"),
    ],
)
def test_a_record_that_is_broken_is_one_bad_row(tmp_path, line, reason, message):
    path = tmp_path / "t.csv"
    path.write_bytes(b"question,answer\nq1,a1\n" + line + b"\nq2,a2\n")
    data = table(path, image=None, on_bad="skip")
    assert texts(data) == [("q1", "a1"), ("q2", "a2")]
    assert data.problems.by_reason == {reason: 1}
    assert data.problems.first[0] == f"row 2 (t.csv line 3): {message}"


def test_a_quote_that_is_never_closed_does_not_swallow_rows_silently(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('question,answer\nq1,a1\n"q2,a2\nq3,a3\n')
    assert reasons(table(path, image=None, on_bad="skip")) == {"broken row": 1}


@pytest.mark.parametrize("header", ["", "question,question\n", "question,\n"])
def test_a_table_needs_a_header_that_names_each_column_once(tmp_path, header):
    path = tmp_path / "t.csv"
    path.write_text(header)
    with pytest.raises(ScoreError, match=r"'t.csv' needs a first line that names each column once"):
        table(path, image=None)


def test_tab_separated_files_are_split_at_tabs(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("question\tanswer\na, b?\tyes, c\n")
    assert texts(table(path, image=None)) == [("a, b?", "yes, c")]


def test_a_json_file_may_hold_an_array_or_a_row_a_line(tmp_path):
    array = tmp_path / "array.json"
    array.write_text("\n" + json.dumps(ROWS, indent=1))
    for path in (array, jsonl(tmp_path / "lines.json", ROWS)):
        data = table(path, image=None)
        assert texts(data) == EXPECTED
        assert len(data) == 4
    broken = jsonl(tmp_path / "t.json", ["[", "{}"])
    with pytest.raises(ScoreError, match=r"'t.json' is no JSON"):
        list(table(broken, image=None))
    one = jsonl(tmp_path / "t.json", ["{", '"a": 1', "}"])
    with pytest.raises(ScoreError, match=r"'t.json' holds one object, expected an array of them or one a line"):
        list(table(one, image=None))


def test_a_file_that_is_not_there_or_no_table_is_refused(tmp_path):
    with pytest.raises(ScoreError, match="there is no file of a table"):
        table(tmp_path / "t.jsonl")
    (tmp_path / "t.xlsx").write_text("x")
    with pytest.raises(ScoreError, match=r"'t.xlsx' is no table that can be read: expected a file ending in .jsonl"):
        table(tmp_path / "t.xlsx")
