"""Direct attribution: it adds up on every family, each part against a slow sum, and where the answer is known."""

import copy
import math

import pytest
import torch

from lmm_lens import Lens, shapes
from lmm_lens.errors import ModelError, PromptError, RemoteError, ScoreError
from lmm_lens.prompts.named_spans import named_spans
from lmm_lens.readouts import DirectAttribution, direct_attribution
from lmm_lens.readouts.frozen import FrozenNorm
from tests.support.cases import case, double
from tests.support.families import lens_of, prompt_of
from tests.support.models import FAMILIES
from tests.support.quick import quick

GEMMAS = ("gemma3", "paligemma2")
SLOW = ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma2", "glm4v", "mistral3", "llava_onevision", "idefics2"]
WAYS = ["layer", "head", "mlp", "span"]
GATED = [name for name in sorted(FAMILIES) if name != "mllama"]


@pytest.fixture(scope="module")
def prompt(lens):
    return lens.prompt("what color is the circle?", images=shapes.examples(1, kinds=("color",), seed=2)[0].image)


def total(found):
    return found.values.flatten(1).nansum(1) + sum(found.rest.values())


def check_sum(found, logits, a, b, tolerance=1e-4):
    difference = (logits[:, a] - logits[:, b]).double()
    assert float(found.difference[0]) == pytest.approx(float(difference[0]), rel=1e-5)
    torch.testing.assert_close(total(found) + found.remainder, found.difference)
    scale = difference.abs().clamp_min(1e-3)
    assert bool((found.remainder.abs() <= tolerance * scale).all()), found


# ---------------------------------------------------------------------- it adds up


@pytest.mark.parametrize("name", quick(GATED, ("llava", "gemma3", "qwen3_vl", "qwen3_5", "glm4v", "paligemma2")))
def test_it_adds_up_to_the_models_own_logit_difference(name):
    family = case(name)
    for by in WAYS:
        check_sum(direct_attribution(family.lens, family.prompt, 20, 30, by=by), family.logits[:, -1], 20, 30)


def test_ways_of_taking_a_layer_apart_agree():
    for name in ("gemma3", "qwen3_5"):
        family = case(name)
        found = {by: direct_attribution(family.lens, family.prompt, 20, 30, by=by) for by in WAYS}
        torch.testing.assert_close(
            found["span"].values.sum(-1), found["head"].values, atol=1e-5, rtol=1e-4, equal_nan=True
        )
        assert float(found["mlp"].values.nansum()) == pytest.approx(
            float(found["head"].rest["feed-forward parts"]), abs=1e-5
        )
        layers = float(found["layer"].values.sum())
        others = sum(float(x) for part, x in found["head"].rest.items() if part not in ("embedding", "final biases"))
        assert layers == pytest.approx(float(found["head"].values.nansum()) + others, abs=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["cohere2_vision", "aya_vision", "granite4_vision", "blip-2", "instructblip", "janus", "lfm2_vl"]
)
def test_parallel_blocks_multipliers_biases_and_experts_add_up(name):
    lens, prompt = lens_of(name), prompt_of(name)
    logits = lens.run(prompt, logits="last").logits[:, 0]
    for by in WAYS:
        check_sum(direct_attribution(lens, prompt, 20, 30, by=by), logits, 20, 30, 2e-4)


# ---------------------------------------------------------------------- against a slow sum


class Parts:
    """Every activation that is needed, kept by plain hooks of a model with eager attention."""

    def __init__(self, model, inputs):
        self.model = copy.deepcopy(model)
        self.model.set_attn_implementation("eager")
        self.layers = self.model.get_decoder().layers
        self.seen = {}
        for index, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(self.entering(index), with_kwargs=True)
            for name in ("self_attn", "mlp", "self_attn.o_proj", "self_attn.v_proj"):
                layer.get_submodule(name).register_forward_hook(self.keep(index, name))
        self.model.get_decoder().norm.register_forward_hook(self.keep(-1, "norm"))
        with torch.no_grad():
            self.logits = self.model(**inputs, use_cache=False, output_attentions=False).logits

    def entering(self, index):
        def hook(module, args, kwargs):
            self.seen[index, "in"] = (args[0] if args else kwargs["hidden_states"])[0].double()

        return hook

    def keep(self, index, name):
        def hook(module, args, output):
            if name == "self_attn.o_proj":
                self.seen[index, "z"] = args[0][0].double()
            if name == "self_attn":
                self.seen[index, "weights"] = output[1][0].double()
            if name == "norm":
                self.seen["last"] = args[0][0].double()
            self.seen[index, name] = (output[0] if isinstance(output, tuple) else output)[0].double()

        return hook

    def scaled(self, norm, part, whole, gemma):
        """A part of a row through an RMS norm whose scale is that of the whole row."""
        weight = norm.weight.double() + (1 if gemma else 0)
        eps = norm.eps if gemma else norm.variance_epsilon
        return part * weight / math.sqrt(float(whole.square().mean()) + eps)


def behind(layer, part):
    """The norm behind a part, by the names that these families give it."""
    names = {
        "attention": ("post_self_attn_layernorm", "post_attention_layernorm"),
        "mlp": ("post_mlp_layernorm", "post_feedforward_layernorm"),
    }[part]
    if not hasattr(layer, "post_mlp_layernorm") and not hasattr(layer, "post_feedforward_layernorm"):
        return None
    return next(getattr(layer, name) for name in names if hasattr(layer, name))


@pytest.mark.parametrize("name", quick(SLOW, ("qwen3_vl", "gemma3", "paligemma2")))
@torch.no_grad()
def test_each_part_is_what_it_writes_along_the_answer_in_fp64(name):
    family, gemma = double(name), name in GEMMAS or name == "paligemma"
    parts = Parts(family.model, family.inputs)
    unembedding = parts.model.get_output_embeddings().weight.double()
    towards, last = unembedding[20] - unembedding[30], parts.seen["last"][-1]
    raw = [float(parts.seen[-1, "norm"][-1] @ unembedding[token]) for token in (20, 30)]
    cap = getattr(family.model.config.get_text_config(), "final_logit_softcapping", None)
    chord = 1.0
    if cap:
        capped = [math.tanh(value / cap) * cap for value in raw]
        chord = (capped[0] - capped[1]) / (raw[0] - raw[1])

    def says(part):
        return chord * float(parts.scaled(parts.model.get_decoder().norm, part, last, gemma) @ towards)

    by = {way: direct_attribution(family.lens, family.prompt, 20, 30, by=way) for way in WAYS}
    assert float(by["head"].chord) == pytest.approx(chord, abs=1e-6)
    assert float(by["layer"].rest["embedding"]) == pytest.approx(says(parts.seen[0, "in"][-1]), abs=1e-5)
    spans = named_spans(family.prompt)
    assert by["span"].spans == tuple(spans)
    for index, layer in enumerate(parts.layers):
        attention, z = layer.self_attn, parts.seen[index, "z"][-1]
        n_heads = family.lens.shape.n_heads[index]
        size = len(z) // n_heads
        whole = parts.seen[index, "self_attn"][-1]

        def after(part, whole, norm):
            return part if norm is None else parts.scaled(norm, part, whole, gemma)

        post = behind(layer, "attention")
        values = parts.seen[index, "self_attn.v_proj"].reshape(
            -1, family.model.config.get_text_config().num_key_value_heads, size
        )
        for head in range(n_heads):
            columns = attention.o_proj.weight.double()[:, head * size : (head + 1) * size]
            written = columns @ z[head * size : (head + 1) * size]
            assert float(by["head"].values[0, index, head]) == pytest.approx(
                says(after(written, whole, post)), abs=2e-5
            )
            shared = values[:, head // (n_heads // values.shape[1])]
            for at, mask in enumerate(spans.values()):
                keys = mask[0].nonzero().flatten()
                taken = parts.seen[index, "weights"][head, -1, keys] @ shared[keys]
                expected = says(after(columns @ taken, whole, post))
                assert float(by["span"].values[0, index, head, at]) == pytest.approx(expected, abs=2e-5)
        mlp = parts.seen[index, "mlp"][-1]
        expected = says(after(mlp, mlp, behind(layer, "mlp")))
        assert float(by["mlp"].values[0, index]) == pytest.approx(expected, abs=2e-5)


# ---------------------------------------------------------------------- known answers


def test_a_head_without_weights_adds_nothing_and_the_last_layer_adds_what_deleting_it_takes(lens, prompt):
    model = copy.deepcopy(lens.model)
    with torch.no_grad():
        model.get_decoder().layers[3].self_attn.o_proj.weight[:, 16:32] = 0
        model.get_decoder().layers[3].mlp.down_proj.weight.zero_()
    found = direct_attribution(Lens(model, lens.processor), prompt, "red", "blue", by="head")
    assert float(found.values[0, 3, 1]) == 0
    assert float(direct_attribution(Lens(model, lens.processor), prompt, "red", "blue", by="mlp").values[0, 3]) == 0


def test_what_reads_a_span_that_is_not_seen_is_nothing(lens, prompt):
    from lmm_lens import Knockout

    with lens.apply(Knockout("image", "last")):
        found = direct_attribution(lens, prompt, "red", "blue", by="span")
    image = found.spans.index("image")
    assert float(found.values[..., image].abs().max()) == 0
    plain = direct_attribution(lens, prompt, "red", "blue", by="span")
    assert float(plain.values[..., image].abs().max()) > 0.1


def test_the_color_is_read_off_the_picture(lens):
    """The planted visual head of the bundled model brings the answer from the picture."""
    for example in shapes.examples(2, kinds=("color",), seed=8):
        asked = lens.prompt(example.question, images=example.image)
        other = next(color for color in ("red", "blue", "green") if color != example.answer)
        found = direct_attribution(lens, asked, example.answer, other, by="span")
        best = found.to_pandas().iloc[0]
        assert best["span"] == "image"
        assert best["contribution"] > 1


def test_one_answer_alone_is_its_logit(lens, prompt):
    logits = lens.run(prompt, logits="last").logits[0, 0]
    found = direct_attribution(lens, prompt, "red", by="head")
    token = lens.processor.tokenizer.convert_tokens_to_ids("red")
    assert float(found.difference) == pytest.approx(float(logits[token]), rel=1e-6)
    assert float(found.remainder) == pytest.approx(0, abs=1e-4)
    said = direct_attribution(lens, prompt)
    assert said.answers == ((lens.processor.tokenizer.decode([int(logits.argmax())]),),)


def test_batch_rows_are_as_alone_and_have_their_own_answers(lens):
    image = shapes.examples(1, seed=2)[0].image
    texts = ["what color is the circle?", "is the circle left of the red circle?"]
    batch = lens.prompt(texts, images=[image] * 2)
    for by in ("head", "span"):
        together = direct_attribution(lens, batch, ["red", "yes"], ["blue", "no"], by=by)
        assert together.answers == (("red", "blue"), ("yes", "no"))
        for row, (text, pair) in enumerate(zip(texts, together.answers, strict=True)):
            alone = direct_attribution(lens, lens.prompt(text, images=image), *pair, by=by)
            assert alone.spans == together.spans
            torch.testing.assert_close(together.values[row], alone.values[0], atol=1e-4, rtol=1e-3)
            assert float(together.remainder[row]) == pytest.approx(0, abs=1e-4)


def test_norms_are_read_off_what_they_do():
    torch.manual_seed(0)
    x = torch.randn(3, 16, dtype=torch.double) * 4
    layer = torch.nn.LayerNorm(16, dtype=torch.double)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    frozen = FrozenNorm.of(layer, x)
    assert frozen.centred
    torch.testing.assert_close(frozen(x) + frozen.bias, layer(x), atol=1e-5, rtol=1e-4)
    parts = torch.randn(3, 16, dtype=torch.double)
    torch.testing.assert_close(frozen(parts) + frozen(x - parts), frozen(x))
    direction = torch.randn(3, 16, dtype=torch.double)
    torch.testing.assert_close((frozen.pulled(direction) * parts).sum(-1), (direction * frozen(parts)).sum(-1))
    with pytest.raises(ModelError, match="SiLU is no RMS and no layer normalisation"):
        FrozenNorm.of(torch.nn.SiLU(), x)


# ---------------------------------------------------------------------- backends


@pytest.mark.parametrize("name", quick(["llava", "gemma3"], ["llava"]))
@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_every_backend_attributes_the_same(name, backend):
    family = case(name)
    for by in WAYS:
        found, expected = (
            direct_attribution(each, family.prompt, 20, 30, by=by) for each in (family.on(backend), family.lens)
        )
        torch.testing.assert_close(found.values, expected.values, atol=1e-4, rtol=1e-3, equal_nan=True)


def test_a_server_gives_layers_and_says_why_not_more(lens, prompt):
    away = Lens(lens.model, lens.processor, backend="nnsight", remote="local")
    found = direct_attribution(away, prompt, "red", "blue")
    expected = direct_attribution(lens, prompt, "red", "blue")
    torch.testing.assert_close(found.values, expected.values, atol=1e-4, rtol=1e-3)
    with pytest.raises(RemoteError, match="by='layer' works on a server"):
        direct_attribution(away, prompt, "red", "blue", by="head")


# ---------------------------------------------------------------------- results


def test_tables_name_each_part_largest_first(lens, prompt):
    for by, name in (("layer", "L"), ("head", "L1H4"), ("mlp", "MLP"), ("span", "L1H4 from image")):
        found = direct_attribution(lens, prompt, "red", "blue", by=by)
        table = found.to_pandas()
        parts = table[~table["layer"].isna()]
        assert any(part.startswith(name) for part in parts["part"])
        assert parts["contribution"].is_monotonic_decreasing
        assert table["contribution"].sum() == pytest.approx(float(found.difference), abs=1e-4)
        assert table["part"].iloc[-1] == "remainder"


def test_the_best_heads_are_a_set(lens, prompt):
    found = direct_attribution(lens, prompt, "red", "blue", by="head")
    best = found.top(2)
    assert best.heads[0] == divmod(int(found.values[0].argmax()), 8)
    assert direct_attribution(lens, prompt, "red", "blue", by="span").top(2) == best
    with pytest.raises(ScoreError, match="top gives heads, but these contributions are by mlp"):
        direct_attribution(lens, prompt, "red", "blue", by="mlp").top(1)
    with pytest.raises(ScoreError, match="ask for by='span'"):
        found.by_span()


@pytest.mark.parametrize("by", WAYS)
def test_figures_show_the_numbers(lens, prompt, by):
    found = direct_attribution(lens, prompt, "red", "blue", by=by)
    ax = found.plot()
    assert ax.get_title() == f"red against blue, by {by}"
    if by in ("layer", "mlp"):
        heights = [patch.get_height() for patch in ax.patches]
        assert heights[:6] == pytest.approx(found.values[0].tolist())
        assert sum(heights) == pytest.approx(float(found.difference), abs=1e-4)
    else:
        shown = torch.as_tensor(ax.images[0].get_array().data)
        torch.testing.assert_close(shown, found.values[0] if by == "head" else found.by_span()[0])


def test_it_comes_back_from_its_file(lens, prompt, tmp_path):
    found = direct_attribution(lens, prompt, "red", "blue", by="span")
    found.save(tmp_path / "parts")
    again = DirectAttribution.load(tmp_path / "parts", lens=lens)
    assert torch.equal(again.values, found.values)
    assert repr(again) == repr(found)
    assert again.to_pandas().equals(found.to_pandas())


def test_what_it_says_of_itself(lens, prompt):
    lines = repr(direct_attribution(lens, prompt, "red", "blue", by="head")).splitlines()
    assert lines[0].startswith("DirectAttribution of 'red' against 'blue' by head: logit difference ")
    assert lines[1].startswith("  most: L")
    assert "feed-forward parts" in lines[2]
    assert "remainder" in lines[2]


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("answers", "options", "text"),
    [
        (("red", "red"), {}, "row 0: 'red' against itself is 0, and nothing adds to it"),
        (("red circle", "blue"), {}, "'red circle' has 2 tokens"),
        ((["red", "blue"],), {}, "answer is one token for all 1 batch rows, or one each"),
        (("red", "blue"), {"by": "neuron"}, "unknown part to attribute to 'neuron'"),
    ],
)
def test_what_cannot_be_attributed_is_an_error_that_says_why(lens, prompt, answers, options, text):
    with pytest.raises((ScoreError, PromptError)) as caught:
        direct_attribution(lens, prompt, *answers, **options)
    assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_cross_attention_is_refused_with_a_reason_but_by_layer():
    family = case("mllama")
    check_sum(direct_attribution(family.lens, family.prompt, 20, 30), family.logits[:, -1], 20, 30)
    for by in ("head", "mlp", "span"):
        with pytest.raises(ModelError, match=r"layers \[1\] attend to pictures by cross-attention, and a gate scales"):
            direct_attribution(family.lens, family.prompt, 20, 30, by=by)


def test_a_layer_that_adds_something_else_is_found_out(lens, prompt):
    model = copy.deepcopy(lens.model)
    model.get_decoder().layers[2].register_forward_hook(lambda module, args, out: out + 0.1)
    other = Lens(model, lens.processor)
    with pytest.raises(ModelError, match=r"layer 2 .* adds something else to the residual stream"):
        direct_attribution(other, prompt, "red", "blue", by="head")
    assert float(direct_attribution(other, prompt, "red", "blue").remainder) == pytest.approx(0, abs=1e-4)
