"""Two runs side by side, all rows of a batch and generated tokens, as a reader sees them."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from lmm_lens import AblateHeads, Read
from lmm_lens.bundled import shapes
from lmm_lens.viewer import view
from tests.browser.looking import as_number, chip, hover_head, listed, root, settle, where_is
from tests.support.axe import faults, overflow
from tests.support.eager import Eager


@pytest.fixture(scope="module")
def asked(lens):
    example = shapes.examples(1, kinds=("color",), seed=1)[0]
    return lens.prompt(example.question, images=example.image)


@pytest.fixture(scope="module")
def runs(lens, asked):
    reads = [Read("pattern", rows="last")]
    return {"intact": lens.run(asked, read=reads), "cut": lens.run(asked, [AblateHeads([(1, 4)])], read=reads)}


@pytest.fixture(scope="module")
def file(lens, asked, runs, tmp_path_factory):
    return view(asked, runs, lens=lens).save(tmp_path_factory.mktemp("view") / "two.html")


@pytest.fixture
def viewer(visit, file):
    opened = visit(file)
    opened.wait_for_selector("html[data-ready]")
    return opened


def numbers(text):
    return [float(as_number(each)) for each in text.split(" → ")]


def row_of(run, layer, head):
    return run.reads["pattern", layer][0, head, 0].numpy()


def masses(runs, asked):
    """Visual mass of the last token, [run, layer, head]."""
    visual = asked.mask("visual")[0].nonzero().flatten().tolist()
    return np.array([[[row_of(run, x, h)[visual].sum() for h in range(8)] for x in range(6)] for run in runs.values()])


def most_changed(runs, asked):
    """The heads that see most more and most less of the picture afterwards."""
    before, after = masses(runs, asked)
    return [np.unravel_index((sign * (after - before)).argmax(), before.shape) for sign in (1, -1)]


def test_both_runs_are_drawn_with_their_own_attention(viewer, asked, runs):
    visual = asked.mask("visual")[0].nonzero().flatten().tolist()
    for layer, head in most_changed(runs, asked):
        hover_head(viewer, layer, head)
        expected = [float(row_of(run, layer, head)[visual].sum()) for run in runs.values()]
        assert abs(expected[0] - expected[1]) > 0.05
        captions = viewer.locator("figure.panel figcaption").all()
        assert [caption.locator("span").first.inner_text().split(" · ")[0] for caption in captions] == list(runs)
        shares = [float(as_number(caption.locator(".share").inner_text())) for caption in captions]
        assert shares == pytest.approx(expected, abs=6e-4)
        text = viewer.locator("#head [data-name='visual_mass'] span").last.inner_text()
        assert numbers(text) == pytest.approx(expected, abs=6e-4)


def test_the_words_and_cards_are_of_the_run_that_is_chosen(viewer, runs):
    for name, run in runs.items():
        viewer.locator("#side").select_option(label=name)
        hover_head(viewer, 2, 7)
        expected = sorted(row_of(run, 2, 7), reverse=True)[:5]
        assert [value for _, value in listed(viewer, "head")] == pytest.approx(expected, abs=6e-4)


def test_the_map_shows_what_has_changed(viewer, asked, runs):
    mass, (more, less) = masses(runs, asked), most_changed(runs, asked)
    change = mass[1] - mass[0]
    assert change[more] > 0 > change[less]
    viewer.locator("#side").select_option(label="change")
    viewer.locator("#metric").select_option(label="visual mass")
    most = np.unravel_index(np.abs(change).argmax(), change.shape)
    assert root(viewer, "head") == f"L{most[0]}H{most[1]}"
    for layer, head in (more, less, (0, 0)):
        hover_head(viewer, layer, head)
        told = viewer.locator("#tip").inner_text().split(" · ")[1]
        assert float(as_number(told)) == pytest.approx(change[layer, head], abs=6e-4)
    assert viewer.locator("#map-meaning").inner_text() == "change of attention on the visual tokens"
    low, high = viewer.locator("#map-range").inner_text().split(" to ")
    assert float(as_number(low)) == -float(high)
    url = viewer.locator("#map").evaluate("canvas => canvas.toDataURL()")
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))).astype(int)
    at = viewer.locator("#map").bounding_box()
    red_over_blue = []
    for layer, head in (more, less):
        x, y = where_is(viewer, layer, head)
        pixel = drawn[int(y - at["y"]), int(x - at["x"]) + 8]
        red_over_blue.append(pixel[0] - pixel[2])
    assert red_over_blue[0] > 20 > -20 > red_over_blue[1]


def test_a_pinned_token_tells_its_weight_in_both(viewer, asked, runs):
    position = asked.tokens[0].index("triangle")
    chip(viewer, position).click()
    viewer.mouse.move(1, 1)
    hover_head(viewer, 4, 3)
    text = viewer.locator("#token [data-name='weight'] span").last.inner_text()
    assert numbers(text) == pytest.approx([row_of(run, 4, 3)[position] for run in runs.values()], abs=6e-4)


def test_the_likeliest_tokens_of_both_are_above(viewer, runs, lens):
    text = viewer.locator("#facts").inner_text()
    for name, run in runs.items():
        word = lens.processor.tokenizer.decode([int(run.logits[0, -1].argmax())])
        assert f"{name}: next token {word} " in text


@pytest.mark.parametrize(("width", "scheme"), [(1200, "dark"), (400, "light")])
def test_two_runs_can_be_read_by_everyone(visit, file, width, scheme):
    page = visit(file, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.wait_for_selector("html[data-ready]")
    page.locator("#side").select_option(label="change")
    page.keyboard.press("c")
    settle(page)
    assert faults(page) == []
    assert overflow(page) == 0


# ---------------------------------------------------------------------- rows, and generated tokens


@pytest.fixture(scope="module")
def pair(lens):
    examples = shapes.examples(12, seed=5)
    texts, pictures = [e.question for e in examples], [e.image for e in examples]
    short, long = (f(range(12), key=lambda i: len(texts[i].split())) for f in (min, max))
    return lens.prompt([texts[short], texts[long]], images=[pictures[short], pictures[long]])


def test_another_row_of_the_batch_is_chosen_and_takes_along_what_was_chosen(visit, lens, pair, tmp_path):
    page = visit(view(pair, lens, row="all", queries="text").save(tmp_path / "rows.html"))
    page.wait_for_selector("html[data-ready]")
    weights = Eager(lens.model).prefill(pair.inputs).weights
    page.mouse.click(*where_is(page, 3, 2))
    page.keyboard.press("c")
    page.locator("#theme").click()
    dark = root(page, "theme")
    for row in (1, 0, 1):
        page.locator("#scene").select_option(str(row))
        assert page.locator("h1").inner_text() == pair.texts[row]
        assert (root(page, "pinned"), root(page, "chosen"), root(page, "theme")) == ("L3H2", "L3H2", dark)
        assert page.evaluate("document.activeElement.id") == "scene"
        expected = sorted(weights[3][row, 2, -1].tolist(), reverse=True)[:5]
        assert [value for _, value in listed(page, "head")] == pytest.approx(expected, abs=6e-4)
    page.mouse.move(1, 1)
    page.locator("h1").click()
    page.keyboard.press("ArrowRight")  # one row's keys alone are heard
    assert root(page, "pinned") == "L3H3"


def test_generated_words_are_shown_with_the_attention_they_pay(visit, lens, asked, tmp_path):
    made = lens.generate(asked, read=[Read("pattern", rows="generating")], max_new_tokens=3)
    page = visit(view(asked, made, lens=lens).save(tmp_path / "generated.html"))
    page.wait_for_selector("html[data-ready]")
    assert f"answer {made.text[0]}" in page.locator("#facts").inner_text()
    word = page.locator(".chip.generated").first
    assert (word.inner_text(), word.get_attribute("data-position")) == (made.text[0].split()[0], str(asked.n_tokens))
    hover_head(page, 5, 1)
    last = made.reads["pattern", 5][0, 1, -1].numpy()
    assert [value for _, value in listed(page, "head")] == pytest.approx(sorted(last, reverse=True)[:5], abs=6e-4)
