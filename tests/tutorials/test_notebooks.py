"""The tutorials: what is committed is whole. `tests/stories` runs them anew."""

import json
import re
from typing import Any

import nbformat
import pytest

from tests.support.notebooks import PICTURES, code_cells, number, outputs, pictures
from tutorials import run

NOTEBOOKS = run.notebooks()
NO_SWITCH = {"05": "SERVER"}
LARGEST = 3_000_000  # bytes
OF_A_MACHINE = re.compile(r"/home/|/root/|/tmp/|/work/|/Users/|/opt/|site-packages|[A-Z]:\\\\")


@pytest.fixture(params=NOTEBOOKS, ids=number)
def committed(request: pytest.FixtureRequest) -> Any:
    notebook = nbformat.read(request.param, as_version=4)
    nbformat.validate(notebook)
    notebook.path = request.param
    return notebook


# ---------------------------------------------------------------------- what is committed


def test_there_are_those_of_the_readme():
    readme = (run.FOLDER / "README.md").read_text(encoding="utf-8")
    assert [number(path) for path in NOTEBOOKS] == list(PICTURES)
    assert all(f"]({path.name})" in readme for path in NOTEBOOKS)


def test_it_was_run_from_top_to_bottom_without_an_error(committed):
    counts = [cell.execution_count for cell in code_cells(committed)]
    assert counts == list(range(1, len(counts) + 1))
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs(committed))


def test_it_has_its_figures_and_is_not_large(committed):
    assert pictures(committed) == PICTURES[number(committed.path)]
    assert committed.path.stat().st_size < LARGEST


def test_it_names_no_place_of_the_machine_that_ran_it(committed):
    for output in outputs(committed):
        output.get("data", {}).pop("image/png", None)
    text = re.sub(r"base64,[\w+/=]+", "", json.dumps(committed.cells))
    assert OF_A_MACHINE.findall(text) == []
    assert all(not cell.metadata for cell in committed.cells)
    assert committed.metadata.keys() == {"kernelspec", "language_info"}


def test_one_cell_is_to_be_changed_for_a_real_model_and_the_next_says_what_to_expect(committed):
    switch = NO_SWITCH.get(number(committed.path), "MODEL")
    first, second = committed.cells[1:3]
    assert re.search(rf"^{switch} = .*to change", first.source, re.MULTILINE)
    assert second.cell_type == "markdown"
    assert second.source.startswith("**With a real model.**")


def test_its_cells_have_lasting_names(committed):
    names = [cell.id for cell in committed.cells]
    assert all(re.fullmatch(r"(text|code)-[a-z-]+", name) for name in names)
    assert len(set(names)) == len(names)


def test_every_file_that_it_links_exists(committed):
    for cell in committed.cells:
        for target in re.findall(r"\]\(([^)#]+)\)", cell.source if cell.cell_type == "markdown" else ""):
            if not target.startswith("https://"):
                assert (run.FOLDER / target).exists(), target


# ---------------------------------------------------------------------- comparing two runs


def test_rounding_is_no_difference():
    assert run.same("mean 0.671 of 140\n---- ----", "mean  0.672 of 140\n---")
    assert run.same("p 0.0048, -0.00", "p 0.0049, 0.00")


@pytest.mark.parametrize("other", ["L1H4 0.77 of 140", "L1H5 0.67 of 140", "L1H4 0.67 of 141", "L1H4 0.67"])
def test_another_number_head_or_count_is_a_difference(other):
    assert not run.same("L1H4 0.67 of 140", other)


def test_a_changed_output_is_found_in_its_cell():
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    changed = nbformat.read(NOTEBOOKS[0], as_version=4)
    assert list(run.differences(notebook, changed)) == []
    cell = next(cell for cell in code_cells(changed) if cell.id == "code-nonsink")
    cell.outputs[-1].text = cell.outputs[-1].text.replace("L1H4", "L5H0")
    (found,) = run.differences(notebook, changed)
    assert "L5H0" in found
