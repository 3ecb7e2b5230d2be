"""Every notebook runs anew, top to bottom, in a kernel of its own; a claim of each story is read off its outputs."""

import ast
import re
from collections.abc import Callable

import pytest

from tests.support.notebooks import PICTURES, code_cells, number, outputs, pictures
from tutorials import run

pytestmark = pytest.mark.story

NOTEBOOKS = {number(path): path for path in run.notebooks()}
Said = Callable[[str], str]


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])", text)]


def row(text: str, name: str) -> list[float]:
    """The numbers of the first line that has this name, behind the name."""
    line = next(line for line in text.splitlines() if name in line)
    return numbers(line.split(name, 1)[1])


def where_it_looks(said: Said) -> None:
    assert "image         36 tokens" in said("masks")
    heads = said("nonsink")
    assert "top 8 by non-sink   L1H4" in heads
    assert row(heads, "of that on sinks")[0] > 0.1
    by = {name: next(line for line in heads.splitlines() if f"by {name}" in line) for name in ("weight", "non-sink")}
    assert "L2H1" in by["weight"]  # parks on sinks
    assert "L2H1" not in by["non-sink"]
    (even,) = re.findall(r"give the box (\S+)", said("region"))
    best = numbers(said("region").splitlines()[-5])
    assert best[1:3] == [1, 4]
    assert best[-1] > 4 * float(even)
    best_of = [row(said("depth"), part)[-1] for part in ("early", "middle", "late")]
    assert best_of == sorted(best_of, reverse=True)


def what_heads_do(said: Said) -> None:
    table = said("scopes")
    assert row(table, "nothing ablated")[0] > 0.95
    assert row(table, "these 8 heads")[0] < 0.5
    assert row(table, "random, same layers")[0] > 0.8
    assert row(said("curve"), "p =")[0] < 0.05
    layers = [numbers(line)[1:] for line in said("layers").splitlines()[-6:]]
    assert layers[0][0] < 0.3  # layer 0 reads the words of both kinds of questions
    assert layers[0][1] < 0.3
    assert layers[1][0] < 0.85  # layer 1 reads the picture
    assert layers[1][1] > 0.95
    assert min(layers[-1]) > 0.95  # the last layer's heads are not needed
    alone, attributed = row(said("attribution"), "L0H7: alone")[:2]
    assert attributed > alone + 0.2  # stands in for others


def a_circuit(said: Said) -> None:
    assert set(said("circuit").split()[-5:]) == {"L1H4", "L2H5", "L0H6", "L0H2", "L0H7"}
    kept = row(said("faithfulness"), "the circuit alone:")
    assert kept[1] > 0.95
    assert 0.9 < kept[2] < 1.1
    assert max(row(said("faithfulness"), "random sets:")) < 0.2
    assert row(said("faithfulness"), "everything but the circuit:")[1] < 0.4
    assert row(said("route-level"), "routes alone:")[0] > 0.9
    assert row(said("route-level"), "object → last:")[0] < 0.3
    assert row(said("hooks"), "largest difference of logits:") == [0.0]
    assert row(said("attribution"), "over all heads:")[0] > 0.8


def sinks_and_var(said: Said) -> None:
    assert "dimensions [5, 77]" in said("find")
    assert said("none").count("no massive activation") == 2
    assert "InterventionError" in said("none")
    before, after = row(said("one-row"), "before"), row(said("one-row"), "after VAR")
    assert before[2] == after[2] == 1.0
    assert after[0] == pytest.approx(0.4 * before[0], abs=0.002)  # sinks keep 1 - p
    assert after[1] > before[1]
    assert row(said("asked"), "sinks masked")[1] > -0.05
    change, low, high = row(said("effect"), "VAR, rho 0.5")[1:4]
    assert low <= 0 <= high
    assert abs(change) < 0.02
    (edits,) = re.findall(r"by layer: (\{.*?\})", said("report"))
    assert set(ast.literal_eval(edits)) <= {2, 3, 4}  # neither the first two layers nor the last


def on_a_server(said: Said) -> None:
    assert "below 1e-5: True" in said("scores")
    assert "asked to import: []" in said("scores")
    assert said("edits").count("as here: True") == 4
    assert "RemoteError: the connection to ... was lost" in said("lost")
    assert "again sent 2 jobs, for 40 prompts in 4 batches" in said("lost")
    assert "gradients do not travel" in said("refused")


def an_adapter(said: Said) -> None:
    assert "PromptError" in said("refused")
    assert "no whole number of pictures" in said("wrong")
    assert "{'image': 36, 'marker': 6, 'text': 9}" in said("adapter")
    misplaced = [numbers(line.split(":")[1])[0] for line in said("check").splitlines()]
    assert misplaced[:2] == [0, 0]
    assert min(misplaced[2:]) > 0
    assert said("fixed").count(": 0 of 36 tokens misplaced") == 4
    assert "every edit landed" in said("edits")
    assert said("edits").count("True") == 4


def a_table(said: Said) -> None:
    assert "119 samples; 1 bad row left out" in said("bad")
    assert "p (Holm)" in said("choose")
    assert "\x1b" not in said("choose") + said("confirm")
    assert "L1H4" in said("chosen")
    assert "effects.csv" in said("files")
    intact, without = row(said("table"), "yes_ratio")[0], row(said("table"), "yes_ratio")[3]
    assert intact > 0.4
    assert without < 0.1  # as with a blank picture
    assert "\\toprule" in said("latex")
    assert row(said("pictures"), "share 0 of the four:")[1] < 0.1


def what_tokens_say(said: Said) -> None:
    assert "LogitLens: 36 tokens after layers 0 to 5" in said("one")
    table = [numbers(line) for line in said("colours").splitlines() if re.match(r"\d ", line)]
    assert len(table) == 6
    assert all(at_thing > elsewhere for _, at_thing, elsewhere, *_ in table)  # ranks: 1 is the likeliest
    assert all(at_thing < elsewhere + 0.1 for *_, at_thing, elsewhere in table)
    fits = [numbers(line) for line in said("translate").splitlines() if re.match(r" +\d ", line)]
    assert all(fit > plain and fit > 0.8 for _, fit, plain in fits)
    assert "6 layers" not in said("latent")
    assert "by 31 words of 7 sentences" in said("latent")
    parts = {name: row(said("attribute"), name)[0] for name in ("from image", "from question", "feed-forward parts")}
    assert parts["from image"] > 2
    assert abs(parts["from question"]) < 0.3
    whole = row(said("attribute"), "logit difference")[0]
    assert parts["from image"] + parts["feed-forward parts"] == pytest.approx(whole, abs=0.4)
    assert float(said("attribute").split("largest left over:")[1].split()[0]) < 1e-4
    assert said("look").startswith("L1H4: its most attended patch lies on the thing in 60 of 60")


def from_pixels(said: Said) -> None:
    heads = [numbers(line) for line in said("heads").splitlines() if re.match(r" *L\dH\d", line)]
    assert len(heads) == 12
    assert all(0 < entropy < 3.7 and 0.2 < distance < 0.5 for entropy, distance, _ in heads)
    assert "patches of token 21" in said("maps")
    assert "VisionSinks: none" in said("registers")
    assert row(said("registers"), "over the median:")[0] < 4
    assert "1 to 1 each" in said("path")
    shares = [numbers(line) for line in said("deletion").splitlines()[1:9]]
    assert sum(on_thing > 3 * area for on_thing, area, _, _ in shares) >= 7
    assert sum(gain > 1 for _, _, gain, _ in shares) >= 6
    assert abs(row(said("random"), "untrained model's map:")[0]) < 0.6
    table = {kind: row(said("all"), kind) for kind in ("plain", "without all heads of the tower", "visual tokens")}
    assert table["plain"][0] == table["without all heads of the tower"][0] == 1
    assert table["without all heads of the tower"][2] < table["plain"][2]
    assert max(table["visual tokens"]) < 0.5


def a_faithful_circuit(said: Said) -> None:
    lost = row(said("complete"), "falls by")[0]
    assert row(said("complete"), "eap-ig, 5 steps  adds up to")[0] == pytest.approx(lost, rel=0.05)
    assert row(said("complete"), "eap              adds up to")[0] < 0.6 * lost
    curve = {int(line[0]): line[1:] for line in map(numbers, said("curve").splitlines()) if len(line) == 7}
    assert curve[32][0] > 0.9
    assert curve[32][3] < 0.2  # random circuits
    assert curve[16232][0] == 1
    assert "12 of these 12 pairs are among those the circuit was found on" in said("same")
    assert "24 of 16,232 edges keep" in said("graph")
    assert "2 heads keep 0.9" in said("heads")
    assert row(said("heads"), "by attribution")[0] > 40
    crossed = {int(line[0]): line[1] for line in map(numbers, said("questions").splitlines()) if len(line) == 2}
    assert max(crossed[n] for n in (24, 128, 512)) < 0.05
    assert "L1H4" in said("scores")


def a_reader_that_sees(said: Said) -> None:
    assert row(said("heads"), "rank correlation over 261 heads:")[0] > 0.7
    (same,) = re.findall(r"(\d+) of the 20 heads with most attention are the same", said("heads"))
    assert int(same) >= 8
    lines = re.findall(r"^\d +(picture|words) +(.+?) +(\d\.\d+)", said("together"), re.MULTILINE)
    table = {(shown, name): float(accuracy) for shown, name, accuracy in lines}
    assert table["picture", "the 20 that look most"] < 0.4
    assert table["picture", "random beside those that look most"] > 0.8
    assert table["words", "the 20 that look most"] > 0.5
    assert "dimensions [507]" in said("sink")
    assert "1.0 text and 0.0 visual sinks a prompt in layers 12 to 28" in said("sink")
    moved = {line[0]: line[-1] for line in map(numbers, said("var").splitlines()[1:])}
    assert moved[6] < 0.1 * moved[5]  # the control in all heads has little to give


STORIES = {
    "01": where_it_looks,
    "02": what_heads_do,
    "03": a_circuit,
    "04": sinks_and_var,
    "05": on_a_server,
    "06": an_adapter,
    "07": a_table,
    "08": what_tokens_say,
    "09": from_pixels,
    "10": a_faithful_circuit,
    "11": a_reader_that_sees,
}


def test_every_notebook_has_its_story():
    assert set(STORIES) == set(NOTEBOOKS)


LONGEST = "11"  # half of all the time: were it not begun first, nothing would run beside it in the end


@pytest.mark.parametrize("which", sorted(STORIES, key=lambda which: which != LONGEST))
def test_it_runs_anew_and_its_story_holds(which):
    notebook = run.executed(NOTEBOOKS[which])
    assert [output for output in outputs(notebook) if output.get("name") == "stderr"] == []
    assert pictures(notebook) == PICTURES[which]
    named = dict(zip((cell.id for cell in code_cells(notebook)), run.texts(notebook), strict=True))
    STORIES[which](lambda name: named[f"code-{name}"])
