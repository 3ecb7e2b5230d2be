"""The widget's own script in a browser, with the page inside it, against a host as anywidget's is."""

import base64
import json

import pytest

from lmm_lens.bundled import shapes
from lmm_lens.viewer import view

# what anywidget gives to `render`: https://anywidget.dev/en/afm
HOST = """<!doctype html><html lang="en"><title>a notebook</title><div id="cell"></div><script type="module">
const { default: widget } = await import("data:text/javascript;base64,%s");
const values = %s, listeners = [];
window.saved = [];
window.model = {
  get: (name) => values[name],
  set: (name, value) => {
    values[name] = value;
    listeners.forEach(([event, call]) => event === `change:${name}` && call());
  },
  save_changes: () => window.saved.push(values.part === "decoder" ? values.heads : [values.part, ...values.heads]),
  on: (event, call) => listeners.push([event, call]),
  off: (...given) => listeners.splice(listeners.findIndex((each) => each.every((one, i) => one === given[i])), 1),
};
window.leave = widget.render({ model: window.model, el: document.getElementById("cell") });
window.listeners = listeners;
document.documentElement.dataset.ready = "yes";
</script></html>"""


@pytest.fixture(scope="module")
def widget(lens):
    example = shapes.examples(1, kinds=("color",), seed=1)[0]
    prompt = lens.prompt(example.question, images=example.image)
    return view(prompt, lens, layers=[1, 2, 3], height=900).widget([(2, 5), (1, 4)])


@pytest.fixture
def notebook(visit, widget, tmp_path):
    """A page that holds the widget as a notebook would."""
    return held(visit, widget, tmp_path)


def held(visit, widget, folder):
    state = {name: getattr(widget, name) for name in ("page", "title", "height", "heads", "part")}
    script = base64.b64encode(widget._esm.encode()).decode()
    path = folder / "notebook.html"
    path.write_text(HOST % (script, json.dumps(state).replace("<", "\\u003c")), encoding="utf-8")
    page = visit(path)
    page.frame_locator("iframe").locator("html[data-ready]").wait_for()
    return page


def inside(notebook):
    return notebook.frame_locator("iframe")


def wait_for_chosen(notebook, names):
    inside(notebook).locator(f"html[data-chosen='{names}']").wait_for()


def test_what_python_has_chosen_is_chosen_on_the_page(notebook):
    wait_for_chosen(notebook, "L2H5 L1H4")
    notebook.evaluate("model.set('heads', [[3, 0]])")
    wait_for_chosen(notebook, "L3H0")
    assert notebook.evaluate("saved") == []  # it is not told what it said


def test_what_is_chosen_on_the_page_is_saved_for_python(notebook):
    wait_for_chosen(notebook, "L2H5 L1H4")
    inside(notebook).locator(".thumb[data-head='L1H7'] input").check()
    notebook.wait_for_function("saved.length === 1")
    inside(notebook).locator("#clear").click()
    notebook.wait_for_function("saved.length === 2")
    inside(notebook).locator(".thumb[data-head='L1H2'] button").click()  # pinned: the one that is meant
    notebook.wait_for_function("saved.length === 3")
    assert notebook.evaluate("saved") == [[[2, 5], [1, 4], [1, 7]], [], [[1, 2]]]


def test_heads_that_the_page_does_not_show_are_told_back(notebook):
    wait_for_chosen(notebook, "L2H5 L1H4")
    notebook.evaluate("model.set('heads', [[5, 0], [3, 6]])")
    wait_for_chosen(notebook, "L3H6")
    notebook.wait_for_function("saved.length === 1")
    assert notebook.evaluate("saved") == [[[3, 6]]]


def test_a_cell_that_is_run_again_leaves_nothing_behind(notebook):
    wait_for_chosen(notebook, "L2H5 L1H4")
    notebook.evaluate("leave()")
    assert notebook.evaluate("listeners.length") == 0
    inside(notebook).locator(".thumb[data-head='L1H7'] input").check()
    wait_for_chosen(notebook, "L2H5 L1H4 L1H7")
    assert notebook.evaluate("saved") == []


def test_a_page_answers_nobody_but_the_one_that_holds_it(notebook):
    wait_for_chosen(notebook, "L2H5 L1H4")
    frame = notebook.frames[1]
    frame.evaluate("postMessage({ lmmLens: 'choose', heads: [[1, 0]] }, '*')")  # from itself
    frame.evaluate("() => new Promise((done) => setTimeout(done))")
    assert frame.evaluate("document.documentElement.dataset.chosen") == "L2H5 L1H4"


@pytest.fixture
def both(visit, lens, tmp_path):
    """A widget that shows the vision tower too."""
    example = shapes.examples(1, kinds=("color",), seed=1)[0]
    prompt = lens.prompt(example.question, images=example.image)
    return held(visit, view(prompt, lens, layers=[1, 2], tower=True).widget([(2, 5)]), tmp_path)


def test_heads_of_the_tower_are_saved_as_such(both):
    wait_for_chosen(both, "L2H5")
    inside(both).locator("#scene").select_option(label="the vision tower")
    inside(both).locator("html[data-ready][data-part='vision']").wait_for()
    both.wait_for_function("saved.length === 1")  # nothing is chosen there yet
    inside(both).locator(".thumb input").first.check()
    both.wait_for_function("saved.length === 2")
    inside(both).locator("#scene").select_option(label="the decoder")
    both.wait_for_function("saved.length === 3")
    wait_for_chosen(both, "L2H5")
    saved = both.evaluate("saved")
    assert [saved[0], saved[2]] == [["vision"], [[2, 5]]]
    assert saved[1][0] == "vision"


def test_heads_that_python_chooses_in_the_tower_open_it(both):
    wait_for_chosen(both, "L2H5")
    both.evaluate("model.set('part', 'vision'); model.set('heads', [[1, 3], [0, 2]])")
    wait_for_chosen(both, "L1H3 L0H2")
    inside(both).locator("html[data-part='vision']").wait_for()
    both.evaluate("model.set('part', 'decoder'); model.set('heads', [[1, 7]])")
    wait_for_chosen(both, "L1H7")
    inside(both).locator("html[data-part='decoder']").wait_for()


def test_what_the_page_said_before_it_heard_is_out_of_date(both):
    """An answer to what Python set first comes when Python has set something else: that stays, here and there."""
    wait_for_chosen(both, "L2H5")
    both.evaluate(
        """() => {
          for (const part of ["vision", "decoder", "vision", "decoder"]) model.set("part", part);
          model.set("heads", [[1, 7]]);
        }"""
    )
    wait_for_chosen(both, "L1H7")
    frame = both.frames[1]
    frame.evaluate("parent.postMessage({ lmmLens: 'chosen', heads: [[2, 1]], part: 'decoder', turn: 1 }, '*')")
    frame.evaluate("() => new Promise((done) => setTimeout(done))")
    assert both.evaluate("model.get('heads')") == [[1, 7]]
    inside(both).locator("html[data-part='decoder'][data-chosen='L1H7']").wait_for()
