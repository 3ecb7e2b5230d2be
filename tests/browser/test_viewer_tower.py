"""The vision tower in the viewer: the switch, the patch that looks, with the pointer and with keys, at any width."""

import numpy as np
import pytest

from lmm_lens import HeadSet, score_heads
from lmm_lens.bundled import shapes
from lmm_lens.viewer import tower_reading, view
from tests.browser.looking import as_number, hover_patch, listed, overlay, root, settle
from tests.support.axe import faults, overflow
from tests.support.eager_tower import eager_tower
from tests.support.families import lens_of, prompt_of

N_LAYERS, N_HEADS = 3, 4  # of the bundled model's tower
CENTRE = 16  # row 2, column 2 of 6 x 6 patches, behind two tokens


@pytest.fixture(scope="module")
def asked(lens):
    example = shapes.examples(1, kinds=("color",), seed=1)[0]
    return lens.prompt(example.question, images=example.image)


@pytest.fixture(scope="module")
def eager(asked):
    return eager_tower(asked).numpy()


@pytest.fixture
def opened(visit, tmp_path):
    def show(made, **options):
        page = visit(made.save(tmp_path / "view.html"), **options)
        page.wait_for_selector("html[data-ready]")
        settle(page)
        return page

    return show


@pytest.fixture
def viewer(opened, lens, asked):
    """The page as it opens, and then its tower."""
    return to_tower(opened(view(asked, lens, tower=True)))


def to_tower(page):
    return to_part(page, "the vision tower", "vision")


def to_part(page, label, name):
    page.locator("#scene").select_option(label=label)
    page.wait_for_selector(f"html[data-ready][data-part='{name}']")
    settle(page)
    return page


def pin(viewer, layer, head):
    """Its cell of the map: axes of 30 and 18 pixels."""
    box = viewer.locator("#map").bounding_box()
    cell = (box["width"] - 34) / N_HEADS, (box["height"] - 22) / N_LAYERS
    viewer.mouse.click(box["x"] + 30 + (head + 0.5) * cell[0], box["y"] + 4 + (layer + 0.5) * cell[1])
    viewer.mouse.move(1, 1)
    settle(viewer)


def click_patch(viewer, asked, position):
    hover_patch(viewer, asked, position)
    viewer.mouse.down()
    viewer.mouse.up()
    viewer.mouse.move(1, 1)
    settle(viewer)


def opacity(viewer, asked):
    """How much is laid over each patch near its upper left corner, where no ring is."""
    canvas, (width, height) = overlay(viewer), asked.images[0][0].size
    found = []
    for position in asked.mask("visual")[0].nonzero().flatten().tolist():
        x0, y0, x1, y1 = asked.box(position)
        x, y = x0 + 0.1 * (x1 - x0), y0 + 0.1 * (y1 - y0)
        found.append(int(canvas[int(y / height * canvas.shape[0]), int(x / width * canvas.shape[1]), 3]))
    return np.array(found)


def drawn(row):
    """The opacity of patches by their weights, full at the largest of them."""
    return 0.6 * 255 * np.minimum(1, row[1:] / row[1:].max()) ** 0.5


# ---------------------------------------------------------------------- the query


def test_it_opens_on_the_decoder_and_the_switch_shows_the_tower(opened, lens, asked, eager):
    page = opened(view(asked, lens, tower=True))
    assert (root(page, "part"), root(page, "query")) == ("decoder", "44")
    to_tower(page)
    assert (root(page, "query"), page.locator("#looks").inner_text()) == ("all patches", "looking from all patches")
    pin(page, 1, 2)
    assert root(page, "pinned") == "L1H2"
    row = eager[1, 2, 1:].mean(0)
    np.testing.assert_allclose(opacity(page, asked), drawn(row), atol=3)
    assert [value for _, value in listed(page, "head")] == pytest.approx(sorted(row, reverse=True)[:5], abs=6e-4)
    assert page.evaluate("document.activeElement.id") != "body"


def test_a_click_on_a_patch_makes_it_the_query_and_another_frees_it(viewer, asked, eager):
    pin(viewer, 1, 2)
    click_patch(viewer, asked, CENTRE)
    assert (root(viewer, "query"), root(viewer, "token")) == (str(CENTRE), "")
    assert viewer.locator("#looks").inner_text() == f"looking from patch 2, 2 at {CENTRE}"
    assert viewer.locator("#query option:checked").inner_text() == f"patch 2, 2 at {CENTRE}"
    row = eager[1, 2, CENTRE - 1]
    np.testing.assert_allclose(opacity(viewer, asked), drawn(row), atol=3)
    entropy = viewer.locator("#head [data-name='entropy'] span").last.inner_text()
    assert float(as_number(entropy)) == pytest.approx(-(row * np.log(row)).sum(), abs=6e-4)
    hover_patch(viewer, asked, 2)  # another patch: how much it gets from the one that was clicked
    assert (root(viewer, "query"), root(viewer, "token")) == (str(CENTRE), "2")
    (weight,) = viewer.locator("#token [data-name='weight'] span").all_inner_texts()[1:]
    assert float(as_number(weight)) == pytest.approx(row[1], abs=6e-4)
    click_patch(viewer, asked, CENTRE)
    assert root(viewer, "query") == "all patches"


def test_thumbnails_look_from_the_patch_too(viewer, asked, eager):
    pin(viewer, 1, 0)
    viewer.locator("#metric").select_option(label="entropy")
    click_patch(viewer, asked, CENTRE)
    for head in range(N_HEADS):
        row = eager[1, head, CENTRE - 1]
        number = viewer.locator(f".thumb[data-head='L1H{head}'] figcaption > span").inner_text()
        assert float(as_number(number)) == pytest.approx(-(row * np.log(row)).sum(), abs=6e-4)


def test_the_patch_is_chosen_with_the_keyboard(viewer):
    viewer.locator("#panels canvas").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Enter"):
        viewer.keyboard.press(key)
    assert root(viewer, "query") == "9"  # row 1, column 1
    viewer.keyboard.press("]")
    assert root(viewer, "query") == "10"
    viewer.keyboard.press("Escape")
    assert root(viewer, "query") == "all patches"
    viewer.locator("#query").select_option(label="class token")
    assert root(viewer, "query") == "class token"
    assert viewer.locator("#looks").inner_text() == "looking from class token"


def test_the_class_token_is_a_query_by_its_chip(viewer, eager):
    pin(viewer, 2, 1)
    viewer.locator(".chip[data-position='class']").click()
    viewer.mouse.move(1, 1)
    assert root(viewer, "query") == "class token"
    row = eager[2, 1, 0]
    assert [value for _, value in listed(viewer, "head")] == pytest.approx(sorted(row, reverse=True)[:5], abs=6e-4)


def test_a_click_where_no_query_is_takes_the_nearest(opened, lens, asked, monkeypatch):
    monkeypatch.setattr(tower_reading, "MAX_TOWER_VALUES", 3 * 4 * 39 * (9 + 2))  # rows and columns 1, 3 and 5
    viewer = to_tower(opened(view(asked, lens, tower=True)))
    click_patch(viewer, asked, 2 + 6 * 4 + 5)
    assert root(viewer, "query") in (str(2 + 6 * 3 + 5), str(2 + 6 * 5 + 5))
    assert "9 are queries, one in 2 of each row and column: a click takes the nearest" in (
        viewer.locator("#rules").inner_text()
    )


def test_tiles_and_merged_patches_are_clicked_where_they_lie(opened):
    for family in ("llava_next", "qwen2_vl"):
        lens, prompt = lens_of(family), prompt_of(family)
        viewer = to_tower(opened(view(prompt, lens, layers=[0], tower=True)))
        canvas = viewer.locator(".panel canvas").last
        box, last = canvas.bounding_box(), int(prompt.mask("visual")[0].nonzero().max())
        canvas.scroll_into_view_if_needed()
        canvas.click(position={"x": box["width"] - 9, "y": box["height"] - 9})
        assert root(viewer, "query") == str(last)
        assert viewer.locator("#sheet-panel").input_value() == str(viewer.locator(".panel canvas").count() - 1)


# ---------------------------------------------------------------------- the switch


def test_each_part_keeps_what_was_chosen_in_it(viewer, asked):
    pin(viewer, 2, 3)
    click_patch(viewer, asked, CENTRE)
    viewer.keyboard.press("c")
    viewer.locator("#overlay").uncheck()
    to_part(viewer, "the decoder", "decoder")
    assert (root(viewer, "pinned"), root(viewer, "chosen"), root(viewer, "query")) == ("", "", "44")
    assert not viewer.locator("#overlay").is_checked()
    assert viewer.evaluate("document.activeElement.id") == "scene"
    to_tower(viewer)
    assert (root(viewer, "pinned"), root(viewer, "chosen"), root(viewer, "query")) == ("L2H3", "L2H3", str(CENTRE))


def test_how_exact_the_weights_are_is_said_of_the_part_that_is_shown(opened, lens, asked, monkeypatch):
    from lmm_lens.viewer import packing

    monkeypatch.setattr(packing, "MAX_FINE", 6 * 8 * 45)
    page = opened(view(asked, lens, tower=True))
    assert page.locator("#steps").inner_text() == "65535"
    to_tower(page)
    assert page.locator("#steps").inner_text() == "255"


def test_scores_of_the_tower_open_it(opened, lens, asked):
    scores = score_heads(lens, asked, "distance", part="vision")
    page = opened(view(asked, scores, lens=lens, mark=scores.top(2)))
    assert (root(page, "part"), root(page, "map")) == ("vision", "scores")
    assert root(page, "head") == f"L{scores.top(1).heads[0][0]}H{scores.top(1).heads[0][1]}"


def test_a_figure_says_whose_attention_it_is(viewer, asked, tmp_path):
    click_patch(viewer, asked, CENTRE)
    with viewer.expect_download() as waiting:
        viewer.locator("[data-save='pictures'][data-kind='svg']").click()
    waiting.value.save_as(tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert f"looking from patch 2, 2 at {CENTRE}" in text


# ---------------------------------------------------------------------- for everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wrong_with_it_at_any_width(opened, lens, asked, scheme):
    page = to_tower(opened(view(asked, lens, tower=True), color_scheme=scheme))
    page.locator("#help-button").click()
    for width in (400, 1200, 4000):
        page.set_viewport_size({"width": width, "height": 900})
        settle(page)
        assert faults(page) == []
        assert overflow(page) == 0


def test_the_heads_of_a_set_of_the_tower_are_outlined(opened, lens, asked):
    page = to_tower(opened(view(asked, lens, tower=True, mark=HeadSet([(0, 1), (2, 2)], 3, 4, part="vision"))))
    page.locator("#sheet-of").select_option(label="the outlined heads")
    settle(page)
    assert page.evaluate("[...document.querySelectorAll('.thumb')].map((each) => each.dataset.head)") == [
        "L0H1",
        "L2H2",
    ]
