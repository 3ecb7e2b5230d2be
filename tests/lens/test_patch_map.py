"""Which patches a visual token is made of: as the projector of each kind puts them together."""

import pytest

from lmm_lens import AblateTokens
from lmm_lens.bundled import shapes
from lmm_lens.errors import HookError, ModelError
from tests.support.families import lens_of, prompt_of


def grids(side, merge, prefix=0):
    """A square of patches, row by row behind a prefix, merged into blocks, row by row."""
    blocks = range(0, side, merge)
    return [
        [(0, prefix + (top + i) * side + left + j) for i in range(merge) for j in range(merge)]
        for top in blocks
        for left in blocks
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llava", [[(0, 1 + patch)] for patch in range(16)]),  # behind a class token
        ("gemma3", grids(4, 2)),  # pooled
        ("internvl", grids(6, 2, prefix=1)),  # pixels shuffled, behind a class token
        ("idefics3", grids(6, 2)),
        ("qwen2_vl", [[(0, 4 * token + i) for i in range(4)] for token in range(6)]),  # patches stand in blocks already
    ],
)
def test_patches_are_put_together_as_the_family_does(name, expected):
    prompt = prompt_of(name)
    found = lens_of(name).vision.patches(prompt)
    visual = prompt.mask("visual")[0].nonzero().flatten().tolist()
    assert [found.of(position) for position in visual[: len(expected)]] == expected
    assert not found.is_mixed
    for position, parts in zip(visual, expected, strict=False):
        for row, token in parts:
            assert found.seen_from(token, row) == [(0, position)]


def test_a_q_former_mixes_all():
    found = lens_of("blip-2").vision.patches(prompt_of("blip-2"))
    assert found.is_mixed
    assert repr(found) == "PatchMap: 8 visual tokens of 1 x 17 tokens of the tower, all mixed"


def test_the_rows_of_a_batch_are_counted_on(lens):
    examples = shapes.examples(2, seed=3)
    prompt = lens.prompt([each.question for each in examples], images=[each.image for each in examples])
    found = lens.vision.patches(prompt)
    assert found.made_of.shape == (72, 2, 37)
    first = int(prompt.mask("visual")[1].nonzero()[0])
    assert found.of(first, row=1) == [(1, 1)]
    assert found.seen_from(1, 1) == [(1, first)]
    with pytest.raises(HookError, match="position 0 of batch row 1 holds no visual token"):
        found.of(0, row=1)
    for ask, said in (
        (lambda: found.of(first, row=2), "batch row 2 is out of range: there are 0 to 1"),
        (lambda: found.of(first, row=-1), "batch row -1 is out of range"),
        (lambda: found.seen_from(1, 2), "row of the tower 2 is out of range: there are 0 to 1"),
        (lambda: found.seen_from(-1), "token of the tower -1 is out of range: there are 0 to 36"),
    ):
        with pytest.raises(HookError, match=said):
            ask()


def test_it_is_of_the_model_as_it_is_in_a_block_too(lens):
    """An edit that writes over visual tokens cuts them off from the tower."""
    example = shapes.examples(1, seed=3)[0]
    prompt = lens.prompt(example.question, images=example.image)
    expected = lens.vision.patches(prompt).made_of
    with lens.apply(AblateTokens("image")):
        assert bool((lens.vision.patches(prompt).made_of == expected).all())
        lens.run(prompt)


def test_without_such_a_tower_it_says_so():
    with pytest.raises(HookError, match="take nothing from its vision tower: layers of cross-attention read it"):
        lens_of("mllama").vision.patches(prompt_of("mllama"))
    with pytest.raises(ModelError, match="no vision tower with attention heads"):
        lens_of("fast_vlm").vision  # noqa: B018
