"""The pictures of the documentation, by the library's own figures on the bundled model: `python docs/pictures.py`.

Each function is one picture. They are committed; the text around them says what they show.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lmm_lens import (
    Lens,
    activation_patching,
    find_circuit,
    find_sinks,
    head_effects,
    localization_heads,
    localize,
    score_heads,
)
from lmm_lens.bundled import shapes
from lmm_lens.core.kernels import redistribute
from lmm_lens.prompts.prompt import Prompt
from lmm_lens.scoring.figures import attention_over_image, head_heatmap

HERE = Path(__file__).parent / "pictures"
INK, ORANGE, BLUE, GREEN, GREY = "#2b2f38", "#e69f00", "#0072b2", "#009e73", "#9aa0a6"
SHOWN = ("image", "text", "bos", "question", "after_image", "last", "all")


def asked(lens: Lens, n: int = 120, **options: Any) -> Prompt:
    """A batch of questions about colours, shapes and places."""
    found = shapes.examples(n, kinds=["color", "shape", "where"], seed=1, **options)
    return lens.prompt([each.question for each in found], images=[each.image for each in found])


def one(lens: Lens) -> Prompt:
    """One question about a colour."""
    found = shapes.examples(12, kinds=["color"], seed=3)[5]
    return lens.prompt(found.question, images=found.image)


def hero(lens: Lens) -> Figure:
    """A picture, the heads that look at it, and two heads that seem to and differ."""
    prompt, scores = one(lens), score_heads(lens, asked(lens), "nonsink_mass")
    sinks = find_sinks(lens, prompt)
    figure = Figure(figsize=(9.6, 2.9), dpi=150, layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1.75, 1, 1))
    picture = prompt.images[0][0]
    axes[0].imshow(picture, extent=(0, 48, 48, 0))
    for k in range(0, 49, 8):
        axes[0].axhline(k, color="white", linewidth=0.5, alpha=0.7)
        axes[0].axvline(k, color="white", linewidth=0.5, alpha=0.7)
    axes[0].set(xticks=[], yticks=[], xlim=(0, 48), ylim=(48, 0))
    assert prompt.texts is not None
    axes[0].set_title(f"“{prompt.texts[0]}”", fontsize=9)
    head_heatmap(scores, axes[1], mark=scores.top(4))
    axes[1].set_title("attention on the image off its sinks", fontsize=9)
    for ax, (layer, head), role in ((axes[2], (1, 4), "reads"), (axes[3], (2, 1), "parks on a sink")):
        attention_over_image(lens, prompt, layer, head, ax=ax, sinks=sinks.positions(layer, visual=True))
        ax.set_title(f"L{layer}H{head} {role}", fontsize=9)
    return figure


def masks(lens: Lens) -> Figure:
    """Which tokens of the two batch rows of a left-padded batch each mask selects."""
    first, second = shapes.examples(12, kinds=["color", "where"], seed=3)[4:6]
    prompt = lens.prompt([first.question, "describe the image."], images=[first.image, second.image])
    figure = Figure(figsize=(9.6, 4.6), dpi=150, layout="constrained")
    names = ("pad", *SHOWN)
    for row, ax in enumerate(figure.subplots(2, 1)):
        table = torch.stack([prompt.mask(name)[row] for name in names]).float().numpy()
        ax.imshow(table, cmap=ListedColormap(["#eceff3", BLUE]), aspect="auto", interpolation="nearest")
        ax.set_yticks(range(len(names)), names, fontsize=8)
        words = ["·" if t == "<image>" else t for t in prompt.tokens[row]]
        ax.set_xticks(range(prompt.n_tokens), words, fontsize=7, rotation=55, ha="right", rotation_mode="anchor")
        ax.tick_params(length=0)
        ax.set_xticks([x - 0.5 for x in range(prompt.n_tokens)], minor=True)
        ax.set_yticks([y - 0.5 for y in range(len(names))], minor=True)
        ax.grid(which="minor", color="white", linewidth=1)
        ax.tick_params(which="minor", length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(f"batch row {row}", fontsize=9, loc="left")
    return figure


def sinks(lens: Lens) -> Figure:
    """The evidence for sinks, and where the visual ones lie."""
    report = find_sinks(lens, asked(lens, 24))
    figure = Figure(figsize=(8.2, 3.0), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    report.plot(left)
    report.plot_over_image(2, row=5, ax=right)
    right.set_title("visual sinks of layer 2", fontsize=9)
    return figure


def var(lens: Lens) -> Figure:
    """One row of attention before and after VAR: the worked row of the method page."""
    names = ["text sink", "text", "visual sink", "visual", "visual", "text"]
    row = torch.tensor([0.30, 0.10, 0.10, 0.20, 0.15, 0.15])
    visual = torch.tensor([False, False, True, True, True, False])
    sink = torch.tensor([True, False, True, False, False, False])
    after, *_ = redistribute(
        row[None, None, None],
        visual[None],
        sink[None],
        transfer_fraction=0.6,
        min_nonsink_ratio=0.5,
        min_visual_mass=0.2,
    )
    figure = Figure(figsize=(6.6, 2.7), dpi=150, layout="constrained")
    ax = figure.subplots()
    places = torch.arange(len(names))
    for shift, values, color, label in ((-0.2, row, GREY, "before"), (0.2, after[0, 0, 0], ORANGE, "after, p = 0.6")):
        bars = ax.bar((places + shift).tolist(), values.tolist(), 0.38, color=color, label=label)
        ax.bar_label(bars, fmt="%.3f", fontsize=7, padding=1)
    ax.set_xticks(places.tolist(), names, fontsize=8)
    ax.set(ylabel="attention", ylim=(0, 0.4))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return figure


def effects(lens: Lens) -> Figure:
    """What each head does to the answer."""
    found = head_effects(lens, asked(lens, 60), rows="last")
    return _figure_of(found.plot())


def patching(lens: Lens) -> Figure:
    """Where a colour travels, by layer and span."""
    pairs = shapes.color_pairs(24)
    clean, corrupt = (lens.prompt([p[i].question for p in pairs], images=[p[i].image for p in pairs]) for i in (0, 1))
    found = activation_patching(lens, clean, corrupt, site="resid_pre", by="span")
    return _figure_of(found.plot())


def circuit(lens: Lens) -> Figure:
    """Which edges carry a colour from the picture to the answer."""
    pairs = shapes.color_pairs(12)[:6]
    clean, corrupt = (lens.prompt([p[i].question for p in pairs], images=[p[i].image for p in pairs]) for i in (0, 1))
    answers = {"answer": [p[0].answer for p in pairs], "against": [p[1].answer for p in pairs]}
    return _figure_of(find_circuit(lens, clean, corrupt, **answers).top(32).plot())


def place(lens: Lens) -> Figure:
    """The box that localization heads give."""
    heads = localization_heads(lens, asked(lens), 3, drop_sinks=True)
    found = [e for e in shapes.examples(40, kinds=["color"], seed=3) if len(e.scene.things) > 2][:3]
    figure = Figure(figsize=(7.2, 2.6), dpi=150, layout="constrained")
    for ax, example in zip(figure.subplots(1, 3), found, strict=True):
        prompt = lens.prompt(example.question, images=example.image)
        box = localize(lens, prompt, heads, drop_sinks=True)
        ax.imshow(example.image, extent=(0, 48, 48, 0))
        size = (box.x1 - box.x0, box.y1 - box.y0)
        ax.add_patch(Rectangle((box.x0, box.y0), *size, fill=False, edgecolor="white", linewidth=3.5))
        ax.add_patch(Rectangle((box.x0, box.y0), *size, fill=False, edgecolor=BLUE, linewidth=1.8))
        ax.set(xticks=[], yticks=[])
        ax.set_title(example.question, fontsize=9)
    return figure


def viewer(lens: Lens) -> None:
    """A photograph of the viewer's page; writes its file itself."""
    from playwright.sync_api import sync_playwright

    from lmm_lens.viewer import view

    scores = score_heads(lens, asked(lens, 60), "nonsink_mass")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as player:
        page_file = view(one(lens), scores, lens=lens, mark=scores.top(4)).save(Path(folder) / "view.html")
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = player.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport={"width": 1180, "height": 800}, color_scheme="light")
        page.goto(page_file.as_uri())
        page.wait_for_timeout(800)
        page.screenshot(path=HERE / "viewer.png")
        browser.close()


def _figure_of(ax: Any) -> Figure:
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


PICTURES: dict[str, Callable[[Lens], Figure | None]] = {
    each.__name__: each for each in (hero, masks, sinks, var, effects, patching, circuit, place, viewer)
}


def main(names: list[str]) -> None:
    """Draw the named pictures, or all."""
    torch.set_num_threads(1)
    matplotlib.rcParams.update({"text.color": INK, "axes.labelcolor": INK, "savefig.dpi": 150})
    lens = Lens.demo()
    for name in names or PICTURES:
        figure = PICTURES[name](lens)
        if figure is not None:
            figure.savefig(HERE / f"{name}.png", metadata={"Software": ""})


if __name__ == "__main__":
    main(sys.argv[1:])
