"""The tables of the documentation, each from its source: adapters, registries of the library, benchmarks."""

from __future__ import annotations

import html
import inspect
import re
import runpy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pictures
import raised

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BENCHMARKS = ("attention_tap", "interventions", "bridge", "envoy", "spans", "readouts", "viewer")
"""The order in which they are shown; others follow by name."""


def rows(head: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def families() -> str:
    """What `lmm-lens families` prints."""
    from lmm_lens.cli.support import markdown

    return markdown()


def classes() -> str:
    """What became of every class that transformers maps as image-text-to-text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    from lmm_lens.cli.support import classes

    return rows(
        ("`model_type`", "class", "served by", "what that means"),
        ((f"`{name}`", f"`{NAMES[name]}`", how, meaning) for name, how, meaning in classes()),
    )


def masks() -> str:
    """The masks of a prompt."""
    from lmm_lens.prompts.prompt import MASKS

    return rows(("mask", "which tokens"), ((f"`{name}`", meaning) for name, meaning in MASKS.items()))


def hook_points() -> str:
    """The hook points and the form of what is read there."""
    from lmm_lens.hooks.points import HOOK_POINTS

    return rows(
        ("hook point", "shape", "what it is"),
        ((f"`{name}`", f"`[{point.shape}]`", point.meaning) for name, point in HOOK_POINTS.items()),
    )


def metrics() -> str:
    """Every score of a head, with its source."""
    from lmm_lens.scoring import HEAD_METRICS

    return rows(("metric", "meaning", "source"), ((f"`{m.name}`", m.meaning, m.source) for m in HEAD_METRICS.values()))


def ablations() -> str:
    """The modes of `AblateHeads`."""
    from lmm_lens.interventions.ablate import MODES

    return rows(("mode", "what happens"), ((f"`{mode}`", meaning) for mode, meaning in MODES.items()))


def outcomes() -> str:
    """What `head_effects` can be measured in."""
    from lmm_lens.answers.outcomes import ANSWER_METRICS

    return rows(("metric", "meaning"), ((f"`{name}`", metric.meaning) for name, metric in ANSWER_METRICS.items()))


def ways() -> str:
    """How `head_effects` computes ablated forwards."""
    from lmm_lens.replay.ways import Way

    return "\n".join(f"- {way.words}" for way in Way)


def known_sinks() -> str:
    """Published sink dimensions."""
    from lmm_lens.sinks import KNOWN

    return rows(
        ("language model", "sink dimensions", "source"),
        ((entry.model, ", ".join(map(str, entry.dims)), entry.source) for entry in KNOWN),
    )


def tasks() -> str:
    """The paper's settings of VAR."""
    from lmm_lens import VAR
    from lmm_lens.interventions.var import TASKS

    usual = VAR()
    return rows(
        ("task", "`min_nonsink_ratio` (ρ)", "`transfer_fraction` (p)", "`sink_threshold` (τ)", "`min_visual_mass`"),
        (
            (f"`{task}`", rho, usual.transfer_fraction, f"{usual.sink_threshold:g}", usual.min_visual_mass)
            for task, rho in TASKS.items()
        ),
    )


def benchmarks() -> str:
    """The committed results, each as a section."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(RESULTS.glob("*.md"))}
    order = [*(name for name in BENCHMARKS if name in texts), *(name for name in texts if name not in BENCHMARKS)]
    return "\n\n".join(re.sub(r"^#", "##", texts[name], flags=re.MULTILINE).strip() for name in order)


def errors() -> str:
    """Every error by class and room, as lists."""
    found = raised.everything()
    parts = []
    for kind in raised.kinds():
        own = [each for each in found if each.kind == kind]
        if own:
            parts.append(f"### {kind}: {len(own)} messages\n\n{_listed(own)}")
    return "\n\n".join(parts)


def _listed(found: Sequence[raised.Raised]) -> str:
    """Messages under the file that raises them."""
    by_file: dict[str, list[str]] = {}
    for each in found:
        by_file.setdefault(each.file, []).append(_message(each.text))
    items = (
        f"<dt><code>{file}</code></dt>{''.join(f'<dd>{message}</dd>' for message in messages)}"
        for file, messages in by_file.items()
    )
    return f'<dl class="messages">{"".join(items)}</dl>'


def _message(text: str) -> str:
    """A template as HTML, what varies in italics, the advice in lines of its own."""
    marked = re.sub(
        "‹([^›]*)›", r"<i>\1</i>", html.escape(text, quote=False).replace("*", "&#42;").replace("_", "&#95;")
    )
    first, *advice = marked.split("\n")
    return first + "".join(f"<span>{line.strip()}</span>" for line in advice)


def containers() -> str:
    """What people hold models in, as `make containers` tries it."""
    found = runpy.run_path(str(ROOT / "tests" / "containers" / "held.py"))
    backends: Sequence[str] = found["BACKENDS"]

    def cells(held: Any) -> Iterable[str]:
        yield f"{held.name}<br>`{held.code}`"
        yield from ("no" if backend in held.refused else "yes" for backend in backends)
        yield held.advice

    return rows(("held in", *backends, "where not"), map(cells, found["HELD"]))


def gallery() -> str:
    """Every picture of the documentation with the code that draws it."""
    parts = []
    for name, draw in pictures.PICTURES.items():
        said, code = inspect.getdoc(draw) or "", inspect.getsource(draw).rstrip()
        folded = "\n".join(f"    {line}" if line else "" for line in f"```python\n{code}\n```".splitlines())
        parts.append(
            f"## {name.replace('_', ' ').capitalize()}\n\n{said}\n\n![{said}](pictures/{name}.png)\n\n"
            f'??? "The code"\n\n{folded}'
        )
    return "\n\n".join(parts)


TABLES: dict[str, Callable[[], str]] = {
    "families": families,
    "classes": classes,
    "masks": masks,
    "hook points": hook_points,
    "metrics": metrics,
    "ablations": ablations,
    "outcomes": outcomes,
    "ways": ways,
    "known sinks": known_sinks,
    "tasks": tasks,
    "benchmarks": benchmarks,
    "errors": errors,
    "containers": containers,
    "gallery": gallery,
}
