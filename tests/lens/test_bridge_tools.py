"""TransformerLens's own tools on `lens.bridge` with bound token ids, each against the user's model and torch's hooks.

The clean and the corrupt prompt have the same token ids and different pictures, so a tool that lost the picture, or
took one for the other, would find no difference.
"""

import copy
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from transformer_lens import patching
from transformer_lens.tools import analysis
from transformer_lens.tools.analysis.attribution_patching import Node

from lmm_lens import Lens
from tests.support.cases import case

pytestmark = pytest.mark.long

POSITION, A, B = -1, 30, 40  # of the answer, and the two answers


def metric(logits):
    return (logits[:, POSITION, A] - logits[:, POSITION, B]).mean()


@pytest.fixture(scope="module")
def tiny():
    """A LLaVA of two layers and two heads without grouped queries, which the edge tools ask for."""
    llava = case("llava")
    config = copy.deepcopy(llava.model.config)
    config.text_config.update(
        {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 32, "num_hidden_layers": 2}
    )
    torch.manual_seed(8)
    model = type(llava.model)(config).eval()
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)  # so that heads attend to something, and pictures matter
    lens = Lens(model, backend="transformer_lens")
    seeded = torch.Generator().manual_seed(3)
    pixels = torch.randn(2, *llava.inputs["pixel_values"].shape, generator=seeded)
    clean, corrupt = (lens.prompt(inputs={**llava.inputs, "pixel_values": each}) for each in pixels)
    with torch.no_grad():
        values = [metric(model(**prompt.inputs).logits).item() for prompt in (clean, corrupt)]
    assert abs(values[0] - values[1]) > 0.05
    return SimpleNamespace(
        model=model,
        lens=lens,
        bridge=lens.bridge,
        layers=model.model.language_model.layers,
        prompts=(clean, corrupt),
        clean=lens.bound_tokens(clean),
        corrupt=lens.bound_tokens(corrupt),
        values=values,
    )


@contextmanager
def hooked(*hooks):
    """Forward hooks (module, function of what the module is given and gives) for a while."""
    handles = [module.register_forward_hook(function) for module, function in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def runs(tiny, prompt, *hooks):
    with hooked(*hooks):
        return tiny.model(**prompt.inputs).logits


def kept(tiny, prompt):
    """What the user's model computes: what enters each layer and leaves it, and the heads' outputs (z)."""
    found = {}
    hooks = []
    for index, layer in enumerate(tiny.layers):

        def keep(module, args, out, index=index):
            found["in", index], found["out", index] = args[0], out

        def keep_z(module, args, out, index=index):
            found["z", index], found["attn", index] = args[0], out  # z of both heads in one row

        def keep_mlp(module, args, out, index=index):
            found["mlp", index] = out

        hooks += [(layer, keep), (layer.self_attn.o_proj, keep_z), (layer.mlp, keep_mlp)]
    found["logits"] = runs(tiny, prompt, *hooks)
    return found


def read(tiny, x):
    """The user's final norm and unembedding."""
    return tiny.model.lm_head(tiny.model.model.language_model.norm(x))


# ---------------------------------------------------------------------- reading


@pytest.mark.parametrize("which", [0, 1])
def test_logit_lens(tiny, which):
    tokens = (tiny.clean, tiny.corrupt)[which]
    found = analysis.logit_lens(tiny.bridge, tokens, positions=None).values
    with torch.no_grad():
        here = kept(tiny, tiny.prompts[which])
        expected = torch.stack([read(tiny, here["in", 0]), read(tiny, here["out", 0]), here["logits"]])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_direct_logit_attribution_on_a_patching_model_and_refused_on_the_bridge(tiny):
    prompt = tiny.prompts[0]
    with torch.no_grad():
        found = analysis.direct_logit_attribution(tiny.lens.patching_model(prompt), tiny.clean, A, B)
        here = kept(tiny, prompt)
        parts = [here["in", 0], here["attn", 0], here["mlp", 0], here["attn", 1], here["mlp", 1]]
        norm = tiny.model.model.language_model.norm
        scale = (here["out", 1][0, POSITION].square().mean() + norm.variance_epsilon).rsqrt()
        way = tiny.model.lm_head.weight[A] - tiny.model.lm_head.weight[B]
        expected = torch.stack([(part[0, POSITION] * scale * norm.weight) @ way for part in parts])
    assert found.labels == ["embed", "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out"]
    torch.testing.assert_close(found.attribution.flatten(), expected, atol=1e-4, rtol=1e-4)
    assert found.attribution.sum().item() == pytest.approx(tiny.values[0], abs=1e-4)
    with pytest.raises(ValueError, match="requires compatibility mode"):  # which would fold the user's weights
        analysis.direct_logit_attribution(tiny.bridge, tiny.clean, A, B)


def jacobians(tiny, prompt):
    """Reference: the last layer's output by the first layer's, one number at a time."""
    here = kept(tiny, prompt)
    source, target = here["out", 0], here["out", 1]
    n, width = source.shape[1], source.shape[2]
    valid = range(n - 1)
    rows = []
    for dimension in range(width):
        total = sum(target[0, position, dimension] for position in valid)
        (gradient,) = torch.autograd.grad(total, source, retain_graph=True)
        rows.append(gradient[0, list(valid)].mean(0))
    return torch.stack(rows)


def test_jacobian_lens(tiny):
    fitted = analysis.JacobianLens.fit(
        tiny.bridge, [tiny.clean, tiny.prompts[1]], corpus="two pictures", show_progress=False, skip_first_positions=0
    )
    expected = torch.stack([jacobians(tiny, prompt) for prompt in tiny.prompts])
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    torch.testing.assert_close(fitted.jacobians[0], expected.mean(0), atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        found = fitted.readout(tiny.bridge, tiny.corrupt, layers=[0], return_full_logits=True)
        carried = kept(tiny, tiny.prompts[1])["out", 0] @ expected.mean(0).T
    torch.testing.assert_close(found.lens_logits[0], read(tiny, carried)[0], atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="visual tokens, and no pictures"):  # cut in the middle of its picture
        analysis.JacobianLens.fit(
            tiny.bridge, [tiny.clean], corpus="cut", show_progress=False, skip_first_positions=0, max_seq_len=9
        )


def test_sparse_probing_of_what_the_cache_holds_at_visual_tokens(tiny):
    _, a = tiny.bridge.run_with_cache(tiny.clean, names_filter="blocks.0.hook_resid_post")
    _, b = tiny.bridge.run_with_cache(tiny.corrupt, names_filter="blocks.0.hook_resid_post")
    rows = torch.cat([cache.visual("resid_post", 0) for cache in (a, b)]).detach()
    with torch.no_grad():
        places = tiny.prompts[0].mask("image")[0]
        expected = torch.cat([kept(tiny, prompt)["out", 0][0, places] for prompt in tiny.prompts])
    torch.testing.assert_close(rows, expected, atol=1e-4, rtol=1e-4)
    labels = (expected[:, 3] > expected[:, 3].median()).long()  # a feature that is there, in dimension 3
    probe = analysis.fit_sparse_probe(rows, labels, k=1)
    assert probe.selected_features.tolist() == [3]


# ---------------------------------------------------------------------- attribution


def test_attribution_of_nodes(tiny):
    found = analysis.attribution_patch(tiny.bridge, tiny.clean, tiny.corrupt, metric).node_scores
    with torch.no_grad():
        clean = kept(tiny, tiny.prompts[0])
    corrupt = kept(tiny, tiny.prompts[1])
    names = [name for name in corrupt if name[0] in ("in", "z", "mlp") and name != ("in", 1)]
    gradients = torch.autograd.grad(metric(corrupt["logits"]), [corrupt[name] for name in names])
    changes = {name: (clean[name] - corrupt[name].detach()) * g for name, g in zip(names, gradients, strict=True)}
    for position in range(tiny.clean.shape[1]):
        at = {
            Node("embed", position): changes["in", 0][0, position].sum(),
            **{Node("mlp_out", position, layer): changes["mlp", layer][0, position].sum() for layer in (0, 1)},
            **{
                Node("attn_head_out", position, layer, head): changes["z", layer][0, position, head * 16 :][:16].sum()
                for layer in (0, 1)
                for head in (0, 1)
            },
        }
        for node, expected in at.items():
            assert found[node] == pytest.approx(float(expected), abs=2e-4), node
    visual = tiny.prompts[0].mask("image")[0].nonzero()[:, 0].tolist()
    assert max(abs(found[Node("embed", position)]) for position in visual) > 1e-3


def test_attribution_of_edges_and_faithfulness(tiny):
    edges = analysis.EdgeAttributionConfig(granularity="edge")
    found = analysis.attribution_patch(tiny.bridge, tiny.clean, tiny.corrupt, metric, edges)
    by_node = analysis.attribution_patch(tiny.bridge, tiny.clean, tiny.corrupt, metric).node_scores
    for node, score in found.node_scores.items():  # a node's edges are all of its ways out
        assert score == pytest.approx(by_node[node], abs=2e-4), node
    everything = found.top_edges(len(found.edge_scores))
    whole = analysis.faithfulness(tiny.bridge, tiny.clean, tiny.corrupt, metric, everything)
    nothing = analysis.faithfulness(tiny.bridge, tiny.clean, tiny.corrupt, metric, [])
    assert (whole.full_metric, whole.corrupt_metric) == pytest.approx(tiny.values, abs=1e-4)
    assert whole.recovered == pytest.approx(1, abs=1e-3)
    assert nothing.recovered == pytest.approx(0, abs=1e-3)  # every part of the corrupt picture's run is put in


def test_edges_of_grouped_queries_are_refused():
    llava = case("llava")
    lens = llava.on("transformer_lens")
    tokens = lens.bound_tokens(llava.prompt)
    with pytest.raises(ValueError, match=r"n_key_value_heads=2 for n_heads=4 \(GQA/MQA\)"):
        analysis.attribution_patch(
            lens.bridge, tokens, tokens, metric, analysis.EdgeAttributionConfig(granularity="edge")
        )


# ---------------------------------------------------------------------- interchange


def test_interchange(tiny):
    """All of a row put in is the row put in; a subspace of one dimension changes that dimension alone."""
    both = torch.cat([tiny.clean, tiny.corrupt])
    last = torch.full((2,), both.shape[1] - 1)
    hook = "blocks.0.hook_resid_post"

    def answers(tokens):
        return tiny.bridge(tokens)[:, POSITION, [A, B]]

    source = analysis.collect_activations(tiny.bridge, hook, both, answers, positions=last, batch_size=1)
    with torch.no_grad():
        runs_of = [kept(tiny, prompt) for prompt in tiny.prompts]
    torch.testing.assert_close(source, torch.stack([run["out", 0][0, -1] for run in runs_of]), atol=1e-4, rtol=1e-4)
    for dimensions in (range(32), (3,)):
        basis = torch.eye(32)[:, list(dimensions)]
        found = analysis.intervened_logits(
            tiny.bridge,
            hook,
            analysis.SubspaceInterchange(basis),
            both[[1, 0]],
            source,
            answers,
            positions=last,
            batch_size=1,
        )
        for base, given in ((1, 0), (0, 1)):

            def put(module, args, out, base=base, given=given, dimensions=dimensions):
                out = out.clone()
                out[0, -1, list(dimensions)] = runs_of[given]["out", 0][0, -1, list(dimensions)]
                return out

            with torch.no_grad():
                expected = runs(tiny, tiny.prompts[base], (tiny.layers[0], put))[0, POSITION, [A, B]]
            torch.testing.assert_close(found[given], expected, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------- patching


def test_patching_of_the_residual_stream_and_of_heads(tiny):
    with torch.no_grad():
        _, cache = tiny.bridge.run_with_cache(tiny.clean)
        rows = patching.get_act_patch_resid_pre(tiny.bridge, tiny.corrupt, cache, metric)
        heads = patching.get_act_patch_attn_head_out_all_pos(tiny.bridge, tiny.corrupt, cache, metric)
        clean = kept(tiny, tiny.prompts[0])
        n = tiny.clean.shape[1]
        for layer in (0, 1):
            for position in (0, 6, n - 1):

                def put(module, args, layer=layer, position=position):
                    x = args[0].clone()
                    x[:, position] = clean["in", layer][:, position]
                    return (x, *args[1:])

                handle = tiny.layers[layer].register_forward_pre_hook(put)
                assert rows[layer, position].item() == pytest.approx(
                    metric(runs(tiny, tiny.prompts[1])).item(), abs=1e-4
                )
                handle.remove()
            for head in (0, 1):

                def put_head(module, args, layer=layer, head=head):
                    z = args[0].unflatten(-1, (2, 16)).clone()
                    z[:, :, head] = clean["z", layer].unflatten(-1, (2, 16))[:, :, head]
                    return (z.flatten(-2),)

                handle = tiny.layers[layer].self_attn.o_proj.register_forward_pre_hook(put_head)
                assert heads[layer, head].item() == pytest.approx(metric(runs(tiny, tiny.prompts[1])).item(), abs=1e-4)
                handle.remove()
    assert rows[0, 5:21].sub(tiny.values[1]).abs().max() > 1e-3


def test_direct_paths(tiny):
    """Against the user's model: the head's change is added to what one later head's queries are computed of."""
    with torch.no_grad():
        caches = [tiny.bridge.run_with_cache(tokens)[1] for tokens in (tiny.clean, tiny.corrupt)]
        found = patching.get_act_patch_direct_path(tiny.bridge, tiny.corrupt, *caches, metric, 0, 1, verbose=False)
        clean, corrupt = (kept(tiny, prompt) for prompt in tiny.prompts)
        write = tiny.layers[0].self_attn.o_proj.weight[:, 16:32]
        change = (clean["z", 0] - corrupt["z", 0])[..., 16:] @ write.T
        later = tiny.layers[1]
        for head in (0, 1):

            def put(module, args, out, head=head):
                normed = later.input_layernorm(corrupt["in", 1] + change)
                queries = (normed @ module.weight.T).unflatten(-1, (2, 16))
                out = out.unflatten(-1, (2, 16)).clone()
                out[:, :, head] = queries[:, :, head]
                return out.flatten(-2)

            expected = metric(runs(tiny, tiny.prompts[1], (later.self_attn.q_proj, put)))
            assert found[1, head].item() == pytest.approx(expected.item(), abs=1e-4)
    assert found[1].sub(tiny.values[1]).abs().max() > 1e-5


def test_projection_kernel_takes_weights_and_no_tokens(tiny):
    found = analysis.attention_head_subspace_affinity(tiny.bridge, target_role="Q").scores[0, 0]  # of head 0 of layer 0
    with torch.no_grad():
        writes = torch.linalg.qr(tiny.layers[0].self_attn.o_proj.weight[:, :16]).Q
        reads = torch.linalg.qr(tiny.layers[1].self_attn.q_proj.weight.T.unflatten(1, (2, 16))[:, 1]).Q
    assert found[1, 1].item() == pytest.approx((writes.T @ reads).square().sum().item(), abs=1e-4)
