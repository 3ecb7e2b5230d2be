"""The pictures of the documentation, by the library's own figures on the bundled model: `python docs/pictures.py`.

Each function is one picture. They are committed; the text around them says what they show.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import made
import matplotlib
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lmm_lens import (
    AblateHeads,
    Intervention,
    Lens,
    Read,
    activation_patching,
    attention_map,
    find_circuit,
    find_sinks,
    head_effects,
    localization_heads,
    localize,
    score_heads,
)
from lmm_lens.bundled import emoji, shapes
from lmm_lens.core.kernels import groups_of, redistribute, var_weights
from lmm_lens.prompts.prompt import Prompt
from lmm_lens.scoring.figures import attention_over_image, head_heatmap

HERE = Path(__file__).parent / "pictures"
INK, ORANGE, BLUE, GREEN, GREY = "#2b2f38", "#e69f00", "#0072b2", "#009e73", "#9aa0a6"
SHOWN = ("image", "text", "bos", "question", "after_image", "last", "all")


def questions(n: int) -> list[shapes.Example]:
    """About colours, shapes and places."""
    return shapes.examples(n, kinds=["color", "shape", "where"], seed=1)


def asked(lens: Lens, n: int = 120) -> Prompt:
    """A batch of them."""
    found = questions(n)
    return lens.prompt([each.question for each in found], images=[each.image for each in found])


def one(lens: Lens) -> Prompt:
    """One question about a colour."""
    found = shapes.examples(12, kinds=["color"], seed=3)[5]
    return lens.prompt(found.question, images=found.image)


def hero(lens: Lens) -> Figure:
    """A question and its picture with the patches that the model sees; a map of all heads, six marked; where one
    that reads looks, and one that parks; right answers intact, without the six heads, and without six random ones.
    """
    prompt, many = one(lens), asked(lens)
    scores = score_heads(lens, many, "nonsink_mass")
    heads, sinks = scores.top(6), find_sinks(lens, prompt)
    figure = Figure(figsize=(12.6, 2.7), dpi=150, layout="constrained")
    axes = figure.subplots(1, 5, width_ratios=(1, 1.7, 1.22, 1.22, 1.15))
    axes[0].imshow(prompt.images[0][0], extent=(0, 48, 48, 0))
    for k in range(0, 49, 8):
        axes[0].axhline(k, color="white", linewidth=0.5, alpha=0.7)
        axes[0].axvline(k, color="white", linewidth=0.5, alpha=0.7)
    axes[0].set(xticks=[], yticks=[], xlim=(0, 48), ylim=(48, 0))
    assert prompt.texts is not None
    axes[0].set_title(f"“{prompt.texts[0]}”", fontsize=9)
    head_heatmap(scores, axes[1], mark=heads)
    axes[1].set_title("which heads look, sinks left out", fontsize=9)
    for ax, (layer, head), role in ((axes[2], (1, 4), "reads"), (axes[3], (2, 1), "parks on sinks")):
        attention_over_image(lens, prompt, layer, head, ax=ax, sinks=sinks.positions(layer, visual=True))
        ax.set_title(f"L{layer}H{head} {role}", fontsize=9)
    random = [right(lens, many, [AblateHeads(heads.random_like(seed))]) for seed in range(5)]
    shares = {"intact": right(lens, many, []), "without\nthese six": right(lens, many, [AblateHeads(heads)])}
    shares["without six\nat random"] = sum(random) / len(random)
    bars = axes[4].bar(list(shares), list(shares.values()), color=(GREEN, ORANGE, GREY), width=0.62)
    axes[4].bar_label(bars, [f"{share:.0%}" for share in shares.values()], fontsize=8, padding=2)
    axes[4].plot([2, 2], [min(random), max(random)], color=INK, linewidth=1.2)
    axes[4].set(ylim=(0, 1.13), yticks=[])
    axes[4].tick_params(axis="x", labelsize=8, length=0)
    axes[4].spines[["top", "right", "left"]].set_visible(False)
    axes[4].set_title("right answers", fontsize=9)
    return figure


def reading(lens: Lens) -> Figure:
    """The pretrained language model names what it sees, and six of its 270 heads look at each thing in its turn: the
    mean of their attention from the token that gives each name, every picture on a scale of its own. The heads were
    chosen on 24 other pictures, by how much they look at the first thing to be named.
    """
    lens = Lens.demo("emoji")  # needs the packages that its card names
    others = emoji.examples(24, ["list"], seed=6)
    boxes = [emoji.scenes.boxes(each.scene)[each.scene.things[0]] for each in others]
    prompts = [lens.prompt(each.question, images=each.image) for each in others]
    heads = score_heads(lens, prompts, "region_mass", boxes=boxes).top(6)
    said = attention_map(lens, named(lens), generated=7, heads=heads)  # names with commas between them
    figure = Figure(figsize=(9.2, 2.5), dpi=150, layout="constrained")
    axes = figure.subplots(1, 5)
    (canvas,) = said.canvases
    canvas.draw(axes[0])
    axes[0].set_title("“What is in\nthe picture?”", fontsize=12)
    for ax, number in zip(axes[1:], range(0, 7, 2), strict=True):
        weights = said.weights[number, 0]
        canvas.draw_weights(ax, weights, 0.0, float(weights[list(canvas.positions)].max()))
        ax.set_title(f"it says\n“{said.queries[number]}”", fontsize=12)
    return figure


def right(lens: Lens, prompt: Prompt, edits: Sequence[Intervention]) -> float:
    """The share of `asked` that is answered rightly."""
    said = lens.generate(prompt, edits, max_new_tokens=4).text
    return sum(a == each.answer for a, each in zip(said, questions(prompt.n_rows), strict=True)) / len(said)


def masks(lens: Lens) -> Figure:
    """Which tokens of the two batch rows of a left-padded batch each mask selects; of the 36 patches two are shown."""
    first, second = shapes.examples(12, kinds=["color", "where"], seed=3)[4:6]
    prompt = lens.prompt([first.question, "describe the image."], images=[first.image, second.image])
    figure = Figure(figsize=(8.2, 5.0), dpi=150, layout="constrained")
    names = ("pad", *SHOWN)
    for row, ax in enumerate(figure.subplots(2, 1)):
        patches = prompt.mask("image")[row].nonzero().flatten().tolist()
        kept = [i for i in range(prompt.n_tokens) if i not in patches[1:-1]]
        table = torch.stack([prompt.mask(name)[row] for name in names])[:, kept].float()
        gap = kept.index(patches[0]) + 1  # where the patches between the first and the last stood
        table = torch.cat([table[:, :gap], table[:, gap - 1 : gap], table[:, gap:]], 1).numpy()
        ax.imshow(table, cmap=ListedColormap(["#eceff3", BLUE]), aspect="auto", interpolation="nearest")
        ax.set_yticks(range(len(names)), names, fontsize=9)
        words = ["patch" if t == "<image>" else t for t in (prompt.tokens[row][i] for i in kept)]
        words.insert(gap, f"... {len(patches) - 2} more ...")
        ax.set_xticks(range(len(words)), words, fontsize=9, rotation=40, ha="right", rotation_mode="anchor")
        ax.tick_params(length=0)
        ax.set_xticks([x - 0.5 for x in range(len(words))], minor=True)
        ax.set_yticks([y - 0.5 for y in range(len(names))], minor=True)
        ax.grid(which="minor", color="white", linewidth=1)
        ax.tick_params(which="minor", length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(f"batch row {row}", fontsize=10, loc="left")
    return figure


def sinks(lens: Lens) -> Figure:
    """The evidence for sinks by layer, and where the visual ones lie in a picture."""
    report = find_sinks(lens, asked(lens, 24))
    figure = Figure(figsize=(8.8, 3.0), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    report.plot(left)
    report.plot_over_image(2, row=5, ax=right)
    right.set_title("visual sinks of layer 2", fontsize=9)
    return figure


def var(lens: Lens) -> Figure:
    """One row of attention before and after VAR, which is the worked row of the method page."""
    names = ["text sink", "text", "visual sink", "visual", "visual", "text"]
    row = torch.tensor([0.30, 0.10, 0.10, 0.20, 0.15, 0.15])
    visual = torch.tensor([False, False, True, True, True, False])
    sink = torch.tensor([True, False, True, False, False, False])
    growth, _ = redistribute(
        row[None, None, None],
        var_weights(groups_of(visual[None], sink[None], row.dtype)),
        transfer_fraction=0.6,
        min_nonsink_ratio=0.5,
        min_visual_mass=0.2,
    )
    after = row * (1 + growth[0, 0, 0])
    figure = Figure(figsize=(6.6, 2.7), dpi=150, layout="constrained")
    ax = figure.subplots()
    places = torch.arange(len(names))
    for shift, values, color, label in ((-0.2, row, GREY, "before"), (0.2, after, ORANGE, "after, p = 0.6")):
        bars = ax.bar((places + shift).tolist(), values.tolist(), 0.38, color=color, label=label)
        ax.bar_label(bars, fmt="%.3f", fontsize=7, padding=1)
    ax.set_xticks(places.tolist(), names, fontsize=8)
    ax.set(ylabel="attention", ylim=(0, 0.4))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return figure


def effects(lens: Lens) -> Figure:
    """What each head does to the answer, a dot on those that are sure."""
    found = head_effects(lens, asked(lens, 60), rows="last")
    return _figure_of(found.plot())


def patching(lens: Lens) -> Figure:
    """Where a colour travels: effects of patching by layer and span."""
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
    """The box that three localization heads give, solid, and the thing that was asked about, dashed."""
    heads = localization_heads(lens, asked(lens), 3, drop_sinks=True)
    found = [e for e in shapes.examples(40, kinds=["color"], seed=3) if len(e.scene.things) > 2][:3]
    figure = Figure(figsize=(7.2, 2.6), dpi=150, layout="constrained")
    for ax, example in zip(figure.subplots(1, 3), found, strict=True):
        prompt = lens.prompt(example.question, images=example.image)
        box = localize(lens, prompt, heads, drop_sinks=True)
        ax.imshow(example.image, extent=(0, 48, 48, 0))
        size = (box.x1 - box.x0, box.y1 - box.y0)
        for color, width in (("white", 4.0), (BLUE, 2.2)):
            ax.add_patch(
                Rectangle((box.x0, box.y0), *size, fill=False, edgecolor=color, linewidth=width, clip_on=False)
            )
        thing = next(t for t in example.scene.things if t.shape in example.question)
        x0, y0, x1, y1 = shapes.scenes.boxes(example.scene)[thing]
        ax.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=1.4, linestyle="--")
        )
        ax.set(xticks=[], yticks=[], xlim=(0, 48), ylim=(48, 0))
        ax.set_title(example.question, fontsize=9)
    return figure


def named(lens: Lens) -> Prompt:
    """The pretrained model's picture of four things, which it is to name."""
    example = emoji.examples(4, ["list"], seed=5)[3]
    return lens.prompt(example.question, images=example.image)


def viewer(lens: Lens) -> None:
    """A photograph of the viewer's page, of the pretrained model; writes its file itself."""
    from lmm_lens.viewer import view

    lens = Lens.demo("emoji")

    def shown(page: Any) -> None:
        page.select_option("#sheet-of", label="the 12 highest")

    _photographed(view(named(lens), lens), "viewer", 1390, shown)


def viewer_tower(lens: Lens) -> None:
    """Its vision tower: where heads of a layer look from the patch with the ring."""
    from lmm_lens.viewer import view

    lens = Lens.demo("emoji")

    def clicked(page: Any) -> None:
        page.select_option("#scene", label="the vision tower")
        page.wait_for_selector("html[data-ready][data-part='vision']")
        box = page.locator("#panels canvas").bounding_box()
        page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 0.75 * box["height"])
        page.mouse.move(1, 1)
        page.select_option("#metric", label="entropy")
        page.locator("#map").focus()
        for key in ("ArrowDown", "ArrowDown", "ArrowLeft", "ArrowLeft"):
            page.keyboard.press(key)
        page.evaluate("document.activeElement.blur()")

    _photographed(view(named(lens), lens, tower=True), "viewer_tower", 1235, clicked)


def viewer_runs(lens: Lens) -> None:
    """The same of two runs, with what changed on the map of heads."""
    from lmm_lens.viewer import view

    prompt, reads = one(lens), [Read("pattern", rows="last")]
    runs = {
        "intact": lens.run(prompt, read=reads),
        "without L1H4": lens.run(prompt, [AblateHeads([(1, 4)])], read=reads),
    }

    def chosen(page: Any) -> None:
        page.select_option("#side", label="change")

    _photographed(view(prompt, runs, lens=lens), "viewer_runs", 800, chosen)


def _photographed(made: Any, name: str, height: int, prepare: Callable[[Any], None] = lambda page: None) -> None:
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as player:
        page_file = made.save(Path(folder) / "view.html")
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = player.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport={"width": 1180, "height": height}, color_scheme="light")
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-ready]")
        prepare(page)
        page.wait_for_timeout(800)
        page.screenshot(path=HERE / f"{name}.png")
        browser.close()


def drawn_circuit(lens: Lens) -> None:
    """The circuit of tutorial 3 as a drawing: the word goes to the last token, then the colour."""
    _from_tutorial("03_a_circuit", 8, "drawn_circuit")


def knockout(lens: Lens) -> None:
    """What the answer loses without a route, layer by layer, of tutorial 3."""
    _from_tutorial("03_a_circuit", 7, "knockout")


def _from_tutorial(stem: str, number: int, name: str) -> None:
    """A picture that a notebook has drawn; its code stands there."""
    path = HERE.parent.parent / "tutorials" / f"{stem}.ipynb"
    pictures = list(made.page_of(path)[1].values())
    (HERE / f"{name}.png").write_bytes(pictures[number])


def _figure_of(ax: Any) -> Figure:
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


PICTURES: dict[str, Callable[[Lens], Figure | None]] = {
    each.__name__: each
    for each in (
        hero,
        reading,
        masks,
        sinks,
        var,
        effects,
        patching,
        circuit,
        place,
        drawn_circuit,
        knockout,
        viewer,
        viewer_runs,
        viewer_tower,
    )
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
