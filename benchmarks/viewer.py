"""What a view of 1,024 visual tokens x 32 layers x 32 heads costs: `python -m benchmarks.viewer`.

A random LLaVA with 32 x 32 patches and sharp attention, its pages opened in headless Chromium from a file. "Open" is
from the start of the navigation to the first complete drawing; "hover" from a pointer event over another head or patch
to the frame that shows it, which includes waiting for that frame (up to 16.7 ms at 60 frames a second).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from lmm_lens import Lens, Prompt
from lmm_lens.viewer import View, view
from tests.support.chromium import executable
from tests.support.tokenizer import byte_tokenizer

from .timing import machine, show, write

RESULTS = Path(__file__).parent / "results" / "viewer.md"
SIDE, PATCH, LAYERS, HEADS = 32, 14, 32, 32
TOWER_LAYERS, TOWER_HEADS = 24, 16  # as CLIP ViT-L; the features leave the last but one
QUERIES = (1, 4, 16)
ROUNDS = 40
HOVER = """async ([selector, points]) => {
  const box = document.querySelector(selector).getBoundingClientRect(), times = [];
  for (const [x, y] of points) {
    const at = { clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true };
    const start = performance.now();
    document.querySelector(selector).dispatchEvent(new PointerEvent("pointermove", at));
    await new Promise(requestAnimationFrame);  // after the page's own, which draws
    times.push(performance.now() - start);
  }
  return times;
}"""


def built() -> tuple[Lens, Prompt]:
    """The model, and a question of 16 letters about a picture of 1024 x 768 pixels."""
    tokenizer = byte_tokenizer(image_token="<image>")
    edge = SIDE * PATCH
    images = hf.LlavaImageProcessorPil(
        size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge}, do_pad=False
    )
    processor = hf.LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    text = hf.LlamaConfig(
        vocab_size=300,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=2048,
    )
    vision = hf.CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=TOWER_HEADS,
        image_size=edge,
    )
    vision.patch_size = PATCH
    torch.manual_seed(0)
    config = hf.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>")
    )
    model = hf.LlavaForConditionalGeneration(config).eval()
    for layer in (*model.model.language_model.layers, *model.model.vision_tower.encoder.layers):
        layer.self_attn.q_proj.weight.data.mul_(60)  # attention as uneven as that of a trained model
    lens = Lens(model, processor)
    y, x = np.mgrid[0:768, 0:1024]
    noise = np.random.default_rng(0).normal(0, 12, (768, 1024, 3))
    photo = np.stack([90 + 60 * np.sin(x / 90), 120 + 50 * np.cos(y / 70), 80 + 0.1 * x], -1) + noise
    return lens, lens.prompt("what is in there?", images=Image.fromarray(photo.clip(0, 255).astype(np.uint8)))


def opened(page: Page, path: Path) -> float:
    """Milliseconds until a page is drawn."""
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    return float(page.evaluate("performance.getEntriesByName('ready')[0].startTime"))


def hovered(page: Page, selector: str) -> list[float]:
    """Milliseconds from a pointer event to its frame, at many places of an element."""
    places = [((0.15 + 0.7 * i / ROUNDS), 0.1 + 0.6 * ((7 * i) % ROUNDS) / ROUNDS) for i in range(ROUNDS)]
    times: list[float] = page.evaluate(HOVER, [selector, places])
    return times


def measured(browser: Any, made: View, folder: Path, tower: bool = False) -> list[str]:
    """The cells of one page; hovers over its vision tower if asked."""
    path = made.save(folder / "view.html")
    opening, heads, patches = [], [], []
    for _ in range(5):
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        opening.append(opened(page, path))
        if tower:
            page.select_option("#scene", label="the vision tower")
            page.wait_for_selector("html[data-ready][data-part='vision'][aria-busy='false']")
        heads += hovered(page, "#map")
        patches += hovered(page, "#panels canvas")
        page.close()
    middle = [statistics.median(times) for times in (opening, heads, patches)]
    worst = [statistics.quantiles(times, n=20)[-1] for times in (heads, patches)]
    return [
        f"{made.size / 1e6:.1f}",
        f"{middle[0]:.0f}",
        f"{middle[1]:.0f} ({worst[0]:.0f})",
        f"{middle[2]:.0f} ({worst[1]:.0f})",
        f"1/{round(1 / made.error)}",
    ]


def main() -> None:
    """Measure and write the table."""
    torch.set_num_threads(1)
    lens, prompt = built()
    n_visual = int(prompt.mask("visual").sum())
    lines = [["queries", "make, s", "page, MB", "open, ms", "hover a head, ms", "hover a patch, ms", "error"]]
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(
            executable_path=executable(),
            args=["--no-sandbox", "--disable-gpu"],
        )
        for n in QUERIES:
            start = time.perf_counter()
            made = view(prompt, lens, queries=list(range(prompt.n_tokens - n, prompt.n_tokens)))
            lines.append([str(n), f"{time.perf_counter() - start:.1f}", *measured(browser, made, Path(folder))])
        start = time.perf_counter()
        made = view(prompt, lens, tower=True)
        seconds = time.perf_counter() - start
        cells = measured(browser, made, Path(folder), tower=True)
        lines.append(["1, and the tower", f"{seconds:.1f}", *cells])
    notes = (
        f"{n_visual:,} visual tokens x {LAYERS} layers x {HEADS} heads; medians, in brackets the 95th percentile. "
        f"The tower has {TOWER_LAYERS - 1} used layers x {TOWER_HEADS} heads, and as many of its patches as fit are "
        "queries; its hovers are over its own page. Hover times include the wait for the next frame. Error: of a "
        "weight shown, as a share of the largest of its head.\n\n"
        f"{machine(torch.device('cpu'))}; Chromium without a GPU."
    )
    show(lines, notes)
    write(lines, "What a view costs", notes, RESULTS)


if __name__ == "__main__":
    main()
