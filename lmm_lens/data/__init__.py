"""Data sets: POPE, MME, MMVP, PointQA, eleven more, tasks of lmms-eval, any table, the bundled world, as `Sample`s.

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
from .chair import Chair, chair, read_synonyms
from .dataset import DataSet
from .from_captions import coco_captions, mm_vet, write_mm_vet
from .from_choices import cv_bench, mmbench, q_bench, scienceqa, seed_bench
from .from_emoji import emoji
from .from_lmms_eval import lmms_eval
from .from_mme import mme
from .from_mmvp import mmvp
from .from_pointqa import pointqa
from .from_pope import pope
from .from_shapes import shapes
from .from_table import table
from .from_vqa import gqa, textvqa, vizwiz, vqav2
from .grading import choice, letter, yes_no
from .names import named
from .problems import Problems
from .sample import Sample
from .tally import bootstrap
from .vqa_score import vqa_accuracy

__all__ = [
    "BinaryScores",
    "Chair",
    "DataSet",
    "MMEScores",
    "PairScores",
    "Problems",
    "Sample",
    "binary_scores",
    "bootstrap",
    "chair",
    "choice",
    "coco_captions",
    "cv_bench",
    "emoji",
    "gqa",
    "letter",
    "lmms_eval",
    "mm_vet",
    "mmbench",
    "mme",
    "mme_scores",
    "mmvp",
    "mmvp_scores",
    "named",
    "pointqa",
    "pope",
    "q_bench",
    "read_synonyms",
    "scienceqa",
    "seed_bench",
    "shapes",
    "table",
    "textvqa",
    "vizwiz",
    "vqa_accuracy",
    "vqav2",
    "write_mm_vet",
    "yes_no",
]
