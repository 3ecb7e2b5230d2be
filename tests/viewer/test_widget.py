"""The widget, with the real anywidget: what the page says is in Python, what Python says goes to the page."""

import subprocess
import sys

import comm
import pytest
from comm.base_comm import BaseComm

from lmm_lens import AblateHeads, HeadSet, LensError, Read
from lmm_lens.bundled import shapes
from lmm_lens.errors import HookError
from lmm_lens.viewer import view


class Wire(BaseComm):
    """A comm without a kernel behind it, which keeps what is sent."""

    def __init__(self, *args, **options):
        self.sent = []
        super().__init__(*args, **options)

    def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
        self.sent.append((msg_type, data))


@pytest.fixture
def wired(monkeypatch):
    monkeypatch.setattr(comm, "create_comm", Wire)


@pytest.fixture(scope="module")
def asked(lens):
    example = shapes.examples(1, kinds=("color",), seed=1)[0]
    return lens.prompt(example.question, images=example.image)


def told(widget, heads):
    """What a browser's side sends when heads are chosen there."""
    data = {"method": "update", "state": {"heads": heads}, "buffer_paths": []}
    widget.comm.handle_msg({"content": {"data": data}, "buffers": []})


def test_what_is_chosen_on_the_page_is_a_set_of_heads_in_python(wired, lens, asked):
    widget, seen = view(asked, lens).widget(), []
    widget.observe(lambda change: seen.append(widget.selected), "heads")
    assert widget.selected == HeadSet([], 6, 8)
    told(widget, [[1, 4], [1, 7]])
    assert widget.selected == HeadSet([(1, 4), (1, 7)], 6, 8)
    assert widget.selected.heads == ((1, 4), (1, 7))
    told(widget, [])
    assert [len(heads) for heads in seen] == [2, 0]


def test_a_set_that_was_chosen_is_ready_to_be_edited(wired, lens, asked):
    widget = view(asked, lens).widget()
    told(widget, [[1, 4]])
    run = lens.run(asked, [AblateHeads(widget.selected)], logits="last")
    expected = lens.run(asked, [AblateHeads([(1, 4)])], logits="last")
    assert bool((run.logits == expected.logits).all())


def test_what_python_chooses_is_sent_to_the_page(wired, lens, asked):
    made = view(asked, lens, layers=[1, 2], height=500)
    widget = made.widget([(2, 3)])
    kind, opened = widget.comm.sent[0]
    assert (kind, opened["state"]["page"], opened["state"]["height"]) == ("comm_open", made.html, 500)
    assert widget.comm.sent[-1] == ("comm_msg", {"method": "update", "state": {"heads": [[2, 3]]}, "buffer_paths": []})
    widget.selected = HeadSet([(1, 0), (2, 5)], 6, 8)
    assert widget.comm.sent[-1][1]["state"] == {"heads": [[1, 0], [2, 5]]}


def test_heads_that_the_model_does_not_have_are_refused(wired, lens, asked):
    widget = view(asked, lens).widget()
    with pytest.raises(HookError, match="head 8 of layer 1 is out of range"):
        widget.selected = [(1, 8)]
    with pytest.raises(HookError, match="vision"):
        widget.selected = HeadSet([(0, 1)], 6, 8, part="vision")
    assert widget.heads == []
    with pytest.raises(HookError, match="layer 6 is out of range"):
        view(asked, lens).widget([(6, 0)])


def test_a_view_of_a_run_alone_knows_the_heads_that_were_read(wired, lens, asked):
    run = lens.run(asked, read=[Read("pattern", [1, 3], rows="last")])
    assert view(asked, run).widget([(3, 7)]).selected == HeadSet([(3, 7)], 4, 8)
    assert view(asked, run, lens=lens).widget([(3, 7)]).selected == HeadSet([(3, 7)], 6, 8)


def test_without_anywidget_there_is_a_page_and_a_sentence(lens, asked, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "lmm_lens.viewer.widget", raising=False)
    made = view(asked, lens)
    assert "<iframe" in made._repr_html_()
    with pytest.raises(LensError) as caught:
        made.widget()
    assert str(caught.value) == (
        "a widget needs anywidget, which is not installed\n"
        "  pip install 'lmm-lens[widget]'; the page itself needs nothing: view.save(path)"
    )


@pytest.mark.long
def test_a_view_loads_no_anywidget():
    code = "import sys, lmm_lens.viewer; sys.exit('anywidget' in sys.modules or 'ipywidgets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_heads_of_the_tower_are_a_set_of_the_tower(wired, lens, asked):
    widget = view(asked, lens, tower=True).widget(HeadSet([(2, 3)], 3, 4, part="vision"))
    assert widget.selected == HeadSet([(2, 3)], 3, 4, part="vision")
    data = {"method": "update", "state": {"heads": [[1, 2]], "part": "vision"}, "buffer_paths": []}
    widget.comm.handle_msg({"content": {"data": data}, "buffers": []})
    assert widget.selected == HeadSet([(1, 2)], 3, 4, part="vision")
    assert lens.run(asked, [AblateHeads(widget.selected)]).reports[0].n_edits == 37
    widget.selected = [(5, 7)]  # pairs are of the decoder
    assert widget.comm.sent[-1][1]["state"] == {"heads": [[5, 7]], "part": "decoder"}
    assert widget.selected == HeadSet([(5, 7)], 6, 8)
    with pytest.raises(HookError, match="layer 3 is out of range"):
        widget.selected = HeadSet([(3, 0)], 6, 8, part="vision")


def test_a_view_without_its_tower_chooses_no_heads_there(wired, lens, asked):
    widget = view(asked, lens).widget()
    with pytest.raises(HookError) as caught:
        widget.selected = HeadSet([(0, 1)], 3, 4, part="vision")
    assert str(caught.value) == ("this view does not show the vision tower\n  view(prompt, lens, tower=True).widget()")
