"""Many heads at once in the viewer: thumbnails, the mean of chosen ones, and the figures that are saved."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from lmm_lens import HeadSet, logit_lens
from lmm_lens.bundled import shapes
from lmm_lens.viewer import view
from tests.browser.looking import (
    N_HEADS,
    N_LAYERS,
    as_number,
    figure,
    hover_head,
    hover_patch,
    listed,
    overlay,
    root,
    settle,
    where_is,
)
from tests.support.eager import Eager, sinks_by_layer

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def asked(lens):
    example = shapes.examples(1, kinds=("color",), seed=1)[0]
    return lens.prompt(example.question, images=example.image)


@pytest.fixture(scope="module")
def visual(asked):
    return asked.mask("visual")[0].nonzero().flatten().tolist()


@pytest.fixture(scope="module")
def eager(lens, asked):
    """The reference: attention of the last token, [layer, head, key], and the sinks of each layer."""
    seen = Eager(lens.model).prefill(asked.inputs)
    weights = np.stack([seen.weights[layer][0, :, -1].numpy() for layer in range(N_LAYERS)])
    return weights, sinks_by_layer(seen, 0, (5, 77), 7)


@pytest.fixture
def viewer(visit, lens, asked, tmp_path):
    made = view(asked, lens, mark=HeadSet([(2, 3), (0, 1)], N_LAYERS, N_HEADS))
    opened = visit(made.save(tmp_path / "view.html"))
    opened.wait_for_selector("html[data-ready]")
    settle(opened)
    return opened


def shown_thumbs(viewer):
    settle(viewer)
    return viewer.evaluate("[...document.querySelectorAll('.thumb')].map((each) => each.dataset.head)")


def thumb(viewer, head):
    """The pixels of a thumbnail, [height, width, 4]."""
    url = viewer.locator(f".thumb[data-head='{head}'] canvas").evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(float)


def middle(picture, asked, position):
    """The mean colour around the middle of a patch."""
    x0, y0, x1, y1 = asked.box(position)
    width, height = asked.images[0][0].size
    x, y = (x0 + x1) / 2 / width * picture.shape[1], (y0 + y1) / 2 / height * picture.shape[0]
    return picture[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3].mean((0, 1))


# ---------------------------------------------------------------------- thumbnails


def test_thumbnails_are_of_the_layer_shown_or_of_a_set(viewer, asked, eager, visual):
    weights, sinks = eager
    nonsink = np.array(
        [[weights[x, h, [j for j in visual if j not in sinks[x]]].sum() for h in range(8)] for x in range(6)]
    )
    best = [f"L{i // 8}H{i % 8}" for i in np.argsort(-nonsink.flatten())[:12]]
    assert shown_thumbs(viewer) == [f"L1H{head}" for head in range(8)]  # the page begins at L1H4
    for choice, expected in (
        ("layer 4", [f"L4H{head}" for head in range(8)]),
        ("the 12 highest", best),
        ("the outlined heads", ["L2H3", "L0H1"]),
        ("the chosen heads", []),
    ):
        viewer.locator("#sheet-of").select_option(label=choice)
        assert shown_thumbs(viewer) == expected
    assert "No head is chosen" in viewer.locator("#sheet").inner_text()


def test_the_layer_of_the_thumbnails_follows_the_pinned_head_and_not_the_pointer(viewer):
    hover_head(viewer, 4, 2)
    assert shown_thumbs(viewer)[0] == "L1H0"
    viewer.mouse.click(*where_is(viewer, 4, 2))
    assert shown_thumbs(viewer)[0] == "L4H0"


def test_a_thumbnail_is_bright_where_its_own_head_looks(viewer, asked, eager, visual):
    for head in (0, 4, 7):
        bright, (weights, sinks) = thumb(viewer, f"L1H{head}"), eager
        viewer.locator("#overlay").uncheck()
        settle(viewer)
        bare = thumb(viewer, f"L1H{head}")
        viewer.locator("#overlay").check()
        settle(viewer)
        row = weights[1, head]
        most = max(row[j] for j in range(len(row)) if j not in sinks[1] and j != 0)
        for position in visual:
            t = min(1, row[position] / most)
            change = np.abs(middle(bright, asked, position) - 0.82 * middle(bare, asked, position)).max()
            assert change > 40 if t > 0.6 else change < 40 if t < 0.05 else True, (head, position, t, change)


def test_a_thumbnails_number_is_that_of_the_map(viewer, asked, eager, visual):
    viewer.locator("#metric").select_option(label="visual mass")
    settle(viewer)
    for head in range(N_HEADS):
        text = viewer.locator(f".thumb[data-head='L1H{head}'] figcaption > span").inner_text()
        assert float(as_number(text)) == pytest.approx(eager[0][1, head, visual].sum(), abs=6e-4)


def test_a_click_on_a_thumbnail_pins_and_its_box_chooses(viewer):
    viewer.locator(".thumb[data-head='L1H7'] button").click()
    assert root(viewer, "pinned") == "L1H7"
    viewer.locator(".thumb[data-head='L1H2'] input").check()
    assert root(viewer, "chosen") == "L1H2"
    viewer.locator(".thumb[data-head='L1H2'] input").uncheck()
    assert root(viewer, "chosen") == ""


# ---------------------------------------------------------------------- chosen heads


def choose(viewer, *heads):
    viewer.keyboard.down("Shift")
    for layer, head in heads:
        viewer.mouse.click(*where_is(viewer, layer, head))
    viewer.keyboard.up("Shift")
    viewer.mouse.move(1, 1)
    settle(viewer)


def test_the_mean_of_chosen_heads_is_the_mean_of_their_rows(viewer, asked, eager, visual):
    weights, sinks = eager
    heads = [(1, 4), (2, 5), (3, 0)]
    choose(viewer, *heads)
    assert root(viewer, "chosen") == "L1H4 L2H5 L3H0"
    assert root(viewer, "pinned") == ""
    viewer.locator("#mean").check()
    assert root(viewer, "head") == "mean of 3 heads"
    row = np.mean([weights[head] for head in heads], 0)
    assert [value for _, value in listed(viewer, "head")] == pytest.approx(sorted(row, reverse=True)[:5], abs=6e-4)
    assert figure(viewer, "visual_mass") == pytest.approx(row[visual].sum(), abs=6e-4)
    nonsink = np.mean([weights[x, h, [j for j in visual if j not in sinks[x]]].sum() for x, h in heads])
    assert figure(viewer, "nonsink_mass") == pytest.approx(nonsink, abs=6e-4)
    assert viewer.locator("#head [data-name='entropy']").count() == 0  # a mean's is no mean
    every = {position for layer, _ in heads for position in sinks[layer]}
    most = max(row[j] for j in range(len(row)) if j not in every and j != 0)
    canvas, (width, height) = overlay(viewer), asked.images[0][0].size
    for position in visual:
        x0, y0, x1, y1 = asked.box(position)
        x, y = (x0 + x1) / 2 / width * canvas.shape[1], (y0 + y1) / 2 / height * canvas.shape[0]
        expected = 0.6 * 255 * min(1, row[position] / most) ** 0.5
        assert int(canvas[int(y), int(x), 3]) == pytest.approx(expected, abs=2)


def test_heads_are_chosen_and_averaged_with_the_keyboard(viewer):
    viewer.locator("#map").focus()
    for key in ("c", "ArrowRight", "c", "m"):
        viewer.keyboard.press(key)
    assert root(viewer, "chosen") == "L1H4 L1H5"
    assert root(viewer, "head") == "mean of 2 heads"
    viewer.keyboard.press("c")
    assert root(viewer, "chosen") == "L1H4"
    viewer.locator("#clear").click()
    assert (root(viewer, "chosen"), root(viewer, "head")) == ("", "L1H5")
    assert viewer.evaluate("document.activeElement.id") == "map"


def test_a_hovered_head_is_shown_instead_of_the_mean(viewer):
    choose(viewer, (1, 4), (2, 5))
    viewer.keyboard.press("m")
    hover_head(viewer, 3, 3)
    assert root(viewer, "head") == "L3H3"
    viewer.mouse.move(1, 1)
    assert root(viewer, "head") == "mean of 2 heads"


# ---------------------------------------------------------------------- figures


def saved(viewer, name, kind, folder):
    with viewer.expect_download() as waiting:
        viewer.locator(f"[data-save='{name}'][data-kind='{kind}']").click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def words_of(drawing):
    return [each.text for each in drawing.iter(f"{SVG}text")]


def test_the_picture_is_saved_as_svg_with_every_patch_as_bright_as_it_is_attended(
    viewer, asked, eager, visual, tmp_path
):
    hover_head(viewer, 1, 4)
    viewer.mouse.click(*where_is(viewer, 1, 4))
    path = saved(viewer, "pictures", "svg", tmp_path)
    assert path.name == "L1H4.svg"
    drawing = ElementTree.parse(path).getroot()
    patches = {int(r.get("data-position")): r for r in drawing.iter(f"{SVG}rect") if r.get("data-position")}
    assert sorted(patches) == visual
    row = eager[0][1, 4]
    for position, patch in patches.items():
        expected = 0.6 * min(1, row[position] / row[visual].max()) ** 0.5
        assert float(patch.get("fill-opacity")) == pytest.approx(expected, abs=0.01)
        x0, y0, x1, y1 = asked.box(position)
        scale = 360 / asked.images[0][0].size[0]
        placed = [float(patch.get(name)) for name in ("x", "y", "width", "height")]
        assert placed == pytest.approx([x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale], abs=0.01)
    assert len([each for each in drawing.iter(f"{SVG}rect") if each.get("class") == "sink"]) == len(
        set(eager[1][1]) & set(visual)
    )
    assert words_of(drawing)[:2] == ["what color is the triangle?", "L1H4 looking from “ASSISTANT:” at 44"]
    (image,) = drawing.iter(f"{SVG}image")
    assert image.get("href").startswith("data:image/")


def test_the_map_is_saved_with_a_cell_a_head(viewer, tmp_path):
    drawing = ElementTree.parse(saved(viewer, "heads", "svg", tmp_path)).getroot()
    cells = {each.get("data-head"): each.get("fill") for each in drawing.iter(f"{SVG}rect") if each.get("data-head")}
    assert len(cells) == N_LAYERS * N_HEADS
    darkest = min(cells, key=lambda name: sum(map(int, re.findall(r"\d+", cells[name]))))
    assert darkest == root(viewer, "head")
    assert words_of(drawing)[1].startswith("non-sink visual mass: attention on visual tokens")


def test_the_thumbnails_are_saved_as_one_figure(viewer, tmp_path):
    drawing = ElementTree.parse(saved(viewer, "sheet", "svg", tmp_path)).getroot()
    assert len(list(drawing.iter(f"{SVG}image"))) == N_HEADS
    assert [f"L1H{head}" for head in range(8)] == [word for word in words_of(drawing) if word.startswith("L1H")]


@pytest.mark.parametrize(
    "name",
    ["pictures", pytest.param("heads", marks=pytest.mark.long), pytest.param("sheet", marks=pytest.mark.long)],
)
def test_a_png_is_the_svg_at_twice_its_size(viewer, visit, name, tmp_path):
    svg, png = (saved(viewer, name, kind, tmp_path) for kind in ("svg", "png"))
    drawing = ElementTree.parse(svg).getroot()
    with Image.open(png) as opened:
        picture = opened.convert("RGB")
    width, height = (float(drawing.get(side)) for side in ("width", "height"))
    assert picture.size == pytest.approx((2 * width, 2 * height), abs=2)
    page = visit(svg)  # as a browser shows the file
    page.set_viewport_size({"width": int(width), "height": int(height)})
    seen = Image.open(io.BytesIO(page.screenshot())).convert("RGB").resize((64, 64))
    difference = np.abs(np.asarray(picture.resize((64, 64)), float) - np.asarray(seen, float))
    assert difference.mean() < 6
    assert len(picture.getcolors(2**24)) > 50  # it is no blank


def test_a_figure_can_be_saved_in_a_notebooks_frame(visit, lens, asked, tmp_path):
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><p>a cell</p>{view(asked, lens)._repr_html_()}", encoding="utf-8")
    page = visit(notebook)
    frame = page.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for()
    with page.expect_download() as waiting:
        frame.locator("[data-save='pictures'][data-kind='png']").click()
    waiting.value.save_as(tmp_path / "saved.png")
    with Image.open(tmp_path / "saved.png") as picture:
        assert picture.size[0] > 700


def test_a_prompt_without_pictures_has_no_thumbnails_and_one_figure(visit, lens, tmp_path):
    page = visit(view(lens.prompt("what comes after three?"), lens).save(tmp_path / "view.html"))
    page.wait_for_selector("html[data-ready]")
    assert [
        each.get_attribute("data-save") for each in page.locator(".save[data-save]").all() if each.is_visible()
    ] == [
        "heads",
        "heads",
    ]
    assert not page.locator("#sheet-section").is_visible()


# ---------------------------------------------------------------------- words


def test_a_patch_tells_what_it_reads_as_after_each_layer(visit, lens, asked, tmp_path):
    reading = logit_lens(lens, asked, rows="image")
    page = visit(view(asked, lens, words=reading).save(tmp_path / "view.html"))
    page.wait_for_selector("html[data-ready]")
    position = asked.patch_at(40, 5)
    hover_patch(page, asked, position)
    said = [line.split() for line in page.locator("#token .said li").all_inner_texts()]
    assert [int(layer) for layer, *_ in said] == list(reading.layers)
    for layer, word, strength in said:
        expected = reading.words(int(layer), position)[0]
        assert (word, float(strength)) == (expected[0].strip(), pytest.approx(expected[1], abs=0.006))
    assert page.locator("#token .said .here").inner_text().split()[0] == root(page, "head")[1]
