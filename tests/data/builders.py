"""Small data sets in the published formats, with real pictures, that tests plant defects in."""

import json
from pathlib import Path

from PIL import Image

SIZE = (40, 30)


def png(path: Path, color="red", size=SIZE) -> Path:
    """A real picture; JPEG or PNG by its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def jsonl(path: Path, rows, end="\n") -> Path:
    """A row a line; texts are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text(end.join(lines) + end, newline="")
    return path


def pope_row(number: int, label="yes", image="COCO_val2014_000000016631.jpg", **changed) -> dict:
    thing = "person" if label == "yes" else "refrigerator"
    row = {"question_id": number, "image": image, "text": f"Is there a {thing} in the image?", "label": label}
    return row | changed


def pope_folder(root: Path, rows, name="coco_pope_adversarial.json") -> tuple[Path, Path]:
    """Annotations and pictures."""
    png(root / "val2014" / "COCO_val2014_000000016631.jpg")
    return jsonl(root / name, rows), root / "val2014"


MME_TEXT = (
    "Is there a refrigerator in this image? Please answer yes or no.\tYes\n"
    "Is there a donut in this image? Please answer yes or no.\tNo\n"
)


def mme_folder(root: Path, n=2) -> Path:
    """Two subtasks, one side by side and one split as the release's artwork."""
    for i in range(n):
        png(root / "existence" / f"00000000604{i}.jpg")
        (root / "existence" / f"00000000604{i}.txt").write_text(MME_TEXT)
        png(root / "artwork" / "images" / f"1000{i}.png")
        text = root / "artwork" / "questions_answers_YN" / f"1000{i}.txt"
        text.parent.mkdir(exist_ok=True)
        text.write_bytes(b"\xef\xbb\xbf" + MME_TEXT.replace("\n", "\r\n").encode() + b"\r\n")
    (root / "eval_tool").mkdir()
    return root


def mmvp_folder(root: Path, n=4, header="Index", lines=None) -> Path:
    """Rows 1 to n; each pair asks the same, answers differ."""
    for i in range(1, n + 1):
        png(root / "MMVP Images" / f"{i}.jpg", size=(20 + i, 20))
    asked = "Are the butterfly's wings closer to being open or closed?,(a) Open (b) Closed"
    rows = [f"{i},{asked},({'ab'[(i + 1) % 2]})" for i in range(1, n + 1)] if lines is None else lines
    (root / "Questions.csv").write_text("\n".join([f"{header},Question,Options,Correct Answer", *rows]) + "\n")
    return root


def reasons(data) -> dict[str, int]:
    """What was left out of an iteration with on_bad="skip"."""
    list(data)
    return dict(data.problems.by_reason)
