"""What a reader does on a viewer's page, and what is seen there."""

import base64
import io

import numpy as np
from PIL import Image

N_LAYERS, N_HEADS = 6, 8  # of the bundled model


def root(viewer, name):
    settle(viewer)
    return viewer.get_attribute("html", f"data-{name}")


def settle(viewer):
    """Two frames: the first draws what has changed, once the weights of its query are unpacked."""
    viewer.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    viewer.wait_for_selector("html[aria-busy='false']")
    viewer.wait_for_selector("#sheet:not([aria-busy='true'])", state="attached")


def hover_head(viewer, layer, head):
    x, y = where_is(viewer, layer, head)
    viewer.mouse.move(x, y)
    settle(viewer)


def where_is(viewer, layer, head):
    """The middle of a head's cell: 8 columns between the axis on the left and the right edge, 6 rows."""
    box = viewer.locator("#map").bounding_box()
    left, right, bottom = 30, 4, 18
    cell = (box["width"] - left - right) / N_HEADS, (box["height"] - 4 - bottom) / N_LAYERS
    return box["x"] + left + (head + 0.5) * cell[0], box["y"] + 4 + (layer + 0.5) * cell[1]


def hover_patch(viewer, asked, position):
    """The middle of a patch, in pixels of the picture."""
    stage, (width, height) = viewer.locator("#panels canvas").bounding_box(), asked.images[0][0].size
    x0, y0, x1, y1 = asked.box(position)
    viewer.mouse.move(
        stage["x"] + stage["width"] * (x0 + x1) / 2 / width, stage["y"] + stage["height"] * (y0 + y1) / 2 / height
    )
    settle(viewer)


def chip(viewer, position):
    return viewer.locator(f".chip[data-position='{position}']")


def overlay(viewer):
    """What is drawn over the picture, [height, width, 4]."""
    url = viewer.locator("#panels canvas").evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))


def listed(viewer, card):
    """The rows (name, number) of a card's list."""
    rows = viewer.locator(f"#{card} .listed li:not([data-name])")
    return [
        (row.locator("button").inner_text(), float(as_number(row.locator("span").last.inner_text())))
        for row in rows.all()
    ]


def as_number(text):
    return text.replace("−", "-")


def figure(viewer, name):
    return float(as_number(viewer.locator(f"#head [data-name='{name}'] span").last.inner_text()))
