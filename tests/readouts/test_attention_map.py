"""Attention maps: the weights against eager attention with everything kept, and where they are drawn."""

import numpy as np
import pytest
import torch

from lmm_lens import HeadSet, Knockout, Lens, score_heads, shapes
from lmm_lens.errors import HookError, PromptError, ScoreError
from lmm_lens.figures.canvas import canvases_of
from lmm_lens.readouts import AttentionMap, attention_map
from tests.support.cases import case
from tests.support.eager import Eager
from tests.support.evidence import picture
from tests.support.families import lens_of, prompt_of
from tests.support.quick import quick

FAMILIES = ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3", "internvl", "idefics3", "paligemma", "pixtral"]


@pytest.fixture(scope="module")
def example():
    return shapes.examples(1, kinds=("color",), seed=2)[0]


@pytest.fixture(scope="module")
def prompt(lens, example):
    return lens.prompt("what color is the circle?", images=example.image)


@pytest.fixture(scope="module")
def eager(lens, prompt):
    return Eager(lens.model).prefill(prompt.inputs)


def rows_of(eager, heads, positions, row=0):
    """Mean over queries, [head, key], one weight at a time."""
    return torch.tensor(
        [[eager.row(layer, row, head, position) for position in positions] for layer, head in heads]
    ).mean(1)


# ---------------------------------------------------------------------- the weights


@pytest.mark.parametrize("name", quick(FAMILIES, ("llava_next", "gemma3", "qwen3_vl", "internvl")))
def test_weights_are_those_of_eager_attention_on_every_kind_of_family(name):
    lens, prompt = lens_of(name), prompt_of(name)
    heads = HeadSet([(1, 2), (0, 1)], lens.n_layers, lens.n_heads)
    kept = Eager(lens.model).prefill(prompt.inputs)
    last = prompt.n_tokens - 1
    for rows, positions in (("last", [last]), ([last - 3, last - 1], [last - 3, last - 1])):
        expected = rows_of(kept, heads, positions)
        for reduce, want in (("mean", expected.mean(0)[None]), ("max", expected.amax(0)[None]), (None, expected)):
            found = attention_map(lens, prompt, rows=rows, heads=heads, reduce=reduce)
            torch.testing.assert_close(found.weights[0], want, atol=2e-5, rtol=1e-4)
    visual = prompt.mask("visual")[0]
    assert float(found.on_pictures[0, 0]) == pytest.approx(float(expected[0][visual].sum()), abs=1e-4)


def test_words_are_the_mean_over_their_tokens(lens, prompt, eager):
    found = attention_map(lens, prompt, words=["circle", "the circle"], heads=[(1, 4)])
    assert found.queries == ("circle", "the circle")
    for index, word in enumerate(found.queries):
        torch.testing.assert_close(
            found.weights[index], rows_of(eager, [(1, 4)], prompt.words(word)), atol=1e-5, rtol=1e-4
        )


def test_a_layer_is_all_of_its_heads_and_none_is_all_of_the_model(lens, prompt, eager):
    of_layer = rows_of(eager, [(3, head) for head in range(8)], [prompt.n_tokens - 1])
    torch.testing.assert_close(
        attention_map(lens, prompt, heads=3).weights[0, 0], of_layer.mean(0), atol=1e-5, rtol=1e-4
    )
    every = HeadSet.all(lens.n_layers, lens.n_heads)
    of_all = rows_of(eager, every, [prompt.n_tokens - 1])
    torch.testing.assert_close(attention_map(lens, prompt).weights[0, 0], of_all.mean(0), atol=1e-5, rtol=1e-4)


def test_generated_tokens_look_as_the_rows_that_say_them(lens, prompt):
    found = attention_map(lens, prompt, generated=2, heads=[(1, 4), (3, 1)], reduce=None)
    out = lens.generate(prompt, max_new_tokens=2)
    said = [lens.processor.tokenizer.decode([token]) for token in out.tokens[0].tolist()]
    assert list(found.queries) == said
    before, first = Eager(lens.model).decode(prompt.inputs)
    for query, kept in enumerate((before, first)):
        expected = [kept.row(layer, 0, head, -1)[: prompt.n_tokens] for layer, head in found.heads]
        torch.testing.assert_close(found.weights[query], torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_generated_tokens_of_a_sliding_window_lie_at_their_own_positions():
    family = case("gemma3")
    found = attention_map(family.lens, family.prompt, generated=2, heads=[(0, 1), (2, 0)], reduce=None)
    for query, kept in enumerate(Eager(family.model).decode(family.inputs)):
        expected = [kept.row(layer, 0, head, -1)[: family.prompt.n_tokens] for layer, head in found.heads]
        torch.testing.assert_close(found.weights[query], torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_a_row_that_ends_early_has_no_maps_of_its_padding(lens, example):
    batch = lens.prompt(["what color is the circle?", "list the shapes"], images=[example.image] * 2)
    out = lens.generate(batch, max_new_tokens=6)
    lengths = [int((row != lens.processor.tokenizer.pad_token_id).sum()) for row in out.tokens]
    assert lengths[0] != lengths[1]
    for row in (0, 1):
        found = attention_map(lens, batch, generated=6, heads=1, row=row)
        assert len(found.queries) == lengths[row]


def test_each_row_of_a_padded_batch_is_as_alone(lens, example):
    texts = ["what color is the circle?", "is the circle left of the red circle?"]
    batch = lens.prompt(texts, images=[example.image] * 2)
    for row, text in enumerate(texts):
        alone = lens.prompt(text, images=example.image)
        together = attention_map(lens, batch, words="circle", heads=2, row=row)
        pad = batch.n_tokens - alone.n_tokens
        expected = attention_map(lens, alone, words="circle", heads=2)
        torch.testing.assert_close(together.weights[..., pad:], expected.weights, atol=1e-5, rtol=1e-4)
        assert float(together.weights[..., :pad].abs().sum()) == 0


def test_an_edit_shows_in_the_map(lens, prompt):
    assert float(attention_map(lens, prompt, heads=2).on_pictures) > 0.1
    after = attention_map(lens, prompt, heads=2, interventions=[Knockout("image", "last")])
    assert float(after.on_pictures) == 0
    assert float(after.weights.sum()) == pytest.approx(1, abs=1e-5)


# ---------------------------------------------------------------------- sinks


def test_sinks_that_are_left_out_have_no_weight_and_what_they_held_is_told(lens, prompt):
    heads = HeadSet([(2, head) for head in range(8)], lens.n_layers, lens.n_heads)
    whole, found = (attention_map(lens, prompt, heads=heads, drop_sinks=drop) for drop in (False, True))
    from lmm_lens import find_sinks

    sinks = find_sinks(lens, prompt)
    rule = list(sinks.positions(layer=2))
    assert rule
    assert float(found.weights[..., rule].abs().max()) == 0
    held = whole.weights[..., rule].sum(-1)
    torch.testing.assert_close(found.on_sinks, held, atol=1e-5, rtol=1e-4)
    others = [p for p in range(prompt.n_tokens) if p not in rule]
    torch.testing.assert_close(found.weights[..., others], whole.weights[..., others])
    assert whole.on_sinks is None


def test_sinks_of_a_model_that_nobody_knows_are_refused():
    with pytest.raises(ScoreError, match="are not known"):
        attention_map(lens_of("llava"), prompt_of("llava"), drop_sinks=True)


# ---------------------------------------------------------------------- where


@pytest.mark.parametrize(
    ("name", "names"),
    [("llava", ["image 0"]), ("internvl", ["image 0, overview", "image 0, detail"]), ("pixtral", ["image 0"])],
)
def test_every_patch_is_drawn_where_it_lies_with_its_weight(name, names):
    lens, prompt = lens_of(name), prompt_of(name)
    found = attention_map(lens, prompt, heads=1)
    assert [canvas.name for canvas in found.canvases] == names
    axes = found.plot().axes[: len(names)]
    for canvas, ax in zip(found.canvases, axes, strict=True):
        pictures = ax.images[1:]
        for span, image in zip(canvas.spans, pictures, strict=True):
            np.testing.assert_allclose(
                np.asarray(image.get_array()), found.weights[0, 0, list(span.positions)].reshape(span.grid), rtol=1e-6
            )
            region = span.region
            assert image.get_extent() == pytest.approx((region.x0, region.x1, region.y1, region.y0))


def test_the_picture_keeps_its_colours(lens, prompt, example):
    ax = attention_map(lens, prompt, heads=1).plot().axes[0]
    np.testing.assert_array_equal(ax.images[0].get_array(), np.asarray(example.image.convert("RGB")))


def test_frames_are_drawn_over_the_frames_that_were_given():
    lens = lens_of("qwen2_5_vl")
    film = [picture(60, 40) for _ in range(4)]
    prompt = lens.prompt("what?", videos=film)
    found = attention_map(lens, prompt, heads=1)
    assert [canvas.name for canvas in found.canvases] == ["video 0, frame 0", "video 0, frame 1"]
    assert all(canvas.pixels is not None for canvas in found.canvases)
    assert (
        sorted(p for canvas in found.canvases for p in canvas.positions)
        == prompt.mask("video")[0].nonzero().flatten().tolist()
    )


def test_pictures_of_one_row_have_a_panel_each(lens, example):
    prompt = lens.prompt("what color is the circle?", images=[example.image, example.image])
    found = attention_map(lens, prompt, words="circle", heads=[(1, 4), (2, 0), (3, 1)], reduce=None)
    figure = found.plot()
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert len(titles) == 6
    assert titles[0].startswith("'circle', L1H4\nimage 0: ")
    assert titles[5].startswith("'circle', L3H1\nimage 1: ")
    shown = [ax.images[1].norm.vmax for ax in figure.axes if ax.get_title()]
    assert len(set(shown)) == 1  # one scale


def test_the_table_has_each_patch_with_its_box(lens, prompt):
    found = attention_map(lens, prompt, words=["circle", "color"], heads=[(1, 4), (2, 0)], reduce=None)
    table = found.to_pandas()
    assert len(table) == 2 * 2 * 36
    row = table[(table["query"] == "color") & (table["heads"] == "L2H0")].iloc[7]
    assert tuple(row[["x0", "y0", "x1", "y1"]]) == tuple(prompt.box(row["position"]))
    assert row["attention"] == pytest.approx(float(found.weights[1, 1, row["position"]]))


# ---------------------------------------------------------------------- backends, files, words


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight", "remote"])
def test_every_backend_has_the_same_map(lens, prompt, backend):
    other = (
        Lens(lens.model, lens.processor, backend="nnsight", remote="local")
        if backend == "remote"
        else Lens(lens.model, lens.processor, backend=backend)
    )
    for options in ({"words": "circle", "drop_sinks": True}, {"generated": 2}):
        expected = attention_map(lens, prompt, heads=[(1, 4), (2, 3)], reduce=None, **options)
        found = attention_map(other, prompt, heads=[(1, 4), (2, 3)], reduce=None, **options)
        assert found.queries == expected.queries
        torch.testing.assert_close(found.weights, expected.weights, atol=1e-4, rtol=1e-4)


def test_a_map_comes_back_from_its_file_bit_for_bit(lens, prompt, tmp_path):
    scores = score_heads(lens, prompt)
    found = attention_map(lens, prompt, words=["circle", "color"], heads=scores.top(3), drop_sinks=True)
    found.save(tmp_path / "map.safetensors")
    again = AttentionMap.load(tmp_path / "map.safetensors", lens=lens)
    assert torch.equal(again.weights, found.weights)
    assert torch.equal(again.on_sinks, found.on_sinks)
    assert repr(again) == repr(found)
    assert again.heads.heads == found.heads.heads
    assert torch.equal(again.canvases[0].pixels, found.canvases[0].pixels)
    assert again.canvases[0].spans == found.canvases[0].spans
    assert again.to_pandas().equals(found.to_pandas())
    raw = bytearray((tmp_path / "map.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "map.safetensors").write_bytes(raw)
    with pytest.raises(ScoreError, match="does not have the checksum"):
        AttentionMap.load(tmp_path / "map.safetensors")


def test_two_looks_at_a_picture_are_kept_once_in_a_file(tmp_path):
    found = attention_map(lens_of("internvl"), prompt_of("internvl"), heads=1)
    found.save(tmp_path / "map")
    again = AttentionMap.load(tmp_path / "map")
    assert len(again.canvases) == 2
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(again.canvases, found.canvases, strict=True))
    one = found.canvases[0].pixels.numel() + found.weights.numel() * 4
    assert (tmp_path / "map").stat().st_size < one + 8000


def test_what_it_says_of_itself(lens, prompt):
    found = attention_map(lens, prompt, words="circle", heads=[(1, 4)])
    best = max(found.canvases[0].positions, key=lambda p: float(found.weights[0, 0, p]))
    box = ", ".join(f"{side:g}" for side in prompt.box(best))
    mass, most = float(found.on_pictures[0, 0]), float(found.weights[0, 0, best])
    assert repr(found) == (
        f"AttentionMap by L1H4\n  'circle': {mass:.2f} on image 0, most ({most:.3f}) on ({box}) of image 0"
    )
    assert found._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_figure_is_a_file_for_papers(lens, prompt, tmp_path):
    attention_map(lens, prompt, heads=1).plot().savefig(tmp_path / "map.pdf")
    assert (tmp_path / "map.pdf").read_bytes()[:5] == b"%PDF-"


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"words": "circel"}, "'circel' does not occur in row 0 of the prompt\n  near it: 'circle'"),
        ({"words": []}, "no words were given"),
        ({"words": "circle", "rows": "last"}, "give one of words=, rows= and generated="),
        ({"generated": 0}, "generated is the number of tokens to generate, 1 or more, given 0"),
        ({"rows": "answer"}, "rows 'answer' select no token of row 0 of the prompt"),
        ({"heads": 6}, "layer 6 is out of range: the model has layers 0 to 5"),
        ({"heads": [(0, 8)]}, "head 8 of layer 0 is out of range"),
        ({"heads": []}, "no heads were given"),
        ({"heads": HeadSet([(0, 1)], 3, 4)}, "these heads are of 3 layers x 4 heads, the decoder has 6 x 8"),
        ({"heads": "L1H4"}, "a head is a (layer, head) pair"),
        ({"reduce": "median"}, "unknown reduction of heads 'median', did you mean 'mean'?"),
        ({"row": 1}, "row 1 is out of range: the prompt has rows 0 to 0"),
        ({"sink_dims": (1,)}, "give drop_sinks=True with them"),
    ],
)
def test_what_is_not_there_is_an_error_that_says_what_to_do(lens, prompt, options, text):
    with pytest.raises((HookError, PromptError)) as caught:
        attention_map(lens, prompt, **options)
    assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_prompt_without_pictures_or_without_their_places_has_no_map(lens):
    with pytest.raises(PromptError, match="row 0 of the prompt has no visual tokens"):
        attention_map(lens, lens.prompt("what is one plus two?"))
    with pytest.raises(PromptError, match="the layout of these visual tokens is not known"):
        attention_map(lens_of("idefics2"), prompt_of("idefics2"))


def test_heads_whose_keys_are_pictures_are_refused():
    lens, prompt = lens_of("mllama"), prompt_of("mllama")
    crossing = lens.shape.crossing[0]
    with pytest.raises((HookError, PromptError)) as caught:
        attention_map(lens, prompt, heads=crossing)
    assert "layout" in str(caught.value) or "cross-attention" in str(caught.value)
    from lmm_lens.readouts.attention import chosen_heads

    with pytest.raises(HookError, match="their keys are no tokens of the sequence"):
        chosen_heads(lens, crossing)
    assert {layer for layer, _ in chosen_heads(lens, None)} == set(lens.shape.self_attention)


def test_canvases_of_tensors_alone_have_patches_and_no_picture(lens, prompt):
    (canvas,) = canvases_of(lens.prompt(inputs=prompt.inputs), 0)
    assert canvas.pixels is None
    assert canvas.frame is None
    assert len(canvas.positions) == 36
    assert attention_map(lens, lens.prompt(inputs=prompt.inputs), heads=1).plot().axes
