"""What the native backend reads, against a reference that forms every tensor in full."""

import pytest
import torch

from lmm_lens import Lens, Read
from lmm_lens.core import tiles
from tests.support.cases import HEAD_SITES, SITES, Case, case, close, plain
from tests.support.models import FAMILIES, IMAGE


def every_site(case: Case, rows: str = "all") -> list[Read]:
    return [Read(site, layers=case.layers_of(site), rows=rows) for site in SITES]


def test_without_reads_and_interventions_the_model_answers_as_before(family):
    assert torch.equal(family.lens.run(family.prompt).logits, family.logits)


def test_reading_everything_does_not_change_the_answer(family):
    assert torch.equal(family.lens.run(family.prompt, read=every_site(family)).logits, family.logits)


@pytest.mark.parametrize("site", SITES)
def test_every_site_equals_the_reference(family, site):
    family.reference.run(family.inputs)
    run = family.lens.run(family.prompt, read=every_site(family))
    for layer in family.layers_of(site):
        close(run.reads[site, layer], family.reference.read(site, layer))


@pytest.mark.parametrize("rows", ["last", "after_image"])
def test_reads_of_some_rows_are_those_rows_of_the_reference(family, rows):
    family.reference.run(family.inputs)
    chosen = family.scopes[rows]
    run = family.lens.run(family.prompt, read=every_site(family, rows))
    for site, layer in run.reads:
        dim = 2 if site == "pattern" else 1
        expected = family.reference.read(site, layer).index_select(dim, torch.tensor(chosen))
        close(run.reads[site, layer], expected)
    assert all(run.positions[site].tolist() == [chosen] for site in SITES)


def test_by_default_all_layers_that_have_the_site_are_read(family):
    run = family.lens.run(family.prompt, read=SITES)
    for site in SITES:
        layers = {layer for name, layer in run.reads if name == site}
        assert set(family.layers_of(site)) <= layers
        if site in ("pattern", "z"):
            assert layers == set(family.attending)


def test_every_row_of_a_pattern_sums_to_one(family):
    run = family.lens.run(family.prompt, read=[Read("pattern", family.attending)])
    for pattern in run.reads.values():
        close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))


def test_visual_mass_read_at_the_last_row_equals_the_references(family):
    family.reference.run(family.inputs)
    visual = family.inputs["input_ids"] == IMAGE

    def visual_mass(pattern, context):
        return (pattern * context.columns(visual, pattern.shape[-1])[:, None, None]).sum(-1)

    read = Read("pattern", family.self_attending, rows="last", reduce=visual_mass, name="mass")
    run = family.lens.run(family.prompt, read=[read])
    for layer in family.self_attending:
        expected = family.reference.read("pattern", layer)[0, :, -1, visual[0]].sum(-1)
        close(run.reads["mass", layer][0, :, 0], expected)


@pytest.mark.parametrize("site", ["pattern", "z"])
@pytest.mark.parametrize("heads", [(2,), (3, 0), (1, 2, 3)])
def test_heads_come_in_the_order_asked_for(family, site, heads):
    family.reference.run(family.inputs)
    run = family.lens.run(family.prompt, read=[Read(site, family.attending, heads)])
    dim = 1 if site == "pattern" else 2
    for layer in family.attending:
        expected = family.reference.read(site, layer).index_select(dim, torch.tensor(heads))
        close(run.reads[site, layer], expected)


def test_a_left_padded_batch_reads_as_its_prompts_alone(family):
    prompts, batch = family.pair("left")
    joint = family.lens.run(family.lens.prompt(inputs=batch), read=every_site(family, "after_image"))
    for row, inputs in enumerate(prompts):
        alone = family.lens.run(family.lens.prompt(inputs=inputs), read=every_site(family, "after_image"))
        n_tokens = inputs["input_ids"].shape[1]
        close(joint.logits[row, -n_tokens:], alone.logits[0])
        for (site, layer), value in alone.reads.items():
            mine = joint.reads[site, layer][row]
            if site == "pattern":
                mine = mine[:, : value.shape[2], -value.shape[3] :]  # paligemma's rows are ragged here
            close(mine[: value.shape[1]], value[0])


def test_a_ragged_batch_is_filled_with_nan_and_positions_of_minus_one(family):
    prompts, batch = family.pair("right")
    prompt = family.lens.prompt(inputs=batch)
    run = family.lens.run(prompt, read=every_site(family, "all"))
    short = prompts[1]["input_ids"].shape[1]
    width = batch["input_ids"].shape[1]
    for site in SITES:
        assert run.positions[site].tolist() == [list(range(width)), [*range(short), *[-1] * (width - short)]]
    for (site, layer), value in run.reads.items():
        rows = value[1].movedim(1, 0) if site == "pattern" else value[1]
        assert rows[short:].isnan().all(), (site, layer)
        assert rows[:short].isfinite().all(), (site, layer)


def test_a_right_padded_batch_reads_as_its_prompts_alone(family):
    prompts, batch = family.pair("right")
    joint = family.lens.run(family.lens.prompt(inputs=batch), read=every_site(family, "last"))
    for row, inputs in enumerate(prompts):
        alone = family.lens.run(family.lens.prompt(inputs=inputs), read=every_site(family, "last"))
        n_tokens = inputs["input_ids"].shape[1]
        close(joint.logits[row, :n_tokens], alone.logits[0])
        for (site, layer), value in alone.reads.items():
            mine = joint.reads[site, layer][row]
            close(mine[..., : value.shape[-1]], value[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_of_the_last_row_are_those_of_each_rows_last_token(family, side):
    batch = family.pair(side)[1]
    prompt = family.lens.prompt(inputs=batch)
    full, last = family.lens.run(prompt).logits, family.lens.run(prompt, logits="last").logits
    ends = [int(mask.nonzero().max()) for mask in batch["attention_mask"]]
    close(last[:, 0], torch.stack([full[row, end] for row, end in enumerate(ends)]))


def test_small_chunks_give_the_same_reads(family, monkeypatch):
    read = [Read("pattern", family.attending), Read("pattern", family.attending, (3, 1), "last", name="some")]
    whole = family.lens.run(family.prompt, read=read).reads
    monkeypatch.setattr(tiles, "CHUNK_ELEMENTS", 1)
    small = family.lens.run(family.prompt, read=read).reads
    assert whole.keys() == small.keys()
    for key, value in whole.items():
        close(small[key], value, 1e-6)


@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma2", "qwen2_5_vl", "mllama"])
def test_a_double_model_is_read_in_double(name):
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in case(name).inputs.items()}
    double = Case(name, type(case(name).model)(case(name).model.config).double().eval(), inputs)
    double.model.load_state_dict(case(name).model.state_dict())
    double.reference.run(inputs)
    run = double.lens.run(double.prompt, read=[Read(site, double.layers_of(site)) for site in HEAD_SITES])
    for (site, layer), value in run.reads.items():
        assert value.dtype == torch.float64
        close(value, double.reference.read(site, layer), 1e-6 if name == "paligemma2" else 1e-10)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_vl", "idefics2"])
def test_a_model_loaded_with_eager_attention_stays_identical_while_read(name):

    model, inputs = FAMILIES[name]()
    model.set_attn_implementation("eager")
    eager = Lens(model)
    run = eager.run(eager.prompt(inputs=inputs), read=["pattern"])
    assert torch.equal(run.logits, plain(model, inputs))
