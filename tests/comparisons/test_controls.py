"""Controls in a table of ablations."""

from lmm_lens import HeadSet, ablation_table
from lmm_lens.bundled import shapes


def test_a_control_that_must_overlap_says_by_how_much(lens):
    """Six of eight heads of a layer leave two others, so four of each draw are of the set."""
    example = shapes.examples(1, seed=3)[0]
    prompt = lens.prompt(example.question, images=example.image)
    crowded = HeadSet([(3, head) for head in range(6)], lens.n_layers, lens.n_heads)
    settings = {"rows": ("last",), "n_controls": 2}
    table = ablation_table(lens, [prompt], [example.answer], crowded, **settings, disjoint="most")
    assert table["condition"].tolist()[1:] == ["these 6 heads", "random, same layers, 4 of these in a draw"]
    few = ablation_table(lens, [prompt], [example.answer], crowded[:2], **settings, disjoint="most")
    assert few["condition"].tolist()[1:] == ["these 2 heads", "random, same layers"]
