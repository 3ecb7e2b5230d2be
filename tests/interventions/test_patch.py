"""Patching one run's activations into another, against a reference that is edited in the same places."""

import pytest
import torch

from lmm_lens import AblateHeads, PatchHeads, PatchPattern, PatchResidual, Read
from tests.support.cases import case, close, edits_of, plain
from tests.support.models import joined
from tests.support.pairs import EVERYTHING, RESIDUAL, Pair
from tests.support.reference import Reference, first_of

NAMES = ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma2", "qwen3_5", "idefics3", "internvl"]


@pytest.fixture(params=NAMES)
def pair(request):
    """A family, its prompt, the same question with another picture, and what that one computed."""
    return Pair(request.param)


@pytest.fixture(scope="module")
def llava():
    return Pair("llava")


def test_heads_are_patched_in_their_rows(pair):
    heads, rows = pair.case.heads, pair.case.scopes["after_image"]

    def edit(layer, z, first):
        for own, head in heads:
            if own == layer:
                z[:, rows, head] = pair.values["z"][layer][:, rows, head]
        return z

    with pair.reference.editing(z=edit):
        expected = pair.reference.run(pair.case.inputs)
    run = pair.lens.run(pair.prompt, [PatchHeads(heads, pair.clean, "after_image")])
    close(run.logits, expected)
    assert edits_of(run) == [len(heads) * len(rows)]
    assert (run.logits - pair.case.logits).abs().max() > 1e-4


def test_patterns_are_patched_and_values_are_not(pair):
    heads = pair.case.heads

    def edit(layer, pattern, first):
        for own, head in heads:
            if own == layer:
                pattern[:, head] = pair.values["pattern"][layer][:, head]
        return pattern

    with pair.reference.editing(pattern=edit):
        expected = pair.reference.run(pair.case.inputs)
    run = pair.lens.run(pair.prompt, [PatchPattern(heads, pair.clean)])
    close(run.logits, expected)
    assert (run.logits - pair.case.logits).abs().max() > 1e-4


@pytest.mark.parametrize("site", RESIDUAL)
def test_residual_streams_are_patched_in_their_rows(pair, site):
    layers, rows = pair.case.layers_of(site)[-2:], sorted(set(range(pair.prompt.n_tokens)))[1:8]
    expected = hooked(pair, site, layers, rows)
    run = pair.lens.run(pair.prompt, [PatchResidual(layers, pair.clean, rows, site)])
    close(run.logits, expected)
    assert run.reports[0].edits == {layer: len(rows) for layer in layers}
    assert (run.logits - pair.case.logits).abs().max() > 1e-5


def hooked(pair, site, layers, rows):
    """Logits of a copy whose modules have plain hooks that put the rows in."""
    reference = Reference(pair.case.model)
    for layer in layers:
        module, value = reference.layers[layer], pair.values[site][layer]

        def put(x, value=value):
            x = x.clone()
            x[:, rows] = value[:, rows]
            return x

        def before(m, args, kwargs, put=put):
            return (
                ((put(args[0]), *args[1:]), kwargs) if args else (args, {"hidden_states": put(kwargs["hidden_states"])})
            )

        def after(m, args, out, put=put):
            return (put(first_of(out)), *out[1:]) if isinstance(out, tuple) else put(out)

        if site == "resid_pre":
            module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            own = {"attn_out": getattr(module, "self_attn", None), "mlp_out": module.mlp, "resid_post": module}[site]
            own.register_forward_hook(after)
    return reference.run(pair.case.inputs)


# ---------------------------------------------------------------------- known answers


def test_patching_a_prompt_with_itself_changes_nothing(pair):
    sites = [Read(site, pair.case.layers_of(site)) for site in EVERYTHING]
    own = pair.lens.run(pair.prompt, read=sites)
    heads = pair.case.heads
    for edit in (
        PatchHeads(heads, own, "all"),
        PatchPattern(heads, own),
        *[PatchResidual(pair.case.layers_of(site), own, "all", site) for site in RESIDUAL],
    ):
        run = pair.lens.run(pair.prompt, [edit])
        close(run.logits, pair.case.logits, 2e-6)
        assert edits_of(run)[0] > 0


def test_everything_at_the_last_layers_end_gives_the_clean_logits(pair):
    last = pair.case.n_layers - 1
    run = pair.lens.run(pair.prompt, [PatchResidual([last], pair.clean, "all", "resid_post")])
    close(run.logits, pair.clean_logits)


def test_everything_at_the_first_layers_start_gives_the_clean_logits(pair):
    run = pair.lens.run(pair.prompt, [PatchResidual([0], pair.clean, "all")])
    if pair.case.name == "qwen3_vl":  # deepstack adds features of the picture at hand to the layers after
        assert (run.logits - pair.clean_logits).abs().max() > 1e-3
    else:
        close(run.logits, pair.clean_logits)


def test_the_picture_is_all_that_differs_so_patching_it_gives_the_clean_logits(llava):
    run = llava.lens.run(llava.prompt, [PatchResidual([0], llava.clean, "image")])
    close(run.logits, llava.clean_logits)


def test_the_last_row_alone_gives_the_clean_answer_and_leaves_the_rest(llava):
    run = llava.lens.run(llava.prompt, [PatchResidual([2], llava.clean, "last", "resid_post")])
    close(run.logits[:, -1], llava.clean_logits[:, -1])
    close(run.logits[:, :-1], llava.case.logits[:, :-1])


def test_all_heads_and_feed_forwards_of_all_layers_give_the_clean_logits_after_the_image(llava):
    """The residual stream is the sum of the embeddings, which are the same there, and of what the layers add."""
    layers = range(3)
    heads = [(layer, head) for layer in layers for head in range(4)]
    edits = [PatchHeads(heads, llava.clean, "question"), PatchResidual(layers, llava.clean, "question", "mlp_out")]
    run = llava.lens.run(llava.prompt, edits)
    rows = llava.case.scopes["after_image"]
    close(run.logits[:, rows], llava.clean_logits[:, rows])


def test_the_prompt_is_patched_and_what_is_generated_follows(llava):
    edit = PatchResidual([0], llava.clean, "all")
    given = llava.lens.generate(llava.prompt, [edit], max_new_tokens=4, logits=True)
    clean = llava.lens.generate(llava.clean.prompt, max_new_tokens=4, logits=True)
    assert torch.equal(given.tokens, clean.tokens)
    close(given.logits, clean.logits)
    assert edits_of(given) == [llava.prompt.n_tokens]


def test_generated_rows_are_not_patched(llava):
    """The clean run holds prompt rows alone, whatever the scope says of generated ones."""
    heads = llava.case.heads
    n_rows = len(llava.case.scopes["after_image"]) * len(heads)
    for edit in (
        PatchHeads(heads, llava.clean, "after_image"),
        PatchPattern(heads, llava.clean, "after_image"),
        AblateHeads(heads, "resample", "after_image", llava.clean),
    ):
        given = llava.lens.generate(llava.prompt, [edit], max_new_tokens=4, logits=True)
        assert edits_of(given) == [n_rows]
        close(given.logits[:, 0], llava.lens.run(llava.prompt, [edit]).logits[:, -1])


def test_generation_after_patched_patterns_reads_its_own(llava):
    given = llava.lens.generate(
        llava.prompt, [PatchPattern(llava.case.heads, llava.clean)], max_new_tokens=4, logits=True
    )
    prefill = llava.lens.run(llava.prompt, [PatchPattern(llava.case.heads, llava.clean)])
    close(given.logits[:, 0], prefill.logits[:, -1])


def test_rows_of_a_padded_batch_are_patched_each_from_its_own():
    family = case("llava")
    prompts, batch = family.pair()
    swapped = joined([{**inputs, "pixel_values": family.inputs["pixel_values"].flip(-1)} for inputs in prompts])
    lens = family.lens
    clean = lens.run(lens.prompt(inputs=swapped), read=["z", "resid_pre", "pattern"])
    for edit in (PatchHeads(family.heads, clean), PatchPattern(family.heads, clean), PatchResidual([1], clean, "all")):
        joint = lens.run(lens.prompt(inputs=batch), [edit])
        for row, inputs in enumerate(prompts):
            single = {**inputs, "pixel_values": family.inputs["pixel_values"].flip(-1)}
            own = lens.run(lens.prompt(inputs=single), read=["z", "resid_pre", "pattern"])
            arguments = (
                {"layers": [1], "site": "resid_pre"} if isinstance(edit, PatchResidual) else {"heads": family.heads}
            )
            alone = lens.run(lens.prompt(inputs=inputs), [type(edit)(clean=own, rows=edit.rows, **arguments)])
            close(joint.logits[row, -alone.logits.shape[1] :], alone.logits[0])


def test_the_clean_run_is_not_changed(llava):
    before = {key: value.clone() for key, value in llava.clean.reads.items()}
    heads = llava.case.heads
    llava.lens.run(llava.prompt, [PatchHeads(heads, llava.clean), PatchPattern(heads, llava.clean)])
    assert all(torch.equal(value, before[key]) for key, value in llava.clean.reads.items())
    assert torch.equal(plain(llava.case.model, llava.case.inputs), llava.case.logits)
