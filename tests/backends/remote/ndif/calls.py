"""What is asked of the server: every intervention and every utility that works on servers, in a run and generating."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lmm_lens import (
    VAR,
    AblateHeads,
    AblateTokens,
    HeadSet,
    Intervention,
    Knockout,
    KnockoutSinks,
    Lens,
    PatchHeads,
    PatchPattern,
    PatchResidual,
    Prompt,
    Read,
    ScaleAttention,
    Steer,
    activation_patching,
    direction,
    find_sinks,
    head_effects,
    head_means,
    score_heads,
)

SITES = ("resid_pre", "pattern", "z", "attn_out", "mlp_out", "resid_post")
GENERATING = {"max_new_tokens": 4, "min_new_tokens": 4, "pad_token_id": 0, "logits": True}


def picture(seed: int) -> Image.Image:
    """Coarse noise, 90 x 60."""
    pixels = torch.randint(0, 256, (6, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy()).resize((90, 60), Image.Resampling.NEAREST)


@dataclass(frozen=True)
class Family:
    """One model, here and there.

    Attributes:
        name: of the family.
        here: on the native backend.
        there: on the server.
    """

    name: str
    here: Lens
    there: Lens

    def prompts(self, lens: Lens) -> tuple[Prompt, Prompt]:
        """One question about two pictures, short: the tiny Gemma 3 sees 24 tokens back through its windows."""
        one, other = (lens.prompt("what color?", images=picture(seed)) for seed in (1, 2))
        return one, other

    @cached_property
    def heads(self) -> HeadSet:
        """One head of every layer."""
        shape = self.here.shape
        heads = [(layer, 1 + layer % 2) for layer in shape.self_attention]
        return HeadSet(heads, self.here.n_layers, self.here.n_heads)

    @cached_property
    def sinks(self) -> dict[str, Any]:
        """At this threshold exactly three tokens are sinks of layer 0: in tiny models none would be."""
        first = self.here.run(self.prompts(self.here)[1], read=["resid_pre"]).reads["resid_pre", 0]
        phi = (first.abs() / first.square().mean(-1, keepdim=True).sqrt()).amax(-1)[0]
        threshold = float(phi.sort().values[-4:-2].mean())
        return {"sink_dims": tuple(range(first.shape[-1])), "sink_threshold": threshold}

    def interventions(self) -> Iterator[tuple[str, Intervention]]:
        """Each kind, in each of its modes; what they need comes from runs here."""
        clean = self.prompts(self.here)[0]
        run = self.here.run(clean, read=["z", "resid_pre", "mlp_out", "pattern"])
        seen = {"min_nonsink_ratio": 0.0, "min_visual_mass": 0.0, "first_layer": 0, "skip_last_layer": False}
        yield "VAR", VAR(**self.sinks, **seen)
        yield "VAR, its control", VAR(**self.sinks, **seen, control=1)
        yield "AblateHeads, zero", AblateHeads(self.heads, rows="after_image")
        yield "AblateHeads, mean", AblateHeads(self.heads, "mean", "question", reference=head_means(self.here, clean))
        yield "AblateHeads, resample", AblateHeads(self.heads, "resample", reference=run)
        yield "AblateHeads, uniform", AblateHeads(self.heads, "uniform")
        yield "AblateTokens", AblateTokens("image")
        yield "Knockout", Knockout("image", "after_image")
        yield "KnockoutSinks", KnockoutSinks(**self.sinks)
        yield "PatchHeads", PatchHeads(self.heads, run)
        yield "PatchPattern", PatchPattern(self.heads, run)
        yield "PatchResidual, resid_pre", PatchResidual([1], run, rows="all")
        yield "PatchResidual, mlp_out", PatchResidual([1], run, rows="last", site="mlp_out")
        yield "PatchResidual, another layer", PatchResidual([0], run, source_layer=1)
        yield "ScaleAttention", ScaleAttention(factor=2.0)
        yield "Steer", Steer(direction(self.here, *self.prompts(self.here), "last"), [1], "after_image")

    def calls(self) -> Iterator[tuple[str, Callable[[Lens], Any]]]:
        """Each as a function of a lens, that of the server or that here."""
        yield "run, every hook point read", lambda lens: lens.run(self.prompts(lens)[1], read=list(SITES))
        reads = [Read("resid_pre", rows="generating"), Read("pattern", rows="generating")]
        yield "generate, reads", lambda lens: lens.generate(self.prompts(lens)[1], read=reads, **GENERATING)
        for name, edit in self.interventions():
            yield f"run, {name}", lambda lens, edit=edit: lens.run(self.prompts(lens)[1], [edit])
            yield (
                f"generate, {name}",
                lambda lens, edit=edit: lens.generate(self.prompts(lens)[1], [edit], **GENERATING),
            )
        yield from self.of_the_tower()
        yield "trace, read and write", self.trace
        yield "trace, generating under VAR", self.trace_of_a_generation
        yield "find_sinks", lambda lens: find_sinks(lens, self.prompts(lens)[1]).phi[0]
        yield "head_means", lambda lens: torch.stack(list(head_means(lens, self.prompts(lens)[1]).values.values()))
        for metric in ("visual_mass", "concentration"):
            yield f"score_heads, {metric}", lambda lens, m=metric: score_heads(lens, self.prompts(lens)[1], m).values
        options = {"query": "answer", **self.sinks}
        yield (
            "score_heads, nonsink_mass of the answer",
            lambda lens: score_heads(lens, self.prompts(lens)[1], "nonsink_mass", **options).values,
        )
        clean, corrupt = (self.here.run(prompt, logits="last").logits[0, 0] for prompt in self.prompts(self.here))
        answers = [(int((clean - corrupt).argmax()), int((clean - corrupt).argmin()))]  # which the pictures tell apart
        for site, by in (("resid_pre", "span"), ("z", "head"), ("pattern", "head")):
            yield (
                f"activation_patching, {site}",
                lambda lens, site=site, by=by: (
                    activation_patching(lens, *self.prompts(lens), site=site, by=by, layers=[1], answers=answers).values
                ),
            )
        heads = HeadSet([(1, 1), (1, 2)], self.here.n_layers, self.here.n_heads)
        ids = [(answers[0][0], None)]
        yield (
            "head_effects",
            lambda lens: head_effects(lens, self.prompts(lens)[0], heads=heads, answers=ids).values,
        )

    def of_the_tower(self) -> Iterator[tuple[str, Callable[[Lens], Any]]]:
        """What reads and edits the vision tower."""
        tower, sites = self.here.vision, [f"vision.{site}" for site in SITES]
        heads = HeadSet([(0, 0), (0, 1)], tower.n_layers, tower.n_heads, part="vision")
        edit = AblateHeads(heads)
        yield "run, the tower read", lambda lens: lens.run(self.prompts(lens)[1], read=sites)
        yield "run, AblateHeads of the tower", lambda lens: lens.run(self.prompts(lens)[1], [edit], read=sites)
        yield (
            "generate, AblateHeads of the tower",
            lambda lens: lens.generate(self.prompts(lens)[1], [edit], **GENERATING),
        )
        yield (
            "score_heads of the tower, entropy",
            lambda lens: score_heads(lens, self.prompts(lens)[1], "entropy", part="vision").values,
        )

    def trace(self, lens: Lens) -> Any:
        """The residual stream entering a layer doubled, and the logits; a lens here does it with an intervention."""
        prompt = self.prompts(lens)[1]
        if lens is self.here:
            lens = Lens(lens.model, lens.processor, backend="nnsight")
        with lens.trace(prompt):
            lens.write(1, "resid_pre", lens.read(1, "resid_pre").flip(-1))
            z = lens.read(1, "z")
            lens.write(1, "z", z * 0.5)
            logits = lens.envoy.output.logits.save()
        return logits  # noqa: RET504  (a trace's block binds names; it cannot return)

    def trace_of_a_generation(self, lens: Lens) -> Any:
        """The stream entering a layer at each step."""
        import nnsight

        prompt, edits = self.prompts(lens)[1], [dict(self.interventions())["VAR"]]
        options = {name: value for name, value in GENERATING.items() if name != "logits"}
        if lens is self.here:
            lens = Lens(lens.model, lens.processor, backend="nnsight")
        with lens.trace(prompt, edits, **options) as tracer:
            steps = nnsight.save([])
            for _ in tracer.iter[:4]:
                steps.append(lens.read(1, "resid_post")[:, -1:])
        return torch.cat(list(steps), 1)


def numbers(answer: Any) -> list[Tensor]:
    """What two answers are compared in."""
    if isinstance(answer, Tensor):
        return [answer]
    found = [answer.logits, *(answer.reads[at] for at in sorted(answer.reads, key=str))]
    return [*found, answer.tokens.float()] if hasattr(answer, "tokens") else found


def difference(given: Any, expected: Any) -> float:
    """The largest; infinite where shapes differ, or what is missing."""
    mine, theirs = numbers(given), numbers(expected)
    if [x.shape for x in mine] != [x.shape for x in theirs]:
        return float("inf")
    if any(not torch.equal(a.isnan(), b.isnan()) for a, b in zip(mine, theirs, strict=True)):
        return float("inf")
    far = [float((a.cpu() - b.cpu()).nan_to_num().abs().max()) for a, b in zip(mine, theirs, strict=True) if a.numel()]
    edits = [[report.edits for report in getattr(x, "reports", ())] for x in (given, expected)]
    return max(far) if edits[0] == edits[1] else float("inf")
