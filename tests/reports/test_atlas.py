"""The atlas in the documentation is the one that the committed records make."""

from pathlib import Path

from lmm_lens.reports.atlas import write_atlas
from lmm_lens.studies import Study

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tutorials" / "results" / "studies"


def test_the_page_in_the_docs_is_made_of_the_committed_records(tmp_path):
    made = write_atlas([RESULTS / "heads", RESULTS / "sinks"], tmp_path / "atlas.html")
    assert made.read_text() == (ROOT / "docs" / "atlas.html").read_text(), "make studies writes it anew"


def test_the_write_ups_say_what_the_records_say():
    for kind in ("heads", "sinks"):
        study = Study.load(RESULTS / kind)
        text = (RESULTS / kind / "report.md").read_text()
        for row in study.claims.to_dict("records"):
            assert f"| {row['claim']} | {row['model']} | {row['data']} | **{row['verdict']}** |" in text
