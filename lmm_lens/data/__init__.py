"""Data sets: POPE, MME, MMVP, PointQA, any table, and the bundled world, all as `Sample` after `Sample`.

    data = pope("coco_pope_adversarial.json", "val2014", on_bad="skip")
    for sample in data.shuffled(0).take(100):
        said.append(lens.generate(sample.prompt(lens)).text[0])
        labels.append(sample.answer)
    print(data.problems)
    scores = binary_scores([yes_no(text) for text in said], labels)
    bootstrap(scores)["f1"]

A row that cannot be used is an error that names it, or is left out, named and counted; never silently dropped.
"""

from .benchmark_scores import BinaryScores, MMEScores, PairScores, binary_scores, mme_scores, mmvp_scores
from .dataset import DataSet
from .from_mme import mme
from .from_mmvp import mmvp
from .from_pointqa import pointqa
from .from_pope import pope
from .from_shapes import shapes
from .from_table import table
from .grading import letter, yes_no
from .names import named
from .problems import Problems
from .sample import Sample
from .tally import bootstrap

__all__ = [
    "BinaryScores",
    "DataSet",
    "MMEScores",
    "PairScores",
    "Problems",
    "Sample",
    "binary_scores",
    "bootstrap",
    "letter",
    "mme",
    "mme_scores",
    "mmvp",
    "mmvp_scores",
    "named",
    "pointqa",
    "pope",
    "shapes",
    "table",
    "yes_no",
]
