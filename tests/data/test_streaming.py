"""A big file is read row by row: memory does not grow with it."""

import tracemalloc

import pytest

from lmm_lens.data import table


def write(path, n):
    with path.open("w") as file:
        for i in range(n):
            file.write(f'{{"name": "row {i}", "question": "what is the number of this row, {i}?", "answer": "{i}"}}\n')
    return path


def peak(path, **options):
    """Bytes at the highest point of going through a file, beside what was there."""
    data = table(path, image=None, **options)
    tracemalloc.start()
    try:
        count = sum(1 for _ in data)
        return count, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("big")
    return {n: write(folder / f"{n}.jsonl", n) for n in (2_000, 20_000, 40_000)}


@pytest.mark.long
def test_forty_thousand_rows_take_the_memory_of_two_thousand(files):
    few, many = (peak(files[n]) for n in (2_000, 40_000))
    print("peak bytes", few[1], many[1])
    assert (few[0], many[0]) == (2_000, 40_000)
    assert many[1] < few[1] + 40_000


def test_own_ids_are_remembered_as_numbers_alone(files):
    n, used = peak(files[20_000], id="name")
    print("peak bytes", used)
    assert n == 20_000
    assert used < 200 * n  # a set that grows is there twice for a moment; a sample is 1 kB
