"""Iteration, bad rows, take and shuffled, whatever the source."""

import pickle

import pytest

from lmm_lens.data import table
from lmm_lens.errors import ScoreError
from tests.data.builders import jsonl

GOOD = [{"question": f"question {i}?", "answer": f"answer {i}"} for i in range(10)]


def data(rows, **options):
    return table(rows, image=None, **options)


def answers(samples):
    return [sample.answer for sample in samples]


def test_a_data_set_can_be_gone_through_again_and_again():
    samples = data(GOOD)
    assert answers(samples) == answers(samples) == [row["answer"] for row in GOOD]
    assert len(samples) == 10
    assert repr(samples) == "DataSet table of 10 samples"


def test_the_first_bad_row_is_an_error_that_names_it_and_says_what_to_do(tmp_path):
    rows = [*GOOD[:2], {"question": "q?"}]
    with pytest.raises(ScoreError) as raised:
        list(data(jsonl(tmp_path / "t.jsonl", rows)))
    assert str(raised.value) == (
        "row 3 (t.jsonl line 3): there is no 'answer', only 'question'\n"
        '  correct the row, or leave rows like it out with on_bad="skip"'
    )


def test_rows_before_a_bad_one_are_given():
    samples = iter(data([*GOOD[:2], {}]))
    assert [next(samples).answer, next(samples).answer] == ["answer 0", "answer 1"]
    with pytest.raises(ScoreError, match="row 3: there is no 'question', only an empty row"):
        next(samples)


def test_bad_rows_are_counted_by_reason_and_named():
    samples = data(
        [{"question": " ", "answer": "x"}, *GOOD[:2], {"question": "q"}, 17, {"question": "q"}], on_bad="skip"
    )
    assert answers(samples) == ["answer 0", "answer 1"]
    assert samples.problems.count == 4
    assert samples.problems.by_reason == {"empty question": 1, "missing key": 2, "no row": 1}
    assert samples.problems.first[1:3] == (
        "row 4: there is no 'answer', only 'question'",
        "row 5: expected names with values, given 17",
    )
    assert str(samples.problems) == (
        "4 bad rows left out: empty question 1, missing key 2, no row 1\n"
        "  row 1: 'question' is empty\n"
        "  row 4: there is no 'answer', only 'question'\n"
        "  row 5: expected names with values, given 17\n"
        "  and 1 more"
    )


def test_problems_are_those_of_the_last_iteration():
    rows = [*GOOD, {}]
    samples = data(rows, on_bad="skip")
    assert str(samples.problems) == "no bad rows"
    list(samples)
    list(samples)
    assert samples.problems.count == 1
    rows.pop()
    list(samples)
    assert samples.problems.count == 0


def test_only_the_first_twenty_bad_rows_are_named_but_all_are_counted():
    samples = data([*GOOD, *[{}] * 30], on_bad="skip")
    list(samples)
    assert (samples.problems.count, len(samples.problems.first)) == (30, 20)


def test_a_data_set_whose_rows_are_all_bad_is_an_error_even_with_skip():
    with pytest.raises(
        ScoreError, match=r"every row of 'table' is bad: missing key 2\n  row 1: there is no 'question'"
    ):
        list(data([{"q": 1}, {"q": 2}], on_bad="skip"))


def test_a_data_set_without_rows_is_an_error():
    with pytest.raises(ScoreError, match="data set 'table' has no rows"):
        list(data([]))


def test_an_id_that_comes_twice_is_a_bad_row():
    rows = [row | {"name": name} for row, name in zip(GOOD, "abcadb", strict=False)]
    with pytest.raises(ScoreError, match="row 4: a row before it has the id a too"):
        list(data(rows, id="name"))
    samples = data(rows, id="name", on_bad="skip")
    assert [sample.id for sample in samples] == ["a", "b", "c", "d"]
    assert samples.problems.by_reason == {"id twice": 2}


def test_take_gives_the_first_good_samples_and_reads_no_further():
    read = []

    class Rows:
        def __iter__(self):
            for row in [{}, *GOOD]:
                read.append(row)
                yield row

    few = data(Rows(), on_bad="skip").take(3)
    assert answers(few) == ["answer 0", "answer 1", "answer 2"]
    assert len(read) == 4
    assert few.problems.count == 1
    assert answers(data(GOOD).take(5).take(2)) == answers(data(GOOD).take(2).take(5)) == ["answer 0", "answer 1"]
    assert (len(data(GOOD).take(3)), len(data(GOOD).take(30))) == (3, 10)


def test_halves_are_every_other_good_sample_and_together_all():
    rows = [*GOOD[:3], {}, *GOOD[3:9]]
    samples = data(rows, on_bad="skip")
    first, second = samples.half(0), samples.half(1)
    assert answers(first) == [f"answer {i}" for i in (0, 2, 4, 6, 8)]
    assert answers(second) == [f"answer {i}" for i in (1, 3, 5, 7)]
    assert second.problems.count == 1
    whole = data(GOOD[:9])
    assert [len(whole.half(0)), len(whole.half(1)), len(whole.take(6).half(1))] == [5, 4, 3]
    assert answers(whole.take(3).half(1)) == ["answer 1"]
    assert whole.half(1).settings["half"] == 1


def test_halves_of_halves_and_other_parts_are_refused():
    samples = data(GOOD)
    with pytest.raises(ScoreError, match="a half is 0 or 1, given 2"):
        samples.half(2)
    with pytest.raises(ScoreError, match="this is a half already"):
        samples.half(0).half(1)
    with pytest.raises(ScoreError, match="take before you halve"):
        samples.half(0).take(2)


def test_shuffled_gives_every_sample_once_in_the_order_of_the_seed(tmp_path):
    for source in (GOOD, jsonl(tmp_path / "t.jsonl", GOOD)):
        samples = data(source)
        first, again, other = (answers(samples.shuffled(seed)) for seed in (1, 1, 2))
        assert first == again != other
        assert sorted(first) == sorted(other) == answers(samples)
        assert first != answers(samples)
        assert answers(samples.shuffled(1).take(3)) == first[:3]


def test_a_shuffled_row_keeps_its_place_in_messages(tmp_path):
    path = jsonl(tmp_path / "t.jsonl", [*GOOD, "{broken"])
    samples = data(path, on_bad="skip").shuffled(3)
    assert len(list(samples)) == 10
    assert samples.problems.first[0].startswith("row 11 (t.jsonl line 11): the line is no JSON")


def test_what_cannot_be_done_says_what_can():
    class Stream:
        def __iter__(self):
            return iter(GOOD)

    stream = data(Stream())
    with pytest.raises(TypeError, match="'table' is a stream, its length is not known"):
        len(stream)
    assert (bool(stream), repr(stream)) == (True, "DataSet table, a stream")
    assert len(list(stream)) == 10
    with pytest.raises(ScoreError, match="'table' is a stream and cannot be shuffled"):
        stream.shuffled(0)
    with pytest.raises(ScoreError, match=r"shuffle before you take: data.shuffled\(seed\).take\(n\)"):
        data(GOOD).take(3).shuffled(0)
    with pytest.raises(ScoreError, match="expects a positive number of samples, given 0"):
        data(GOOD).take(0)
    with pytest.raises(ScoreError, match="unknown choice of on_bad 'ignore'\n  valid: refuse, skip"):
        data(GOOD, on_bad="ignore")


def test_settings_say_what_was_done_to_the_data():
    samples = data(GOOD).shuffled(7).take(3)
    assert samples.settings["shuffled"] == 7
    assert samples.settings["taken"] == 3
    assert samples.settings["on_bad"] == "refuse"
    assert "taken" not in data(GOOD).settings


def test_a_data_set_can_be_sent_to_another_process(tmp_path):
    path = jsonl(tmp_path / "t.jsonl", GOOD)
    sent = pickle.loads(pickle.dumps(table(path, image=None)))
    assert answers(sent) == [row["answer"] for row in GOOD]
