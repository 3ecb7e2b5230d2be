"""The viewer's widget in JupyterLab and Notebook themselves: what the mouse chooses is a `HeadSet` in the kernel."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Page

from tests.support.chromium import launched

LAB = Path(os.environ["LMM_LENS_JUPYTER"]) / "bin" / "jupyter-lab"
SECONDS = 120  # for anything that is waited for, on a crowded machine
CELLS = (
    """
from lmm_lens import AblateHeads, Lens, shapes
from lmm_lens.viewer import view
lens = Lens.demo()
example = shapes.examples(12, kinds=["color"], seed=3)[5]
prompt = lens.prompt(example.question, images=example.image)
looking = view(prompt, lens, tower=True, height=620).widget([(1, 4)])
looking
""",
    "print(repr(looking.selected), lens.run(prompt, [AblateHeads(looking.selected)]).reports[0].n_edits > 0)",
    "looking.selected = [(3, 0), (2, 5)]\nprint('set')",
    "view(prompt, lens, height=500)",
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a server with one notebook, whose kernel is this Python."""
    folder = tmp_path_factory.mktemp("jupyter")
    kernel = folder / "share" / "kernels" / "lens"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    about = {"argv": command, "display_name": "lens", "language": "python", "env": {"OMP_NUM_THREADS": "1"}}
    (kernel / "kernel.json").write_text(json.dumps(about))
    (folder / "work").mkdir()
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "lens", "display_name": "lens", "language": "python"}},
        cells=[nbformat.v4.new_code_cell(source.strip()) for source in CELLS],
    )
    nbformat.write(notebook, folder / "work" / "heads.ipynb")
    own = {"PATH": "share", "CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "run"}
    environment = os.environ | {f"JUPYTER_{name}": str(folder / place) for name, place in own.items()}
    environment.pop("PYTHONPATH", None)
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", "--ServerApp.token=of-this-test"]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen([LAB, *options], cwd=folder / "work", env=environment, stdout=log, stderr=log)
    try:
        yield _address(folder, server)
    finally:
        server.terminate()
        server.wait(SECONDS)


def _address(folder, server):
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        assert server.poll() is None, (folder / "log").read_text()
        for told in (folder / "run").glob("jpserver-*.json"):
            if text := told.read_text():
                return json.loads(text)["url"]
        time.sleep(0.2)
    raise AssertionError((folder / "log").read_text())


@pytest.fixture
def page():
    with launched() as browser:
        opened = browser.new_page(viewport={"width": 1400, "height": 1100})
        opened.set_default_timeout(1000 * SECONDS)
        yield opened


def cell(page: Page, number: int):
    return page.locator(".jp-Notebook .jp-CodeCell").nth(number)


def run(page: Page, number: int) -> None:
    cell(page, number).locator(".jp-InputArea-editor").click()
    page.keyboard.press("Control+Enter")


def wait_for(page: Page, number: int, text: str) -> None:
    """An output of a cell."""
    cell(page, number).locator(".jp-OutputArea-output", has_text=text).first.wait_for()


@pytest.mark.parametrize("path", ["lab/tree/heads.ipynb?reset&", "notebooks/heads.ipynb?"], ids=["lab", "notebook"])
def test_what_is_chosen_with_the_mouse_is_a_set_of_heads_in_the_kernel(page, address, path):
    page.goto(f"{address}{path}token=of-this-test")
    cell(page, 3).wait_for()
    page.locator("[title='Kernel status: Idle'], .jp-NotebookKernelStatus, [data-status='idle']").first.wait_for(
        state="attached"
    )
    run(page, 0)
    inside = cell(page, 0).frame_locator("iframe")
    inside.locator("html[data-ready][data-chosen='L1H4']").wait_for()  # as Python said

    inside.locator(".thumb[data-head='L1H6'] input").check()
    run(page, 1)
    wait_for(page, 1, "HeadSet of 2 heads in 6 layers x 8: L1H4 L1H6 True")

    run(page, 2)
    wait_for(page, 2, "set")
    inside.locator("html[data-chosen='L3H0 L2H5']").wait_for()

    inside.locator("#scene").select_option(label="the vision tower")
    inside.locator("html[data-ready][data-part='vision']").wait_for()
    inside.locator(".thumb[data-head='L2H1'] input").check()
    run(page, 1)
    wait_for(page, 1, "HeadSet of 1 heads in 3 layers x 4 of the vision tower: L2H1 True")

    with page.expect_download() as waiting:  # out of a frame of its own
        inside.locator("[data-save='pictures'][data-kind='svg']").click()
    assert waiting.value.suggested_filename == "L2H3.svg"

    run(page, 3)  # the page alone shows itself
    cell(page, 3).locator("iframe").scroll_into_view_if_needed()  # nothing is drawn out of sight
    cell(page, 3).frame_locator("iframe").locator("html[data-ready][data-head='L1H4']").wait_for()
