"""Every verb of circuit analysis in one table: on a batch padded on the left, on each backend, and on a server.

What each number means is tested in its own room; here, that it is the same everywhere, or refused in words.
"""

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from torch import Tensor

from lmm_lens import (
    AblateHeads,
    BoostAttention,
    Edit,
    EditPattern,
    HeadSet,
    Lens,
    PatchResidual,
    Prompt,
    Read,
    ScaleAttention,
    Steer,
    attention_map,
    compare,
    data,
    direct_attribution,
    direction,
    embedding_bank,
    find_circuit,
    fit_translators,
    head_effects,
    information_flow,
    latent_lens,
    logit_lens,
    score_heads,
    shapes,
    smallest_heads,
)
from lmm_lens.errors import LensError

HEADS = HeadSet([(1, 4), (2, 5), (0, 6)], 6, 8)
ANSWERS = [("red", "blue"), ("two", "one")]
EXAMPLES = (shapes.examples(1, kinds=["color"], seed=3)[0], shapes.examples(1, kinds=["count"], seed=4)[0])
Numbers = Callable[[Lens, Sequence[Prompt]], Tensor]


def batched(lens: Lens) -> list[Prompt]:
    """Both questions as a batch; they differ in length."""
    prompt = lens.prompt([each.question for each in EXAMPLES], images=[each.image for each in EXAMPLES])
    assert prompt.mask("pad").sum(1).tolist().count(0) == 1, "one row is padded"
    return [prompt]


def alone(lens: Lens) -> list[Prompt]:
    return [lens.prompt(each.question, images=each.image) for each in EXAMPLES]


def lost(logits: Tensor, goal: object) -> Tensor:
    """An own metric: the size of the logits."""
    return logits.double().norm(dim=-1)


def spread_of_image(pattern: Tensor, keys: object) -> Tensor:
    """An own score: the largest weight on the picture."""
    return (pattern * keys["image"][:, None, None]).amax(-1)


def more_on_image(pattern: Tensor, keys: object) -> Tensor:
    return torch.where(keys["image"], 1.3 * pattern, pattern)


@cache
def bank_and_way():
    """What some verbs are given: found once, on the native backend."""
    lens = Lens.demo()
    others = [lens.prompt(e.question, images=e.image) for e in shapes.examples(5, kinds=["color"], seed=9)]
    bank = embedding_bank(lens, ["a red circle", "two squares"], layers=[1, 3])
    way = direction(lens, others[:1], others[1:], rows="image")
    translators = fit_translators(lens, others, rows="image", layers=[2])
    return bank, way, translators


def by_rows(found: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """[layer, image rows of all batch rows, ...] as [batch row, layer, image row, ...]."""
    return found.unflatten(1, (sum(p.n_rows for p in prompts), -1)).movedim(1, 0)


def each_batch_row(prompts: Sequence[Prompt]) -> list[tuple[Prompt, int]]:
    return [(prompt, row) for prompt in prompts for row in range(prompt.n_rows)]


def maps(lens, prompts, **options):
    found = []
    for prompt, row in each_batch_row(prompts):
        weights = attention_map(lens, prompt, heads=HEADS, reduce=None, row=row, **options).weights
        found.append(weights[..., prompt.mask("image")[row].nonzero().flatten()])
    return torch.stack(found)


def words_after(lens, prompts, **options):
    found = [logit_lens(lens, p, layers=[2, 5], words=["red", "two"], **options) for p in prompts]
    return torch.cat([by_rows(each.logits, [p]) for each, p in zip(found, prompts, strict=True)])


def neighbours(lens, prompts):
    bank = bank_and_way()[0]
    found = [latent_lens(lens, prompt, bank, layers=[2]) for prompt in prompts]
    return torch.cat([by_rows(each.cosines, [p]) for each, p in zip(found, prompts, strict=True)])


def attributed(lens, prompts, by):
    rights, wrongs = ([pair[i] for pair in ANSWERS] for i in (0, 1))
    found, done = [], 0
    for prompt in prompts:
        own = slice(done, done + prompt.n_rows)
        found.append(direct_attribution(lens, prompt, rights[own], wrongs[own], by=by).values)
        done = own.stop
    return torch.cat(found)


def edited(*edits) -> Numbers:
    def logits(lens, prompts):
        runs = [lens.run(prompt, [edit() for edit in edits], logits="last") for prompt in prompts]
        assert all(min(report.n_edits for report in run.reports) > 0 for run in runs)
        return torch.cat([run.logits[:, 0] for run in runs])

    return logits


def back_patched(lens, prompts):
    found = []
    for prompt in prompts:
        clean = lens.run(prompt, read=[Read("resid_pre", [3], rows="image")])
        found.append(lens.run(prompt, [PatchResidual([1], clean, "image", source_layer=3)], logits="last").logits[:, 0])
    return torch.cat(found)


def effects(lens, prompts, **options):
    return head_effects(lens, prompts, heads=HEADS, answers=ANSWERS, **options).per_prompt


VERBS: dict[str, Numbers] = {
    "attention_map": lambda lens, prompts: maps(lens, prompts),
    "attention_map, sinks dropped": lambda lens, prompts: maps(lens, prompts, rows="question", drop_sinks=True)[:, :1],
    "logit_lens": words_after,
    "logit_lens, translated": lambda lens, prompts: words_after(lens, prompts, translators=bank_and_way()[2]),
    "latent_lens": neighbours,
    "direct_attribution by layer": lambda lens, prompts: attributed(lens, prompts, "layer"),
    "direct_attribution by head": lambda lens, prompts: attributed(lens, prompts, "head"),
    "direct_attribution by span": lambda lens, prompts: attributed(lens, prompts, "span"),
    "Steer": edited(lambda: Steer(bank_and_way()[1], [1, 2], "image", 2.0)),
    "ScaleAttention": edited(lambda: ScaleAttention("image", factor=1.5)),
    "EditPattern": edited(lambda: EditPattern(more_on_image)),
    "Edit": edited(lambda: Edit("mlp_out", lambda x, context: 0.5 * x, "question")),
    "PatchResidual(source_layer=)": back_patched,
    "information_flow": lambda lens, prompts: (
        information_flow(
            lens, prompts, [("image", "last"), ("question", "last")], 2, layers=[1, 3], n_random=0
        ).per_prompt
    ),
    "score_heads(metric=own)": lambda lens, prompts: score_heads(lens, prompts, spread_of_image).per_prompt,
    "head_effects(metric=own)": lambda lens, prompts: effects(lens, prompts, metric=lost),
    "head_effects(screen=)": lambda lens, prompts: effects(
        lens, prompts, rows="all", metric="logit_difference", screen="attribution", verify=2, sample=0
    ),
    "smallest_heads": lambda lens, prompts: (
        smallest_heads(lens, prompts, keep=0.5, rows="all", answers=ANSWERS, heads=HEADS, n_random=0).per_prompt.T
    ),
}
"""Each gives [batch row, ...]."""

SERVER_SAYS = {
    "direct_attribution by head": "by='layer' works on a server",
    "direct_attribution by span": "by='layer' works on a server",
    "head_effects(screen=)": "gradients do not travel: screen= needs a lens with remote=False",
}


@cache
def on(backend: str) -> Lens:
    return Lens.demo(backend="nnsight", remote="local") if backend == "remote" else Lens.demo(backend=backend)


@cache
def expected(verb: str) -> Tensor:
    return VERBS[verb](on("native"), batched(on("native")))


@pytest.mark.parametrize("verb", VERBS)
def test_a_padded_batch_gives_what_its_rows_give_alone(verb):
    lens = on("native")
    torch.testing.assert_close(expected(verb), VERBS[verb](lens, alone(lens)), atol=2e-4, rtol=1e-3, equal_nan=True)
    assert len(expected(verb)) == 2
    assert expected(verb).nan_to_num().abs().max() > 1e-3


@pytest.mark.long
@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight", "remote"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_backend_gives_the_same_or_says_why_not(verb, backend):
    lens = on(backend)
    if backend == "remote" and verb in SERVER_SAYS:
        with pytest.raises(LensError, match=SERVER_SAYS[verb]):
            VERBS[verb](lens, batched(lens))
        return
    found = VERBS[verb](lens, batched(lens))
    torch.testing.assert_close(found, expected(verb), atol=1e-3, rtol=1e-3, equal_nan=True)


@pytest.mark.long
@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight", "remote"])
def test_comparisons_are_the_same_everywhere(backend):
    samples = list(data.shapes(2, kinds=["color"], seed=3))
    conditions = {"plain": [], "cut": AblateHeads(HEADS), "more": [ScaleAttention("image", factor=2.0, heads=HEADS)]}
    mine, theirs = (compare(lens, samples, conditions, "log_prob", controls=1) for lens in (on("native"), on(backend)))
    torch.testing.assert_close(theirs.values, mine.values, atol=1e-3, rtol=1e-3)
    assert [theirs.said(name) for name in conditions] == [mine.said(name) for name in conditions]


@pytest.mark.long
@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight", "remote"])
def test_what_is_fitted_is_the_same_everywhere(backend):
    examples = shapes.examples(5, kinds=["color"], seed=9)
    mine, theirs = (
        fit_translators(lens, [lens.prompt(e.question, images=e.image) for e in examples], rows="image", layers=[2])
        for lens in (on("native"), on(backend))
    )
    torch.testing.assert_close(theirs.fit, mine.fit, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(theirs.plain_fit, mine.plain_fit, atol=1e-3, rtol=1e-3)
    assert float(mine.fit[0]) > float(mine.plain_fit[0])


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight", "remote"])
def test_circuits_need_the_native_backend_and_say_so(backend):
    lens = on(backend)
    prompts = alone(lens)[:1]
    with pytest.raises(LensError, match="open the same model with backend='native'"):
        find_circuit(lens, prompts[0], prompts[0])
    if backend == "remote":
        with pytest.raises(LensError, match="BoostAttention"):
            lens.run(prompts[0], [BoostAttention(alpha=1.0)])
