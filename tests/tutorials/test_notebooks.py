"""The tutorials: what is committed is whole, and every notebook runs anew from top to bottom and finds the same.

Two notebooks run at a time, each in a kernel of its own; a key claim of every story is read off its fresh outputs.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import nbformat
import pytest

from tutorials import run

NOTEBOOKS = run.notebooks()
PICTURES = {"01": 5, "02": 5, "03": 10, "04": 6, "05": 0, "06": 1, "07": 2}
NO_SWITCH = {"05": "SERVER"}
LARGEST = 3_000_000  # bytes
OF_A_MACHINE = re.compile(r"/home/|/root/|/tmp/|/work/|/Users/|/opt/|site-packages|[A-Z]:\\\\")


def number(path: Any) -> str:
    return path.name[:2]


@pytest.fixture(params=NOTEBOOKS, ids=number)
def committed(request: pytest.FixtureRequest) -> Any:
    notebook = nbformat.read(request.param, as_version=4)
    nbformat.validate(notebook)
    notebook.path = request.param
    return notebook


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: Any) -> Iterator[Any]:
    return (output for cell in code_cells(notebook) for output in cell.outputs)


def pictures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


# ---------------------------------------------------------------------- what is committed


def test_there_are_the_seven_of_the_readme():
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


# ---------------------------------------------------------------------- running them


Said = Callable[[str], str]


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])", text)]


def row(text: str, name: str) -> list[float]:
    """The numbers of the first line that has this name, behind the name."""
    line = next(line for line in text.splitlines() if name in line)
    return numbers(line.split(name, 1)[1])


def where_it_looks(said: Said) -> None:
    assert "image         36 tokens" in said("masks")
    heads = said("nonsink")
    assert "top 8 by non-sink   L1H4" in heads
    assert row(heads, "of that on sinks")[0] > 0.1
    by = {name: next(line for line in heads.splitlines() if f"by {name}" in line) for name in ("weight", "non-sink")}
    assert "L2H1" in by["weight"]  # parks on sinks
    assert "L2H1" not in by["non-sink"]
    (even,) = re.findall(r"give the box (\S+)", said("region"))
    best = numbers(said("region").splitlines()[-5])
    assert best[1:3] == [1, 4]
    assert best[-1] > 4 * float(even)
    best_of = [row(said("depth"), part)[-1] for part in ("early", "middle", "late")]
    assert best_of == sorted(best_of, reverse=True)


def what_heads_do(said: Said) -> None:
    table = said("scopes")
    assert row(table, "nothing ablated")[0] > 0.95
    assert row(table, "these 8 heads")[0] < 0.5
    assert row(table, "random, same layers")[0] > 0.8
    assert row(said("curve"), "p =")[0] < 0.05
    layers = [numbers(line)[1:] for line in said("layers").splitlines()[-6:]]
    assert layers[0][0] < 0.3  # layer 0 reads the words of both kinds of questions
    assert layers[0][1] < 0.3
    assert layers[1][0] < 0.85  # layer 1 reads the picture
    assert layers[1][1] > 0.95
    assert min(layers[-1]) > 0.95  # the last layer's heads are not needed
    alone, attributed = row(said("attribution"), "L0H7: alone")[:2]
    assert attributed > alone + 0.2  # stands in for others


def a_circuit(said: Said) -> None:
    assert set(said("circuit").split()[-5:]) == {"L1H4", "L2H5", "L0H6", "L0H2", "L0H7"}
    kept = row(said("faithfulness"), "the circuit alone:")
    assert kept[1] > 0.95
    assert 0.9 < kept[2] < 1.1
    assert max(row(said("faithfulness"), "random sets:")) < 0.2
    assert row(said("faithfulness"), "everything but the circuit:")[1] < 0.4
    assert row(said("route-level"), "routes alone:")[0] > 0.9
    assert row(said("route-level"), "object → last:")[0] < 0.3
    assert row(said("hooks"), "largest difference of logits:") == [0.0]
    assert row(said("attribution"), "over all heads:")[0] > 0.8


def sinks_and_var(said: Said) -> None:
    assert "dimensions [5, 77]" in said("find")
    assert said("none").count("no massive activation") == 2
    assert "InterventionError" in said("none")
    before, after = row(said("one-row"), "before"), row(said("one-row"), "after VAR")
    assert before[2] == after[2] == 1.0
    assert after[0] == pytest.approx(0.4 * before[0], abs=0.002)  # sinks keep 1 - p
    assert after[1] > before[1]
    assert row(said("asked"), "sinks masked")[1] > -0.05
    change, low, high = row(said("effect"), "VAR, rho 0.5")[1:4]
    assert low <= 0 <= high
    assert abs(change) < 0.02
    (edits,) = re.findall(r"by layer: (\{.*?\})", said("report"))
    assert set(ast.literal_eval(edits)) <= {2, 3, 4}  # neither the first two layers nor the last


def on_a_server(said: Said) -> None:
    assert "below 1e-5: True" in said("scores")
    assert "asked to import: []" in said("scores")
    assert said("edits").count("as here: True") == 4
    assert "RemoteError: the connection to ... was lost" in said("lost")
    assert "again sent 2 jobs, for 40 prompts in 4 batches" in said("lost")
    assert "gradients do not travel" in said("refused")


def an_adapter(said: Said) -> None:
    assert "PromptError" in said("refused")
    assert "no whole number of pictures" in said("wrong")
    assert "{'image': 36, 'marker': 6, 'text': 9}" in said("adapter")
    misplaced = [numbers(line.split(":")[1])[0] for line in said("check").splitlines()]
    assert misplaced[:2] == [0, 0]
    assert min(misplaced[2:]) > 0
    assert said("fixed").count(": 0 of 36 tokens misplaced") == 4
    assert "every edit landed" in said("edits")
    assert said("edits").count("True") == 4


def a_table(said: Said) -> None:
    assert "119 samples; 1 bad row left out" in said("bad")
    assert "p (Holm)" in said("choose")
    assert "\x1b" not in said("choose") + said("confirm")
    assert "L1H4" in said("chosen")
    assert "effects.csv" in said("files")
    intact, without = row(said("table"), "yes_ratio")[0], row(said("table"), "yes_ratio")[3]
    assert intact > 0.4
    assert without < 0.1  # as with a blank picture
    assert "\\toprule" in said("latex")
    assert row(said("pictures"), "share 0 of the four:")[1] < 0.1


STORIES = {
    "01": where_it_looks,
    "02": what_heads_do,
    "03": a_circuit,
    "04": sinks_and_var,
    "05": on_a_server,
    "06": an_adapter,
    "07": a_table,
}


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Any]]]:
    """Those that were asked for, two at a time."""
    asked = {item.callspec.params["which"] for item in request.session.items if "running" in item.fixturenames}
    pool = ThreadPoolExecutor(2)
    yield {number(path): pool.submit(run.executed, path) for path in NOTEBOOKS if number(path) in asked}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("which", STORIES)
def test_it_runs_anew_and_its_story_holds(which, running):
    notebook = running[which].result()
    assert [output for output in outputs(notebook) if output.get("name") == "stderr"] == []
    assert pictures(notebook) == PICTURES[which]
    cells = code_cells(notebook)
    named = dict(zip((cell.id for cell in cells), run.texts(notebook), strict=True))
    STORIES[which](lambda name: named[f"code-{name}"])
