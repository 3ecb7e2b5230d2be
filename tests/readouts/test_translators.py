"""Translators against a least-squares fit written out, and where the right map is known."""

import copy

import pytest
import torch

from lmm_lens import Lens, Read, shapes
from lmm_lens.errors import HookError, ScoreError
from lmm_lens.readouts import Translators, fit_translators, logit_lens


@pytest.fixture(scope="module")
def prompts(lens):
    return [lens.prompt(e.question, images=e.image) for e in shapes.examples(12, seed=9)]


@pytest.fixture(scope="module")
def fitted(lens, prompts):
    return fit_translators(lens, prompts, layers=[1, 3], every=4)


def streams(lens, prompts, layer):
    runs = [lens.run(p, read=[Read("resid_post", [layer, 5])]).reads for p in prompts]
    return (torch.cat([run["resid_post", each][0] for run in runs]).double() for each in (layer, 5))


def test_it_is_the_least_squares_fit_of_the_prompts_that_are_not_held_out(lens, prompts, fitted):
    kept = [p for i, p in enumerate(prompts) if i % 4 != 3]
    held = [p for i, p in enumerate(prompts) if i % 4 == 3]
    for index, layer in enumerate(fitted.layers):
        x, y = streams(lens, kept, layer)
        centred, change = x - x.mean(0), (y - x) - (y - x).mean(0)
        strength = (1e-2 * centred.square().mean() * len(x)) ** 0.5
        # the ridge as further rows, so that plain least squares has it
        system = torch.cat([centred, strength * torch.eye(x.shape[1], dtype=x.dtype)])
        wanted = torch.linalg.lstsq(
            system, torch.cat([change, torch.zeros(x.shape[1], x.shape[1])]).double()
        ).solution.T
        a = wanted + torch.eye(len(wanted), dtype=x.dtype)
        b = y.mean(0) - a @ x.mean(0)
        torch.testing.assert_close(fitted.maps[index].double(), a, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(fitted.biases[index].double(), b, atol=1e-3, rtol=1e-3)
        x, y = streams(lens, held, layer)
        variance = (y - y.mean(0)).square().sum()
        for said, guess in ((fitted.fit, x @ a.T + b), (fitted.plain_fit, x)):
            assert float(said[index]) == pytest.approx(float(1 - (guess - y).square().sum() / variance), abs=1e-4)
    assert fitted.n_rows == (sum(p.n_tokens for p in kept), sum(p.n_tokens for p in held))
    assert bool((fitted.fit > fitted.plain_fit).all())


def test_a_batch_counts_by_its_rows(lens, prompts, fitted):
    examples = shapes.examples(12, seed=9)
    batches = [
        lens.prompt([e.question for e in examples[i : i + 6]], images=[e.image for e in examples[i : i + 6]])
        for i in (0, 6)
    ]
    again = fit_translators(lens, batches, layers=[1, 3], every=4)
    assert again.n_rows == fitted.n_rows
    torch.testing.assert_close(again.maps, fitted.maps, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(again.fit, fitted.fit, atol=1e-4, rtol=1e-4)


def test_where_later_layers_do_nothing_the_map_is_the_identity(lens, prompts):
    model = copy.deepcopy(lens.model)
    with torch.no_grad():
        for layer in model.get_decoder().layers[3:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    found = fit_translators(Lens(model, lens.processor), prompts, layers=[2], every=4)
    torch.testing.assert_close(found.maps[0], torch.eye(128), atol=1e-5, rtol=0)
    assert found.fit.tolist() == pytest.approx([1.0], abs=1e-6)


def test_the_lens_reads_what_the_map_gives(lens, prompts, fitted):
    prompt = prompts[0]
    readout = logit_lens(lens, prompt, rows="last", words=["red"], translators=fitted)
    assert readout.layers == (1, 3, 5)
    assert readout.translated
    for at, layer in enumerate((1, 3)):
        hidden = lens.run(prompt, read=[Read("resid_post", [layer], rows="last")]).reads["resid_post", layer][0, 0]
        with torch.no_grad():
            moved = fitted.maps[at] @ hidden + fitted.biases[at]
            logits = lens.model.lm_head(lens.model.get_decoder().norm(moved))
        assert float(readout.logits[at, 0, 0, 0]) == pytest.approx(float(logits[readout.forms[0].token]), abs=1e-4)
    plain = logit_lens(lens, prompt, rows="last", words=["red"])
    assert torch.equal(readout.logits[-1], plain.logits[-1])  # the last layer's are there already
    given = {layer: (fitted.maps[i], fitted.biases[i]) for i, layer in enumerate(fitted.layers)}
    assert torch.equal(logit_lens(lens, prompt, rows="last", words=["red"], translators=given).logits, readout.logits)


def test_maps_of_the_identity_change_nothing(lens, prompts):
    given = {layer: (torch.eye(128), torch.zeros(128)) for layer in range(6)}
    one, other = (logit_lens(lens, prompts[0], words=["red"], translators=maps) for maps in (given, None))
    torch.testing.assert_close(one.logits, other.logits)


def test_they_come_back_from_their_file(lens, fitted, tmp_path):
    fitted.save(tmp_path / "maps")
    again = Translators.load(tmp_path / "maps", lens=lens)
    assert torch.equal(again.maps, fitted.maps)
    assert repr(again) == repr(fitted)
    assert again.to_pandas().equals(fitted.to_pandas())


def test_what_they_say_of_themselves(fitted):
    assert repr(fitted).startswith(
        f"Translators of 2 layers, fitted to {fitted.n_rows[0]} tokens; variance explained on"
    )
    assert repr(Translators.of({2: (torch.eye(4), torch.zeros(4))})) == "Translators of 1 layers, as given"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"every": 1}, "every is 2 or more, given 1"),
        ({"every": 20}, "12 prompts were given, and one of 20 is held out"),
        ({"layers": [5]}, "no layers to translate were given: the last one is the target"),
        ({"layers": [7]}, "layer 7 is out of range"),
    ],
)
def test_what_cannot_be_fitted_is_an_error(lens, prompts, options, text):
    with pytest.raises((HookError, ScoreError)) as caught:
        fit_translators(lens, prompts, **options)
    assert text in str(caught.value)


def test_translators_of_another_model_are_refused(prompts, fitted):
    other = Lens.demo()
    with torch.no_grad():
        other.model.get_output_embeddings().weight.mul_(1.01)
    with pytest.raises(ScoreError, match="this set of translators was made with another model"):
        logit_lens(other, prompts[0], "last", translators=fitted)


def test_a_layer_named_twice_is_fitted_once(lens, prompts, fitted):
    assert fit_translators(lens, prompts, layers=[1, 3, 1], every=4).layers == fitted.layers
