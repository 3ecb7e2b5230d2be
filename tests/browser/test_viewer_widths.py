"""How the viewer looks: at any width, with a keyboard, and under the pointer."""

import pytest
from PIL import Image

from lmm_lens.bundled import shapes
from lmm_lens.viewer import view
from tests.browser.looking import hover_head, root, settle, where_is
from tests.support.axe import faults, overflow
from tests.support.families import lens_of


@pytest.fixture(scope="module")
def file(lens, tmp_path_factory):
    example = shapes.examples(1, kinds=("color",), seed=1)[0]
    prompt = lens.prompt(example.question, images=example.image)
    return view(prompt, lens, queries="text").save(tmp_path_factory.mktemp("view") / "view.html")


@pytest.fixture
def sized(visit, file):
    def opened(width, height=900, path=file, **options):
        page = visit(path, **options)
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_selector("html[data-ready]")
        settle(page)
        return page

    return opened


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Pages of a video of four and of six frames."""
    lens, folder = lens_of("llava_onevision"), tmp_path_factory.mktemp("films")
    made = {}
    for n in (4, 6):
        frames = [Image.new("RGB", (320, 200), (30 * i, 90, 60)) for i in range(n)]
        made[n] = view(lens.prompt("What happens?", videos=[frames]), lens).save(folder / f"{n}.html")
    return made


def box(page, selector):
    return page.locator(selector).first.bounding_box()


@pytest.mark.parametrize("n", [4, 6])
def test_every_frame_of_a_film_is_as_large_as_the_others(sized, films, n):
    page = sized(400, path=films[n])
    for width in (400, 700, 1200, 4000):
        page.set_viewport_size({"width": width, "height": 900})
        settle(page)
        sizes = [each.bounding_box() for each in page.locator(".panel .stage").all()]
        assert len(sizes) == n
        assert max(each["width"] for each in sizes) - min(each["width"] for each in sizes) < 1
        assert overflow(page) == 0


def test_a_wide_screen_is_filled(sized):
    page = sized(4000, 2000)
    main = box(page, "main")
    assert main["width"] > 0.8 * 4000
    assert box(page, "#panels canvas")["width"] > 1000
    assert page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") > 19
    parts = [box(page, f"#{name}") for name in ("pictures", "map-section", "token-section")]
    assert len({round(each["y"]) for each in parts}) == 1  # three beside each other
    assert faults(page) == []


@pytest.mark.parametrize("width", [1200, 4000])
def test_a_head_is_found_where_it_is_drawn_at_any_size(sized, width):
    page = sized(width)
    scale = page.evaluate("parseFloat(getComputedStyle(document.documentElement).fontSize)") / 14
    at = box(page, "#map")
    left, bottom = 30 * scale, 18 * scale
    for layer, head in ((0, 0), (3, 4), (5, 7)):
        x = at["x"] + left + (head + 0.5) * (at["width"] - left - 4) / 8
        y = at["y"] + 4 + (layer + 0.5) * (at["height"] - 4 - bottom) / 6
        page.mouse.move(x, y)
        assert root(page, "head") == f"L{layer}H{head}"


def test_a_heading_is_not_broken_within_words_on_a_telephone(sized):
    page = sized(400)
    assert box(page, "h1")["width"] > 200
    assert box(page, "h1")["height"] < 60


def test_a_tip_lies_within_the_window_and_goes_when_the_page_moves(sized):
    page = sized(400, 700)
    page.locator("#map").scroll_into_view_if_needed()
    settle(page)  # it has been told of its own moving, too
    for layer, head in ((0, 7), (5, 7), (3, 0)):
        hover_head(page, layer, head)
        tip = box(page, "#tip")
        assert tip["x"] >= 0
        assert tip["x"] + tip["width"] <= 400
        assert tip["y"] + tip["height"] <= 700
        assert tip["height"] < 30  # it is short enough for one line, wherever it is
    page.mouse.wheel(0, 60)
    page.locator("#tip").wait_for(state="hidden")


def test_a_long_word_in_a_tip_is_broken_and_not_cut(visit, lens, tmp_path):
    prompt = lens.prompt("what color is the triangle ?", images=shapes.examples(1, seed=1)[0].image)
    page = visit(view(prompt, lens).save(tmp_path / "view.html"))
    page.set_viewport_size({"width": 320, "height": 700})
    page.wait_for_selector("html[data-ready]")
    page.evaluate("document.querySelector('#tip').textContent = 'w'.repeat(200)")
    page.evaluate("document.querySelector('#tip').hidden = false")
    tip = box(page, "#tip")
    assert tip["width"] <= 320 - 8


CUT = """element => {
    const style = getComputedStyle(element), own = element.getBoundingClientRect();
    const out = Math.max(0, parseFloat(style.outlineWidth) + parseFloat(style.outlineOffset));
    let most = 0;
    for (let box = element.parentElement; box !== document.body; box = box.parentElement) {
        if (getComputedStyle(box).overflowX === "visible") continue;
        const edge = box.getBoundingClientRect(), x = edge.left + box.clientLeft, y = edge.top + box.clientTop;
        const over = [x - (own.left - out), y - (own.top - out), own.right + out - (x + box.clientWidth)];
        if (box.scrollHeight <= box.clientHeight) over.push(own.bottom + out - (y + box.clientHeight));
        most = Math.max(most, ...over);
    }
    return [style.outlineStyle, most];
}"""


def test_the_ring_of_the_focus_is_not_cut(sized):
    """The outline with its distance lies inside every box around the element that cuts what reaches over it."""
    page = sized(1200)
    page.keyboard.press("Tab")
    for selector in ("#map", ".chip[tabindex='0']", ".fold", ".thumb button", "#panels canvas", ".link"):
        page.locator(selector).first.focus()
        settle(page)
        style, pixels = page.locator(selector).first.evaluate(CUT)
        assert (selector, style) != (selector, "none")
        assert pixels <= 0.01, selector


def test_the_focus_stays_on_what_was_pressed_in_a_card(sized):
    page = sized(1200)
    link = page.locator("#head .link").nth(1)
    name = link.inner_text()
    link.focus()
    page.keyboard.press("Enter")
    settle(page)
    assert page.evaluate("document.activeElement.textContent") == name
    heads = page.locator("#token .link").nth(2)
    name = heads.inner_text()
    heads.focus()
    page.keyboard.press("Enter")
    settle(page)
    assert root(page, "pinned") == name
    assert page.evaluate("document.activeElement.textContent") == name
    page.locator("#head input").focus()
    page.keyboard.press("Space")
    settle(page)
    assert root(page, "chosen") == name
    assert page.evaluate("document.activeElement.type") == "checkbox"


def test_a_chosen_and_a_pinned_head_are_seen_at_the_edge_of_the_map(sized):
    """The ring around the last column is whole: its right side has as many dark pixels as its left."""
    page = sized(1200, color_scheme="light")
    page.mouse.click(*where_is(page, 2, 7))
    page.mouse.move(1, 1)
    settle(page)
    columns = page.locator("#map").evaluate("""c => {
        const context = c.getContext("2d"), y = Math.round(c.height * (4 + 2.5 * (c.height - 22) / 6) / c.height);
        const line = context.getImageData(0, y, c.width, 1).data, dark = [];
        for (let x = 0; x < c.width; x++) if (line[4 * x + 3] > 200 && line[4 * x] < 60) dark.push(x);
        return [dark, c.width];
    }""")
    left = [x for x in columns[0] if x < columns[1] - 30]
    right = [x for x in columns[0] if x >= columns[1] - 30]
    assert len(left) == len(right) >= 2
