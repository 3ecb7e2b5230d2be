"""Knockout equals the softmax of scores in which the forbidden keys are minus infinity."""

import pytest
import torch

from lmm_lens import Knockout, Read
from lmm_lens.errors import HookError, InterventionError
from lmm_lens.warnings import NothingChangedWarning
from tests.support.cases import close, edits_of, plain
from tests.support.edited import knockout
from tests.support.models import FAMILIES
from tests.support.oracle import ScoreReference, forbid, spans
from tests.support.planted import planted, real_tokens

NEW = 5
ROUTES = [("image", "question"), ("image", "last"), ("question", "last"), ("last", "last")]
WIDE = ["llava", "qwen2_5_vl", "gemma3", "paligemma2", "qwen3_5", "llava_next", "mllama"]


@pytest.fixture(params=list(FAMILIES))
def case(request):
    return planted(request.param)


def reference_logits(case, inputs, *args, **kwargs):
    with case.reference.editing(scores=forbid(*args, **kwargs)):
        return case.reference.run(inputs)


def test_the_image_is_hidden_from_the_question_in_every_layer(case):
    run = case.lens.run(case.prompt, [Knockout("image", "question", layers=case.self_attending)])
    roles = spans(case.inputs)
    close(run.logits, reference_logits(case, case.inputs, case.self_attending, roles["image"], roles["question"]))
    n_heads = 4 * len(case.self_attending)
    assert edits_of(run) == [len(roles["question"][0]) * n_heads]
    assert (run.logits - case.logits).abs().max() > 1e-3


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("route", ROUTES)
def test_every_route_in_a_window_of_layers(name, route):
    case = planted(name)
    source, target = route
    chosen = [layer for layer in Knockout.window(2, 3, case.n_layers) if layer in case.self_attending]
    run = case.lens.run(case.prompt, [Knockout(source, target, layers=chosen)])
    roles = spans(case.inputs)
    close(run.logits, reference_logits(case, case.inputs, chosen, roles[source], roles[target]))
    assert set(run.reports[0].edits) == set(chosen)
    if name != "gemma3" or source != "image":  # its window hides the image from the last row anyway
        assert (run.logits - case.logits).abs().max() > 1e-4


@pytest.mark.parametrize("name", WIDE[:-1])
def test_patches_given_by_position_are_hidden_and_no_other(name):
    case = planted(name)
    patches = sorted(spans(case.inputs)["image"][0])[1:4]
    layers = case.self_attending
    read = Read("pattern", layers, rows="question")
    run = case.lens.run(case.prompt, [Knockout(patches, "question")], read=[read])
    roles = spans(case.inputs)
    close(run.logits, reference_logits(case, case.inputs, layers, [set(patches)], roles["question"]))
    for layer in layers:
        pattern = run.reads["pattern", layer]
        assert (pattern[..., patches] == 0).all()
        close(pattern.sum(-1), torch.ones(pattern.shape[:3]))


def test_positions_tensors_and_masks_name_the_same_keys():
    case = planted("llava")
    patches = [6, 9, 11]
    mask = torch.zeros(1, case.prompt.n_tokens, dtype=torch.bool)
    mask[0, patches] = True
    expected = case.lens.run(case.prompt, [Knockout(patches, "question")]).logits
    for source in (tuple(patches), torch.tensor(patches), mask):
        assert torch.equal(case.lens.run(case.prompt, [Knockout(source, "question")]).logits, expected)


@pytest.mark.parametrize("name", ["llava", "gemma3", "internvl"])
def test_some_heads_alone_are_blinded(name):
    case = planted(name)
    run = case.lens.run(case.prompt, [Knockout("image", "question", heads=[3, 1])])
    roles = spans(case.inputs)
    args = case.self_attending, roles["image"], roles["question"]
    close(run.logits, reference_logits(case, case.inputs, *args, heads=[1, 3]))
    both = case.lens.run(case.prompt, [Knockout("image", "question")])
    assert (run.logits - both.logits).abs().max() > 1e-4
    assert edits_of(run) == [edits_of(both)[0] // 2]


@pytest.mark.parametrize(
    ("source", "target"),
    [("image", "generating"), ("image", "all"), ("text", "generating"), ("question", "after_image")],
)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "qwen3_5", "idefics3"])
def test_generated_rows_and_keys_belong_to_their_spans(name, source, target):
    case = planted(name)
    given = case.lens.generate(case.prompt, [Knockout(source, target)], max_new_tokens=NEW, logits=True)
    roles = spans(case.inputs, NEW)
    with case.reference.editing(scores=forbid(case.self_attending, roles[source], roles[target])):
        tokens, logits = case.reference.generate(case.inputs, NEW)
    assert torch.equal(given.tokens, tokens)
    close(given.logits, logits)


def test_rows_of_the_prompt_alone_are_blinded_when_the_question_is_named():
    case = planted("llava")
    given = case.lens.generate(case.prompt, [Knockout("image", "question")], max_new_tokens=NEW, logits=True)
    roles = spans(case.inputs)
    with case.reference.editing(scores=forbid(case.self_attending, roles["image"], roles["question"])):
        close(given.logits, case.reference.generate(case.inputs, NEW)[1])
    assert edits_of(given) == [6 * 4 * 5]


@pytest.mark.parametrize("name", ["llava", "paligemma2", "qwen2_5_vl", "internvl", "gemma3"])
def test_a_padded_batch_hides_in_each_row_its_own_image(name):
    case = planted(name)
    prompts, batch = case.batch()
    given = case.lens.run(case.lens.prompt(inputs=batch), [Knockout("image", "after_image")])
    roles = spans(batch)
    expected = reference_logits(case, batch, case.self_attending, roles["image"], roles["after_image"])
    real = real_tokens(batch)
    close(given.logits[real], expected[real])
    for row, inputs in enumerate(prompts):
        alone = case.lens.run(case.lens.prompt(inputs=inputs), [Knockout("image", "after_image")])
        close(given.logits[row, -alone.logits.shape[1] :], alone.logits[0])


def own_mask(case):
    """The image hidden from the question by a mask of four dimensions, which transformers takes itself."""
    n_tokens, hide = case.prompt.n_tokens, torch.finfo(torch.float32).min
    mask = torch.full((n_tokens, n_tokens), hide).triu(1)
    mask[21:, 5:21] = hide
    return {**case.inputs, "attention_mask": mask[None, None]}


def test_it_equals_a_mask_given_to_the_model_itself():
    """No reference of ours."""
    case = planted("llava")
    expected = plain(case.model, own_mask(case))
    close(case.lens.run(case.prompt, [Knockout("image", "question")]).logits, expected)


def test_its_gradient_is_that_of_the_masked_model():
    case = planted("llava")
    weight = case.model.get_input_embeddings().weight

    def gradient(logits):
        return torch.autograd.grad(logits[0, -1, 7], weight)[0]

    expected = gradient(case.model(**own_mask(case)).logits)
    run = case.lens.run(case.prompt, [Knockout("image", "question")], grad=True)
    close(gradient(run.logits), expected)
    assert expected.abs().max() > 1e-3
    assert (gradient(case.model(**case.inputs).logits) - expected).abs().max() > 1e-3


# ---------------------------------------------------------------------- nothing to hide, or everything


def test_what_a_row_cannot_see_anyway_changes_nothing():
    case = planted("llava")
    with pytest.warns(NothingChangedWarning, match="see no key of the source"):
        run = case.lens.run(case.prompt, [Knockout("question", "image")])
    assert torch.equal(run.logits, case.logits)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_5"])
def test_rows_that_see_only_the_source_stay(name):
    case = planted(name)
    with pytest.warns(NothingChangedWarning, match="or nothing else"):
        whole = case.lens.run(case.prompt, [Knockout("all", "all")])
    close(whole.logits, case.logits, 1e-6)
    read = Read("pattern", case.self_attending[:1], rows=[0, 1])
    first = case.lens.run(case.prompt, [Knockout([0], [0, 1])], read=[read])
    pattern = first.reads["pattern", case.self_attending[0]][0]
    close(pattern[:, 0, 0], torch.ones(4))
    close(pattern[:, 1, 0], torch.zeros(4))
    close(pattern[:, 1, 1], torch.ones(4))


def test_the_kernel_leaves_a_row_without_attention_elsewhere():
    pattern = torch.tensor([[[[0.0, 1.0, 0.0], [0.25, 0.5, 0.25]]]])
    given = knockout(pattern, torch.tensor([[False, True, False]]))
    assert given.tolist() == [[[[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]]]
    assert torch.equal(knockout(pattern, torch.zeros(1, 3, dtype=torch.bool)), pattern)


def test_the_share_of_a_learned_sink_logit_is_kept_in_the_row():
    """Rows of such models sum to less than one; what is left is shared as before."""
    pattern = torch.tensor([[[[0.2, 0.3, 0.1]]]])
    given = knockout(pattern, torch.tensor([[False, False, True]]))
    assert float(given.sum()) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (Knockout("video", "question"), "Knockout's source 'video' selects no token of this prompt"),
        (Knockout([], "question"), "Knockout's source given positions selects no token of this prompt"),
        (Knockout("image", "video"), "touches nothing: rows 'video' select no token of this prompt"),
        (Knockout("image", "last", heads=[4]), "heads [4] are out of range: layers have 4 heads"),
        (Knockout("image", "last", layers=[5]), "layer 5 is out of range: the model has layers 0 to 4"),
        (Knockout("image", "last", layers=[-1]), "layer -1 is out of range"),
        (Knockout("imgae", "last"), "unknown row scope 'imgae', did you mean 'image'?"),
        (Knockout([27], "last"), "positions [27] lie outside the prompt, which has positions 0 to 26"),
    ],
)
def test_what_touches_nothing_or_is_not_there_is_refused(edit, text):
    case = planted("llava")
    with pytest.raises((InterventionError, HookError)) as caught:
        case.lens.run(case.prompt, [edit])
    assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_layers_whose_keys_are_not_the_prompt_are_refused():
    """Except that the image may be cut off where the keys are the pictures: see scoring/test_cross_attention.py."""
    for name, layer, source, why in (("qwen3_5", 0, "image", ""), ("mllama", 1, "question", "; the keys of cross")):
        case = planted(name)
        with pytest.raises(InterventionError, match=rf"layers \[{layer}\] have no self-attention heads{why}.*\n.*have"):
            case.lens.run(case.prompt, [Knockout(source, "last", layers=[layer])])


@pytest.mark.parametrize(
    ("center", "k", "n_layers", "expected"),
    [
        (10, 9, None, range(6, 15)),
        (10, 9, 12, range(6, 12)),
        (2, 9, None, range(7)),
        (5, 1, None, range(5, 6)),
        (5, 4, None, range(3, 7)),
        (0, 1, 3, range(1)),
    ],
)
def test_the_window_is_that_of_the_paper(center, k, n_layers, expected):
    """Layers max(0, l - k//2) .. l + ceil(k/2) - 1."""
    assert Knockout.window(center, k, n_layers) == expected


def test_the_reference_can_be_edited_before_the_softmax():
    """Guards the oracle: without an edit it gives the model's own logits, with one it does not."""
    case = planted("llava")
    reference = ScoreReference(case.model)
    close(reference.run(case.inputs), case.logits)
    with reference.editing(scores=lambda layer, scores, first: scores * 0.5):
        assert (reference.run(case.inputs) - case.logits).abs().max() > 1e-3
