"""The viewer of the bundled model as a reader uses it; what it shows is compared with eager attention."""

import dataclasses
import re

import numpy as np
import pytest

from lmm_lens import HeadSet, Lens
from lmm_lens.bundled import shapes
from lmm_lens.sinks import SinkRule
from lmm_lens.viewer import view
from tests.browser.looking import (
    N_HEADS,
    N_LAYERS,
    as_number,
    chip,
    figure,
    hover_head,
    hover_patch,
    listed,
    overlay,
    root,
    settle,
    where_is,
)
from tests.support.axe import faults, overflow
from tests.support.eager import Eager, sinks_by_layer

DIMS, THRESHOLD = (5, 77), 7  # of the bundled model's card


@pytest.fixture(scope="module")
def asked(lens):
    example = shapes.examples(1, kinds=("color",), seed=1)[0]
    return lens.prompt(example.question, images=example.image)


@pytest.fixture(scope="module")
def eager(lens, asked):
    """The reference: attention [layer, head, query, key] and the sinks of each layer."""
    seen = Eager(lens.model).prefill(asked.inputs)
    weights = np.stack([seen.weights[layer][0].numpy() for layer in range(N_LAYERS)])
    return weights, sinks_by_layer(seen, 0, DIMS, THRESHOLD)


@pytest.fixture(scope="module")
def file(lens, asked, tmp_path_factory):
    made = view(asked, lens, queries="text", mark=HeadSet([(2, 3)], N_LAYERS, N_HEADS))
    return made.save(tmp_path_factory.mktemp("view") / "view.html")


@pytest.fixture
def viewer(visit, file):
    opened = visit(file)
    opened.wait_for_selector("html[data-ready]")
    return opened


def masses(weights, sinks, asked):
    """Visual and non-sink visual mass of one row of weights."""
    visual = asked.mask("visual")[0].nonzero().flatten().tolist()
    return sum(weights[j] for j in visual), sum(weights[j] for j in visual if j not in sinks)


# ---------------------------------------------------------------------- heads


def test_the_page_starts_at_the_head_with_the_most_nonsink_mass(viewer, asked, eager):
    weights, sinks = eager
    nonsink = [[masses(weights[x, h, -1], sinks[x], asked)[1] for h in range(N_HEADS)] for x in range(N_LAYERS)]
    layer, head = np.unravel_index(np.argmax(nonsink), (N_LAYERS, N_HEADS))
    assert root(viewer, "head") == f"L{layer}H{head}"
    assert viewer.locator("h1").inner_text() == "what color is the triangle?"


def test_hovering_a_head_shows_its_masses_and_its_most_attended_tokens(viewer, asked, eager):
    weights, sinks = eager
    for layer, head in ((0, 0), (1, 4), (2, 5), (3, 7), (5, 3)):
        hover_head(viewer, layer, head)
        assert viewer.get_attribute("#head", "data-head") == f"L{layer}H{head}"
        row = weights[layer, head, -1]
        visual, nonsink = masses(row, sinks[layer], asked)
        assert figure(viewer, "visual_mass") == pytest.approx(visual, abs=6e-4)
        assert figure(viewer, "nonsink_mass") == pytest.approx(nonsink, abs=6e-4)
        shown = [value for _, value in listed(viewer, "head")]
        assert shown == pytest.approx(sorted(row, reverse=True)[:5], abs=6e-4)
        tip = viewer.locator("#tip").inner_text()
        assert tip.startswith(f"L{layer}H{head} · ")
        assert float(as_number(tip.split(" · ")[1])) == pytest.approx(nonsink, abs=6e-4)


def test_the_masses_of_a_picture_are_written_under_it_and_beside_its_chip(viewer, asked, eager):
    hover_head(viewer, 1, 4)
    visual, _ = masses(eager[0][1, 4, -1], (), asked)
    for place in ("figcaption .share", ".fold .share"):
        assert float(viewer.locator(place).inner_text()) == pytest.approx(visual, abs=6e-4)


def test_patches_are_as_bright_as_they_are_attended(viewer, asked, eager):
    """The overlay's own pixels, in the middle of every patch of a head that looks at two."""
    hover_head(viewer, 1, 4)
    canvas, (width, height) = overlay(viewer), asked.images[0][0].size
    alphas = {}
    for position in asked.mask("visual")[0].nonzero().flatten().tolist():
        x0, y0, x1, y1 = asked.box(position)
        middle = (x0 + x1) / 2 / width * canvas.shape[1], (y0 + y1) / 2 / height * canvas.shape[0]
        alphas[position] = int(canvas[int(middle[1]), int(middle[0]), 3])
    row = eager[0][1, 4, -1]
    most = sorted(alphas, key=lambda position: -row[position])
    assert alphas[most[0]] == pytest.approx(0.6 * 255, abs=2)  # full colour
    for position, alpha in alphas.items():
        expected = 0.6 * 255 * min(1, row[position] / row[most[0]]) ** 0.5
        assert alpha == pytest.approx(expected, abs=2)


def test_words_are_tinted_by_the_attention_they_get(viewer, asked, eager):
    viewer.locator("#scale").select_option("all")
    hover_head(viewer, 0, 6)  # it attends to one word
    tinted = viewer.evaluate(
        "[...document.querySelectorAll('.chip')].filter((c) => c.style.backgroundColor).map((c) => c.dataset.position)"
    )
    row = eager[0][0, 6, -1]
    text = asked.mask("text")[0].nonzero().flatten().tolist()
    assert sorted(map(int, tinted)) == [j for j in text if row[j] / row.max() > 0.004]


def test_a_click_pins_a_head_and_escape_frees_it(viewer):
    hover_head(viewer, 2, 5)
    viewer.mouse.click(*where_is(viewer, 2, 5))
    viewer.mouse.move(1, 1)
    assert root(viewer, "head") == root(viewer, "pinned") == "L2H5"
    assert "pinned" in viewer.locator("#head .title").inner_text()
    hover_head(viewer, 0, 1)
    assert root(viewer, "head") == "L0H1"  # hovering looks elsewhere, and leaves the pin
    viewer.mouse.move(1, 1)
    assert root(viewer, "head") == "L2H5"
    viewer.keyboard.press("Escape")
    assert root(viewer, "pinned") == ""


def test_arrow_keys_walk_through_heads_and_stop_at_the_edges(viewer):
    viewer.mouse.click(*where_is(viewer, 4, 6))
    viewer.mouse.move(1, 1)
    for key, expected in (
        ("ArrowDown", "L5H6"),
        ("ArrowDown", "L5H6"),
        ("ArrowRight", "L5H7"),
        ("ArrowRight", "L5H7"),
        ("ArrowUp", "L4H7"),
        ("ArrowLeft", "L4H6"),
    ):
        viewer.keyboard.press(key)
        assert root(viewer, "pinned") == expected


def test_n_and_p_walk_through_heads_in_the_order_of_their_scores(viewer, asked, eager):
    weights, sinks = eager
    nonsink = np.array([[masses(weights[x, h, -1], sinks[x], asked)[1] for h in range(8)] for x in range(6)]).flatten()
    order = [f"L{i // 8}H{i % 8}" for i in np.argsort(-nonsink)]
    assert root(viewer, "head") == order[0]
    for step, expected in (("n", order[1]), ("n", order[2]), ("p", order[1])):
        viewer.keyboard.press(step)
        assert root(viewer, "head") == expected


# ---------------------------------------------------------------------- tokens


def test_hovering_a_patch_shows_how_much_each_head_attends_to_it(viewer, asked, eager):
    position = asked.patch_at(40, 5)
    hover_patch(viewer, asked, position)
    assert root(viewer, "token") == str(position)
    column = eager[0][:, :, -1, position]
    best = np.argsort(-column.flatten())[:5]
    shown = listed(viewer, "token")
    assert [value for _, value in shown] == pytest.approx(column.flatten()[best], abs=6e-4)
    assert shown[0][0] == f"L{best[0] // 8}H{best[0] % 8}"
    box = [round(float(edge), 1) for edge in asked.box(position)]
    text = viewer.locator("#token .title").inner_text()
    assert [float(number) for number in re.findall(r"[\d.]+", text.split("pixels")[1])] == box


def test_hovering_a_word_shows_its_own_attention_too(viewer, asked, eager):
    position = asked.tokens[0].index("triangle")
    chip(viewer, position).hover()
    settle(viewer)
    assert (root(viewer, "token"), root(viewer, "query")) == (str(position), str(position))
    layer, head = (int(number) for number in re.findall(r"\d+", root(viewer, "head")))
    row = eager[0][layer, head, position]
    assert [value for _, value in listed(viewer, "head")] == pytest.approx(sorted(row, reverse=True)[:5], abs=6e-4)
    column = eager[0][:, :, -1, position]  # of the last token, on it
    assert listed(viewer, "token")[0][1] == pytest.approx(column.max(), abs=6e-4)


def test_a_pinned_token_stays_while_heads_are_hovered(viewer, asked, eager):
    position = asked.patch_at(40, 5)
    hover_patch(viewer, asked, position)
    viewer.mouse.down()
    viewer.mouse.up()
    hover_head(viewer, 1, 4)
    assert root(viewer, "token") == str(position)
    shown = viewer.locator("#token [data-name='weight'] span").last.inner_text()
    assert float(as_number(shown)) == pytest.approx(eager[0][1, 4, -1, position], abs=6e-4)
    assert "on the pinned token" in viewer.locator("#tip").inner_text()


def test_another_query_is_chosen_from_the_list_and_with_brackets(viewer, asked, eager):
    position = asked.tokens[0].index("triangle")
    viewer.keyboard.press("[")
    assert root(viewer, "query") == str(asked.n_tokens - 2)
    label = f"triangle ({position})"
    viewer.locator("#query").select_option(label=label)
    assert root(viewer, "query") == str(position)
    hover_head(viewer, 5, 0)
    expected = sorted(eager[0][5, 0, position], reverse=True)[:5]
    assert [value for _, value in listed(viewer, "head")] == pytest.approx(expected, abs=6e-4)


def test_a_picture_unfolds_into_its_tokens_in_rows(viewer, asked):
    viewer.locator(".fold").click()
    settle(viewer)
    visual = asked.mask("visual")[0].nonzero().flatten().tolist()
    lines = viewer.evaluate(
        "[...document.querySelectorAll('.line')].map((l) => [...l.children].map((c) => +c.dataset.position))"
    )
    assert lines == [visual[i : i + 6] for i in range(0, 36, 6)]
    assert viewer.locator(".fold").get_attribute("aria-expanded") == "true"


def test_sinks_are_outlined_by_layer(visit, lens, asked, tmp_path):
    expected = sinks_by_layer(Eager(lens.model).prefill(asked.inputs), 0, (20, 41), 2)
    assert expected[0] != expected[3] != []
    viewer = visit(view(asked, lens, sinks=SinkRule((20, 41), 2)).save(tmp_path / "view.html"))
    viewer.wait_for_selector("html[data-ready]")
    viewer.locator(".fold").click()
    for layer in (0, 3):
        hover_head(viewer, layer, 2)
        outlined = viewer.evaluate("[...document.querySelectorAll('.chip.sink')].map((c) => +c.dataset.position)")
        assert sorted(outlined) == expected[layer]


def test_tokens_are_walked_through_with_the_keyboard(viewer, asked):
    chip(viewer, asked.n_tokens - 1).focus()
    viewer.keyboard.press("ArrowLeft")
    assert root(viewer, "token") == str(asked.n_tokens - 2)
    viewer.keyboard.press("Enter")
    viewer.mouse.move(1, 1)
    settle(viewer)
    assert chip(viewer, asked.n_tokens - 2).get_attribute("aria-pressed") == "true"


def test_patches_are_walked_through_with_the_keyboard(viewer, asked):
    viewer.locator("#panels canvas").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        viewer.keyboard.press(key)
    assert root(viewer, "token") == str(asked.spans[0][0].positions[6 + 1])  # the first press takes the first patch


# ---------------------------------------------------------------------- the rest of the page


def test_the_map_can_show_another_number(viewer, asked, eager):
    viewer.locator("#metric").select_option(label="entropy")
    hover_head(viewer, 4, 4)
    row = eager[0][4, 4, -1].astype(float)
    expected = -sum(p * np.log(p) for p in row if p > 0)
    assert float(as_number(viewer.locator("#tip").inner_text().split(" · ")[1])) == pytest.approx(expected, abs=6e-4)


def test_light_and_dark_follow_the_system_until_the_button_is_pressed(visit, file):
    for scheme, other in (("light", "dark"), ("dark", "light")):
        viewer = visit(file, color_scheme=scheme)
        viewer.wait_for_selector("html[data-ready]")
        paper = viewer.evaluate("getComputedStyle(document.body).backgroundColor")
        assert root(viewer, "theme") == scheme
        assert (sum(map(int, re.findall(r"\d+", paper))) > 384) == (scheme == "light")
        viewer.locator("#theme").click()
        assert root(viewer, "theme") == other


def test_words_can_be_read_on_every_tint(visit, file):
    """Contrast as WCAG 2 counts it, of each chip with a tint, at many heads and in both themes."""
    lowest = []
    for scheme in ("light", "dark"):
        viewer = visit(file, color_scheme=scheme)
        viewer.wait_for_selector("html[data-ready]")
        for layer in range(N_LAYERS):
            hover_head(viewer, layer, layer)
            pairs = viewer.evaluate("""() => [...document.querySelectorAll(".chip")]
                .filter((c) => c.style.backgroundColor && c.textContent)
                .map((c) => [c.style.backgroundColor, c.style.color])""")
            lowest += [contrast(paper, ink) for paper, ink in pairs]
    assert len(lowest) > 50
    assert min(lowest) >= 4.5


def contrast(one, other):
    def luminance(colour):
        shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_attention_can_be_taken_off_the_picture(viewer):
    viewer.keyboard.press("o")
    settle(viewer)
    assert not overlay(viewer).any()
    viewer.locator("#overlay").click()
    settle(viewer)
    assert overlay(viewer).any()


def test_help_opens_and_every_control_has_a_name(viewer):
    viewer.locator("#help-button").click()
    assert viewer.locator("#help").is_visible()
    nameless = viewer.evaluate("""() => [...document.querySelectorAll("button, select, input, canvas[tabindex]")]
        .filter((e) => e.checkVisibility() && !e.getAttribute("aria-label") && !e.textContent.trim())
        .filter((e) => !e.labels?.length)
        .map((e) => e.outerHTML)""")
    assert nameless == []


def test_it_fits_a_narrow_notebook(visit, file):
    viewer = visit(file)
    for width in (1400, 700, 420):
        viewer.set_viewport_size({"width": width, "height": 900})
        viewer.wait_for_selector("html[data-ready]")
        settle(viewer)
        assert viewer.evaluate("document.documentElement.scrollWidth") <= width


def test_in_a_notebook_it_lives_in_a_frame_of_its_own(visit, lens, asked, tmp_path, eager):
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><p>a cell</p>{view(asked, lens)._repr_html_()}", encoding="utf-8")
    frame = visit(notebook).frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for()
    row = eager[0][1, 4, -1]
    shown = [float(as_number(text)) for text in frame.locator("#head .listed li > span:last-child").all_inner_texts()]
    assert frame.locator("#head").get_attribute("data-head") == "L1H4"
    assert shown == pytest.approx(sorted(row, reverse=True)[:5], abs=6e-4)


def test_a_word_that_looks_like_html_stays_a_word(visit, lens, asked, tmp_path):
    words = ("</script><img src=x onerror=alert(1)>", *asked.tokens[0][1:])
    odd = dataclasses.replace(asked, tokens=(words,), texts=("<b>bold</b> & co",))
    viewer = visit(view(odd, Lens(lens.model, lens.processor)).save(tmp_path / "odd.html"))
    viewer.wait_for_selector("html[data-ready]")
    assert viewer.locator("h1").inner_text() == "<b>bold</b> & co"
    assert viewer.locator(".chip").first.inner_text() == words[0]


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (400, "light")])
def test_it_can_be_read_by_everyone_and_on_a_telephone(visit, file, width, scheme):
    page = visit(file, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    assert faults(page) == []
    assert overflow(page) == 0
