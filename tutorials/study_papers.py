"""The two papers' studies on the bundled models, by the commands that anyone runs, and their atlas.

Run with `make studies`, and as `study_papers.py emoji` where the packages of lmm-lens[emoji] are installed: writes
results/studies and the page docs/atlas.html. What was killed goes on where it was. On two cores that others used too,
each took eight minutes.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from lmm_lens.reports.atlas import write_atlas
from lmm_lens.studies import Study

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "studies"
COMMAND = "from lmm_lens.cli import main; main()"


def main() -> None:
    which = "emoji-" if sys.argv[1:] == ["emoji"] else ""
    for kind in ("heads", "sinks"):
        runs = HERE.parent / "build" / f"study-{which}{kind}"
        config = HERE / "studies" / f"{which}{kind}.yaml"
        subprocess.run([sys.executable, "-c", COMMAND, "study", kind, config, "--out", runs], check=True)
        results = RESULTS / kind
        for model in (runs / "models").iterdir():
            (results / model.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(model / "study.json", results / model.name)
        Study.load(results).write(results)
        for table in results.glob("*.csv"):  # the records hold these numbers already
            table.unlink()
    write_atlas([RESULTS / "heads", RESULTS / "sinks"], HERE.parent / "docs" / "atlas.html")


if __name__ == "__main__":
    main()
