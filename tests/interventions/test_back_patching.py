"""Back-patching against plain hooks on a copy of the model, in fp64."""

import pytest
import torch

from lmm_lens import PatchResidual, Read
from lmm_lens.errors import HookError, InterventionError
from tests.support.by_hand import hooked
from tests.support.cases import case, close, double, plain
from tests.support.oracle import spans
from tests.support.quick import quick

NAMES = ["llava", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma3", "paligemma2", "idefics3", "internvl", "mllama"]
FEW = ("llava", "qwen3_vl", "gemma3")


def streams(model, inputs, n_layers, site="resid_pre"):
    """What enters each layer, by layer, from plain hooks."""
    found = {}
    for layer in range(n_layers):

        def keep(x, layer=layer):
            found[layer] = x.clone()

        with hooked(model, site, layer, keep):
            plain(model, inputs, use_cache=False)
    return found


def patched(family, moves, rows, site="resid_pre"):
    """Logits with rows of the stream of one layer put into another: moves are (layer, source layer)."""
    sources = streams(family.model, family.inputs, family.n_layers, site)
    edits = []
    for layer, source in moves:

        def change(x, source=source):
            x = x.clone()
            for row in rows:
                x[0, row] = sources[source][0, row]
            return x

        edits.append((layer, change))

    def run(left):
        if not left:
            return plain(family.model, family.inputs, use_cache=False)
        with hooked(family.model, site, *left[0]):
            return run(left[1:])

    return run(edits)


@pytest.mark.parametrize("name", quick(NAMES, FEW))
def test_the_image_rows_of_a_late_layer_enter_an_early_one(name):
    family = double(name)
    late = family.n_layers - 1
    clean = family.lens.run(family.prompt, read=[Read("resid_pre", rows="image")])
    run = family.lens.run(family.prompt, [PatchResidual([1], clean, source_layer=late)])
    rows = sorted(spans(family.inputs)["image"][0])
    close(run.logits, patched(family, [(1, late)], rows), 1e-7)
    assert run.reports[0].edits == {1: len(rows)}
    assert (run.logits - family.logits).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl"])
def test_one_source_holds_the_rows_and_several_move_a_window(name):
    family = double(name)
    rows = sorted(spans(family.inputs)["image"][0])
    clean = family.lens.run(family.prompt, read=["resid_pre"])
    held = family.lens.run(family.prompt, [PatchResidual([0, 1], clean, source_layer=2)])
    moved = family.lens.run(family.prompt, [PatchResidual([0, 1], clean, source_layer=[1, 2])])
    close(held.logits, patched(family, [(0, 2), (1, 2)], rows), 1e-7)
    close(moved.logits, patched(family, [(0, 1), (1, 2)], rows), 1e-7)
    assert (held.logits - moved.logits).abs().max() > 1e-4


def test_what_leaves_a_layer_can_be_moved_too():
    family = double("llava")
    rows = sorted(spans(family.inputs)["question"][0])
    clean = family.lens.run(family.prompt, read=["resid_post"])
    run = family.lens.run(family.prompt, [PatchResidual([0], clean, "question", "resid_post", source_layer=2)])
    close(run.logits, patched(family, [(0, 2)], rows, "resid_post"), 1e-7)


def test_a_layer_s_own_stream_put_back_changes_nothing():
    family = case("llava")
    clean = family.lens.run(family.prompt, read=["resid_pre"])
    for source in (None, 1, [1]):
        run = family.lens.run(family.prompt, [PatchResidual([1], clean, "all", source_layer=source)])
        assert torch.equal(run.logits, family.lens.run(family.prompt).logits)


@pytest.mark.parametrize(
    ("layers", "source", "text"),
    [
        ([0], 9, "layer 9 is out of range"),
        ([0, 1, 2], [1, 2], "2 source layers for 3 layers\n  give one for all of them, or one for each, each once"),
        ([0, 1], [2, 2], "1 source layers"),
        ([0], "late", "source_layer is a sequence of whole numbers"),
        ([0], 2, "the clean run holds no resid_pre of layer 2"),
    ],
)
def test_sources_that_are_none_are_refused(layers, source, text):
    family = case("llava")
    clean = family.lens.run(family.prompt, read=[Read("resid_pre", layers=[0, 1])])
    if source == [2, 2]:  # the same source twice is one, for all of the layers
        assert PatchResidual(layers, clean, source_layer=source).source_layer == (2,)
        return
    with pytest.raises((InterventionError, HookError)) as caught:
        family.lens.run(family.prompt, [PatchResidual(layers, clean, source_layer=source)])
    assert text in str(caught.value)


def test_its_repr_says_where_the_rows_come_from():
    family = case("llava")
    clean = family.lens.run(family.prompt, read=["resid_pre"])
    shown = [repr(PatchResidual([0, 1], clean, source_layer=source)) for source in (2, (1, 2), None)]
    assert [text[len("PatchResidual(layers=[0, 1], site='resid_pre', rows='image'") :] for text in shown] == [
        ", source_layer=2)",
        ", source_layer=[1, 2])",
        ")",
    ]
