"""Data sets by name."""

import json

import pytest

from lmm_lens.data import named
from lmm_lens.data.names import KINDS
from lmm_lens.errors import ScoreError
from tests.data.builders import jsonl, mme_folder, mmvp_folder, pope_folder, pope_row

PUBLISHED = {
    "coco_captions",
    "cv_bench",
    "gqa",
    "mm_vet",
    "mmbench",
    "q_bench",
    "scienceqa",
    "seed_bench",
    "textvqa",
    "vizwiz",
    "vqav2",
}
"""Those that `test_choices.py` and `test_vqa.py` open."""


def test_every_reader_can_be_had_by_its_name(tmp_path):
    annotations, images = pope_folder(tmp_path, [pope_row(1)])
    options = {
        "pope": {"annotations": annotations, "images": str(images)},
        "mme": {"folder": mme_folder(tmp_path / "mme"), "subtasks": ["existence"]},
        "mmvp": {"folder": mmvp_folder(tmp_path / "mmvp")},
        "pointqa": {
            "annotations": jsonl(
                tmp_path / "p.jsonl",
                [{"question": "q", "answer": "x", "genome_id": "COCO_val2014_000000016631", "bbox": [0, 0, 1, 1]}],
            ),
            "images": images,
        },
        "table": {"source": jsonl(tmp_path / "t.jsonl", [{"question": "q", "answer": "x"}]), "image": None},
        "shapes": {"n": 3},
        "emoji": {"n": 3},
    }
    assert set(options) == set(KINDS) - PUBLISHED - {"lmms_eval"}  # in tests/harness
    for kind, given in options.items():
        data = named(kind, **given, on_bad="skip")
        assert list(data), kind
        assert data.settings["kind"] == kind
        assert json.loads(json.dumps(data.settings)) == data.settings
        assert str(tmp_path) not in json.dumps(data.settings)


def test_a_wrong_name_or_option_is_answered_with_the_right_ones():
    with pytest.raises(ScoreError, match="unknown data set 'pop', did you mean 'pope'\\?\n  valid: pope, mme, mmvp"):
        named("pop")
    with pytest.raises(ScoreError, match="unknown option of mme 'subtask', did you mean 'subtasks'"):
        named("mme", folder="x", subtask="OCR")
    with pytest.raises(ScoreError, match="data set 'pope' needs annotations and images\n  its options: annotations"):
        named("pope")
