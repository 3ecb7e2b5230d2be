"""Directions against sums over single rows, known answers, and files."""

import pickle
import zipfile

import pytest
import torch

from lmm_lens import Direction, Lens, direction, shapes
from lmm_lens.errors import HookError, InterventionError, PromptError, ScoreError
from lmm_lens.steering.finding import first_component
from tests.support.cases import case, double
from tests.support.models import another, joined
from tests.support.oracle import spans
from tests.support.reference import Reference
from tests.support.shapes import unchecked


def mean_stream(family, inputs, role):
    """[layer, d_model], one row after the other."""
    reference = Reference(family.model)
    reference.run(inputs)
    rows = sorted(spans(inputs)[role][0])
    layers = range(family.n_layers)
    return torch.stack(
        [sum(reference.read("resid_post", layer)[0, row] for row in rows) / len(rows) for layer in layers]
    )


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3", "mllama"])
def test_it_is_the_difference_of_the_prompts_means(name):
    family = double(name)
    prompts = [family.inputs, another(family.inputs), another(family.inputs, seed=2)]
    wide = [{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()} for inputs in prompts]
    own = [family.lens.prompt(inputs=inputs) for inputs in wide]
    found = direction(family.lens, own[:1], own[1:])
    means = [mean_stream(family, inputs, "image") for inputs in wide]
    torch.testing.assert_close(found.values, (means[0] - (means[1] + means[2]) / 2).float(), atol=1e-6, rtol=1e-5)
    assert found.layers == tuple(range(family.n_layers))
    assert (found.method, found.rows, found.n_prompts) == ("mean_difference", "image", (1, 2))


def test_rows_of_a_padded_batch_count_as_prompts_of_their_own():
    family = case("llava")
    alone = [family.inputs, another(family.inputs)]
    prompts = [family.lens.prompt(inputs=inputs) for inputs in (*alone, another(family.inputs, seed=3))]
    batch = family.lens.prompt(inputs=joined(alone))
    given, expected = (
        direction(family.lens, with_, prompts[2], rows="question", layers=[1, 2]) for with_ in (batch, prompts[:2])
    )
    torch.testing.assert_close(given.values, expected.values, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(given.norms, given.values.norm(dim=1))
    assert given.n_prompts == (2, 1)
    assert given.layers == (1, 2)


def test_the_same_prompts_twice_give_the_direction_between_two_spans():
    family = double("llava")
    found = direction(family.lens, family.prompt, family.prompt, "image", rows_without="question")
    image, question = (mean_stream(family, family.inputs, role) for role in ("image", "question"))
    torch.testing.assert_close(found.values, (image - question).float(), atol=1e-6, rtol=1e-5)
    assert found.rows == "image and question"


def test_the_norms_of_the_stream_are_those_of_the_rows_without():
    family = case("llava")
    found = direction(family.lens, family.prompt, family.prompt, "last", rows_without="question")
    stream = family.lens.run(family.prompt, read=["resid_post"]).reads["resid_post", 1][0]
    rows = sorted(spans(family.inputs)["question"][0])
    assert float(found.stream_norms[1]) == pytest.approx(float(stream[rows].norm(dim=1).mean()), rel=1e-5)


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight", "remote"])
def test_every_backend_finds_the_same(backend):
    family = case("llava")
    other = family.lens.prompt(inputs=another(family.inputs))
    expected, given = (direction(lens, family.prompt, other, method="pca") for lens in family.lenses(backend))
    torch.testing.assert_close(given.values, expected.values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(given.stream_norms, expected.stream_norms, atol=1e-4, rtol=1e-4)


def test_samples_of_a_data_set_are_prompts():
    from lmm_lens.data import shapes as pictures_of_shapes

    lens = Lens.demo()
    samples = list(pictures_of_shapes(3, kinds=["color"]))
    given = direction(lens, samples[:2], samples[2:])
    expected = direction(lens, [each.prompt(lens) for each in samples[:2]], samples[2].prompt(lens))
    assert torch.equal(given.values, expected.values)


# ---------------------------------------------------------------------- the first component


def test_multiples_of_one_difference_give_that_difference():
    """D_i = c_i u: the component is u, and as long as the mean difference, mean(c) u."""
    way = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    differences = torch.stack([c * way for c in (2.0, -1.0, 5.0)])
    torch.testing.assert_close(first_component(differences), 2.0 * way)
    torch.testing.assert_close(first_component(differences[1:2]), -way)


def test_the_component_is_that_of_the_singular_value_decomposition():
    differences = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    _, _, vectors = torch.linalg.svd(differences.flatten(1))
    first = vectors[0]
    expected = (differences.flatten(1).mean(0) @ first) * first
    torch.testing.assert_close(first_component(differences).flatten(), expected)


def test_pairs_whose_differences_cancel_have_no_direction():
    way = torch.ones(1, 2, 3)
    with pytest.raises(InterventionError, match="cancel along their first component, so it has no sign"):
        first_component(torch.cat([way, -way]))


# ---------------------------------------------------------------------- the control


def test_a_random_direction_has_the_norms_and_nothing_else():
    given = Direction(torch.randn(4, 2000, generator=torch.Generator().manual_seed(0)), (0, 1, 2, 5))
    random = given.random_like(3)
    torch.testing.assert_close(random.norms, given.norms)
    assert torch.nn.functional.cosine_similarity(given.values, random.values).abs().max() < 0.1
    assert (random.layers, random.control) == (given.layers, 3)
    assert torch.equal(random.values, given.random_like(3).values)
    assert not torch.equal(random.values, given.random_like(4).values)


# ---------------------------------------------------------------------- files, tables, words


@pytest.fixture(scope="module")
def found():
    lens = Lens.demo()
    examples = shapes.examples(4, kinds=["color"], seed=3)
    prompts = [lens.prompt(each.question, images=each.image) for each in examples]
    return lens, direction(lens, prompts[:2], prompts[2:], layers=[1, 3])


def test_what_is_saved_is_read_back(found, tmp_path):
    lens, given = found
    for each in (given, given.random_like(2)):
        each.save(tmp_path / "way.safetensors")
        again = Direction.load(tmp_path / "way.safetensors", lens)
        assert torch.equal(again.values, each.values)
        assert torch.equal(again.stream_norms, each.stream_norms)
        assert repr(again) == repr(each)
        assert (again.layers, again.control, again.model) == (each.layers, each.control, each.model)
    assert not zipfile.is_zipfile(tmp_path / "way.safetensors")
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads((tmp_path / "way.safetensors").read_bytes())


def test_a_changed_file_and_another_model_are_refused(found, tmp_path):
    _, given = found
    path = tmp_path / "way.safetensors"
    given.save(path)
    with pytest.raises(ScoreError, match="was made with another model"):
        Direction.load(path, Lens.demo("plain"))
    bytes_ = bytearray(path.read_bytes())
    bytes_[-1] ^= 1
    path.write_bytes(bytes_)
    with pytest.raises(ScoreError, match="does not have the checksum it was written with"):
        Direction.load(path)
    with pytest.raises(ScoreError, match="there is no file of a direction"):
        Direction.load(tmp_path / "none.safetensors")


def test_what_it_says_of_itself(found):
    _, given = found
    assert repr(given).startswith(
        "Direction: mean difference of 2 prompt rows with and 2 without, over rows 'image'; 2 layers x 128, norms "
    )
    assert "of the stream's" in repr(given)
    assert repr(given.random_like(7)).startswith("Direction: random (seed 7), with the norms of: mean difference of 2")
    own = Direction(torch.ones(1, 4), (2,))
    assert repr(own) == "Direction: given; 1 layers x 4, norms 2 to 2"
    table = given.to_pandas()
    assert table["layer"].tolist() == [1, 3]
    assert table["share"].tolist() == pytest.approx((given.norms / given.stream_norms).tolist())
    assert "<table" in given._repr_html_()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda lens, p: direction(lens, p, p), "the direction is 0 in every layer: the two sets do not differ there"),
        (lambda lens, p: direction(lens, p, p, method="pca"), "the direction is 0 in every layer"),
        (lambda lens, p: direction(lens, [], p), "direction was given no prompts with"),
        (lambda lens, p: direction(lens, p, []), "direction was given no prompts without"),
        (lambda lens, p: direction(lens, p, p, method="means"), "unknown method of direction 'means'"),
        (lambda lens, p: direction(lens, [p, p], p, method="pca"), "given 2 and 1\n  method='mean_difference' takes"),
        (lambda lens, p: direction(lens, p, p, rows="video"), "rows 'video' select no token of prompt 0 of with_"),
        (lambda lens, p: direction(lens, p, p, rows="pictures"), "unknown row scope 'pictures'"),
        (lambda lens, p: direction(lens, p, p, layers=[9]), "layer 9 is out of range"),
        (lambda lens, p: Direction(torch.ones(2, 3), (1,)), "given [2, 3] for layers [1]"),
        (lambda lens, p: Direction(torch.full((1, 3), torch.nan), (1,)), "the direction is not finite"),
        (lambda lens, p: Direction(torch.ones(1, 3), (1,)).at(0), "no vector for layer 0\n  it has layers 1"),
    ],
)
def test_what_gives_no_direction_is_refused(make, text):
    family = case("llava")
    with pytest.raises((InterventionError, HookError)) as caught:
        make(family.lens, family.prompt)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("values", "layers", "norms", "text"),
    [
        (torch.ones(1, 4), (0.7,), None, "Direction: layers is a sequence of whole numbers"),
        (torch.ones(1, 4), (True,), None, "Direction: layers is a sequence of whole numbers"),
        (torch.ones(1, 2, 4), (1,), None, "one vector a layer, Float[layer, d_model], given [1, 2, 4] for layers [1]"),
        ([[1.0]], (1,), None, "one vector a layer, Float[layer, d_model], given list for layers [1]"),
        (torch.ones(1, 4), (1,), torch.ones(3), "stream_norms are one number a layer, given [3] for layers [1]"),
    ],
)
def test_vectors_of_ones_own_that_are_none_are_refused(values, layers, norms, text):
    with pytest.raises(InterventionError) as caught, unchecked(Direction):
        Direction(values, layers, stream_norms=norms)
    assert text in str(caught.value)


def test_what_is_no_prompt_is_refused(lens):
    with pytest.raises(PromptError, match=r"expected a prompt made by lens.prompt\(...\), given str"):
        direction(lens, "with a dog", "without")
