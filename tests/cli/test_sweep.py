"""`lmm-lens sweep`: its numbers are those of `head_effects`, it goes on where it was, and it refuses what it must."""

import functools
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
import yaml

from lmm_lens import HeadSet, Lens, head_effects, head_means, score_heads
from lmm_lens.bundled import shapes
from lmm_lens.cli.sweep_config import SweepConfig, heads_from
from lmm_lens.data import named, table
from lmm_lens.effects.scores import KIND, HeadEffects
from lmm_lens.errors import LensError
from lmm_lens.runs import RunFolder
from lmm_lens.statistics import control_test

SMALL = {"kind": "shapes", "n": 10, "kinds": ["color", "exist"]}
HEADS = [[1, 4], [3, 4], [2, 5]]


@pytest.fixture
def config(tmp_path):
    """Writes a config of three heads on ten questions, into the folder "out" unless told otherwise; gives its path."""

    def write(**changes):
        values = {"model": "demo", "data": SMALL, "heads": HEADS, "out": str(tmp_path / "out"), **changes}
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write


def refused(result, *texts):
    assert result.status == 2
    assert result.err.startswith("error:")
    assert "Traceback" not in result.err + result.out
    for text in texts:
        assert text in result.err
    assert len(result.err.strip().splitlines()) <= 3


def rows_of(text: str) -> list[list[str]]:
    """The cells of the table rows that begin with a head."""
    lines = [line for line in text.splitlines() if re.match(r"\W+L\d+H\d+", line)]
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines]


# ---------------------------------------------------------------------- what it computes and writes


def test_a_sweep_prints_the_largest_effects_with_their_statistics(cli, config, lens, tmp_path):
    data = {**SMALL, "n": 16}  # with ten prompts no p is small enough for Holm's correction of 48
    result = cli("sweep", config(data=data, heads="all", rows="all", metric="logit_difference", seed=3))
    assert result.status == 0
    expected = head_effects(lens, named(**data), "zero", "all", "logit_difference").to_pandas(seed=3)
    printed = rows_of(result.out)
    assert [row[0] for row in printed] == expected["unit"].tolist()[:10]
    for row, (_, right) in zip(printed, expected.iterrows(), strict=False):
        low, high = row[2].split(" to ")
        shown = [float(x) for x in (row[1], low, high, *row[3:])]
        np.testing.assert_allclose(shown, right[["effect", "low", "high", "p", "p_holm", "q_bh"]].tolist(), rtol=0.06)
    n_found = int((expected["p_holm"] < 0.05).sum())
    words = " ".join(result.out.split())
    n_helping = int(((expected["p_holm"] < 0.05) & (expected["effect"] > 0)).sum())
    assert n_helping > 0
    assert f"{n_found} of 48 heads have an effect" in words
    assert f"{n_helping} help, {n_found - n_helping} hurt; {int((expected['q_bh'] < 0.05).sum())} by" in words
    for text in ("zero: z is set to 0", "16 from shapes", "no bad rows", "16 of 16 answered rightly"):
        assert text in words


def test_the_folder_holds_config_table_figures_and_page(cli, config, tmp_path):
    result = cli("sweep", config())
    out = tmp_path / "out"
    names = {"config.yaml", "effects", "effects.csv", "report.html"}
    assert {path.name for path in out.iterdir()} == names | {
        "effect_map.png",
        "effects_by_layer.png",
        "sorted_effects.png",
    }
    assert str(out / "report.html") in result.out
    written = pandas.read_csv(out / "effects.csv")
    expected = HeadEffects.open(out / "effects").to_pandas()
    assert written["unit"].tolist() == expected["unit"].tolist()
    np.testing.assert_allclose(written["p_holm"], expected["p_holm"])
    stored = yaml.safe_load((out / "config.yaml").read_text())
    assert (stored["data"], stored["heads"], stored["rows"]) == (SMALL, HEADS, "last")
    assert "out" not in stored


def test_flags_override_the_file_entry_by_entry(cli, config, tmp_path):
    flags = ["--data-option", "n=4", "--data-option", "kinds=[shape]", "--heads", "layers: [2]", "--metric", "accuracy"]
    flags += ["--rows", "after_image", "--ablation", "uniform", "--n", 3, "--seed", 7, "--out", tmp_path / "other"]
    result = cli("sweep", config(), *flags)
    assert result.status == 0
    stored = yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())
    assert stored["data"] == {"kind": "shapes", "n": 4, "kinds": ["shape"]}
    assert (stored["heads"], stored["metric"], stored["rows"]) == ({"layers": [2]}, "accuracy", "after_image")
    assert (stored["ablation"], stored["n"], stored["seed"]) == ("uniform", 3, 7)
    effects = HeadEffects.open(tmp_path / "other" / "effects")
    assert (effects.n_prompts, effects.ablation, effects.rows) == (3, "uniform", "after_image")
    assert str(effects.units[0]) == "L2H0"
    assert len(effects.units) == 8
    assert not (tmp_path / "out").exists()


def test_another_kind_of_data_drops_the_options_of_the_one_before(cli, config, picture, tmp_path):
    source = tmp_path / "asked.jsonl"
    row = '{"question": "what color is the circle?", "answer": "red", "image": "picture.png"}\n'
    source.write_text(2 * row + '{"question": "what color?", "answer": "red", "image": "gone.png"}\n')
    options = ["--data", "table", "--data-option", f"source={source}", "--data-option", f"images={tmp_path}"]
    options += ["--data-option", "name=my [red] table"]
    result = cli("sweep", config(), *options, "--data-option", "on_bad=skip")
    assert result.status == 0
    assert "2 from my [red] table" in result.out
    assert "1 bad row left out: missing picture 1" in result.out
    assert "row 3 (asked.jsonl line 3)" in " ".join(result.out.split())
    assert HeadEffects.open(tmp_path / "out" / "effects").ids == tuple(
        sample.id for sample in table(source, images=tmp_path, name="my [red] table", on_bad="skip")
    )
    refused(
        cli("sweep", config(), *options, "--out", tmp_path / "strict"), "row 3 (asked.jsonl line 3)", 'on_bad="skip"'
    )


@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_ablations_that_need_a_reference_get_it(cli, config, lens, tmp_path, ablation):
    from lmm_lens import blank_images

    assert cli("sweep", config(ablation=ablation)).status == 0
    prompts = [sample.prompt(lens) for sample in named(**SMALL)]
    reference = {"mean": head_means(lens, prompts), "resample": lambda prompt: blank_images(lens, prompt)}[ablation]
    heads = HeadSet(HEADS, 6, 8)
    expected = head_effects(lens, named(**SMALL), ablation, heads=heads, reference=reference)
    given = HeadEffects.open(tmp_path / "out" / "effects")
    np.testing.assert_array_equal(given.per_prompt, expected.per_prompt)
    assert float(expected.per_prompt.abs().max()) > 0.01


def test_resampling_needs_pictures(cli, config):
    text = {"kind": "shapes", "n": 4, "kinds": "arith"}
    refused(cli("sweep", config(ablation="resample", data=text)), "with a blank picture, and a prompt has none")
    refused(cli("sweep", config(ablation="resample", ray=2)), "does not go with ray: leave ray out")


# ---------------------------------------------------------------------- the comparison with random heads


def test_chosen_heads_are_compared_with_random_ones_ablated_at_once(cli, config, lens, tmp_path):
    result = cli("sweep", config(controls={"number": 9, "seed": 4}, rows="all"))
    assert result.status == 0
    chosen = HeadSet(HEADS, 6, 8)
    sets = [chosen, *(chosen.random_like(seed, disjoint=False) for seed in range(4, 13))]
    each = head_effects(lens, named(**SMALL), "zero", "all", heads=sets).per_prompt
    test = control_test(each[:, 0], each[:, 1:])
    words = " ".join(result.out.split())
    assert f"The 3 chosen heads ablated at once: {test.effect.mean:+.3g}" in words
    assert f"9 random sets in the same layers: mean {test.null.mean():+.3g}" in words
    assert f"({test.difference.low:+.3g} to {test.difference.high:+.3g}), p {test.p:.2g}" in words
    assert (tmp_path / "out" / "against_random.png").is_file()


def test_controls_can_be_added_to_a_finished_sweep(cli, config, tmp_path):
    cli("sweep", config())
    before = (tmp_path / "out" / "effects" / "manifest.json").read_bytes()
    result = cli("sweep", tmp_path / "out" / "config.yaml", "--controls", 3)
    assert result.status == 0
    assert "3 random sets in the same layers" in " ".join(result.out.split())
    assert (tmp_path / "out" / "effects" / "manifest.json").read_bytes() == before
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["controls"] == {"number": 3, "seed": 0}


def test_random_sets_of_whole_layers_are_refused(cli, config, tmp_path):
    for heads in ("all", {"layers": [1, 2]}):
        refused(cli("sweep", config(heads=heads, controls={"number": 3})), "which are whole layers")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- going on


def test_an_interrupted_sweep_goes_on_and_ends_with_the_same_numbers(cli, config, lens, tmp_path):
    whole = head_effects(lens, named(**SMALL), heads=HeadSet(HEADS, 6, 8), folder=tmp_path / "whole")
    out = tmp_path / "out"
    cli("sweep", config())
    shutil.rmtree(out / "effects" / "parts")
    (out / "effects" / "state.json").unlink()
    done = RunFolder.open(tmp_path / "whole")
    with RunFolder(out / "effects", KIND, done.about) as run:  # what a killed process leaves: some parts and no more
        run.write(0, [done.key(i) for i in range(4)], {name: x[:4] for name, x in done.tensors().items()})
    shown = cli("report", out)
    assert (shown.status, "4 from shapes, the sweep is not finished" in shown.out) == (0, True)
    assert "not read to its end" in shown.out
    assert cli("sweep", out / "config.yaml").status == 0
    continued = HeadEffects.open(out / "effects")
    assert RunFolder.open(out / "effects").finished
    assert continued.ids == whole.ids
    np.testing.assert_array_equal(continued.per_prompt, whole.per_prompt)


@pytest.mark.long
def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(config, tmp_path):
    path = config(heads="all", rows="all", data={"kind": "shapes", "n": 300})
    folder = tmp_path / "out" / "effects"
    command = [Path(sys.executable).with_name("lmm-lens"), "sweep", path]
    # not a fork of this process, which may not load in threads; and hearing what a shell may have told tests not to
    hearing = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    sweep = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=hearing)
    try:
        while not (folder / "manifest.json").exists() and sweep.poll() is None:
            time.sleep(0.05)
        time.sleep(1.5)  # in the middle of its prompts, some hundred by then on an idle machine
        sweep.send_signal(signal.SIGINT)
        said, _ = sweep.communicate()
    finally:
        sweep.kill()
        sweep.wait()
    assert sweep.returncode == 130
    assert f"go on with: lmm-lens sweep {tmp_path / 'out' / 'config.yaml'}" in said
    left = RunFolder.open(folder)
    assert left.n_items < 300
    assert not left.finished


def test_the_folder_of_another_sweep_is_refused_and_left_as_it_is(cli, config, tmp_path):
    cli("sweep", config())
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file() and p.name != "lock"}
    refused(cli("sweep", config(), "--ablation", "uniform"), "belongs to another run", 'ablation: "zero" there')
    refused(cli("sweep", config(), "--data-option", "seed=1"), "belongs to another run", "data.seed: 0 there, 1 here")
    assert {p: p.read_bytes() for p in before} == before


def test_a_folder_of_other_things_is_refused(cli, config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("text")
    refused(cli("sweep", config(), "--out", tmp_path / "mine"), "holds other things and no sweep", "new or an empty")
    refused(cli("sweep", config(), "--out", tmp_path / "mine" / "thesis.tex"), "is a file")
    refused(cli("report", tmp_path / "mine"), "is no folder of a sweep", "manifest.json")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_run_folder_of_python_has_a_report_too(cli, lens, tmp_path):
    head_effects(lens, named(**SMALL), heads=HeadSet(HEADS, 6, 8), folder=tmp_path / "run")
    result = cli("report", tmp_path / "run")
    assert result.status == 0
    assert {row[0] for row in rows_of(result.out)} == {"L1H4", "L3H4", "L2H5"}
    assert (tmp_path / "run" / "report.html").is_file()
    assert head_effects(lens, named(**SMALL), heads=HeadSet(HEADS, 6, 8), folder=tmp_path / "run").n_prompts == 10


# ---------------------------------------------------------------------- the config


def test_heads_of_a_config(lens, tmp_path):
    example = shapes.examples(1, seed=5)[0]
    scores = score_heads(lens, lens.prompt(example.question, images=example.image), "nonsink_mass")
    scores.save(tmp_path / "scores.safetensors")
    assert heads_from("all", lens) == HeadSet.all(6, 8)
    assert heads_from({"layers": [4, 1]}, lens) == HeadSet.all(6, 8, [1, 4])
    assert heads_from([[3, 1], (0, 2)], lens) == HeadSet([(3, 1), (0, 2)], 6, 8)
    assert list(heads_from({"top": 3, "of": tmp_path / "scores.safetensors"}, lens)) == list(scores.top(3))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"heds": "all"}, "unknown key of the config 'heds', did you mean 'heads'?\n  valid: model, dtype"),
        ({"controls": {"count": 3}}, "unknown key of controls 'count'\n  valid: number, seed"),
        ({"controls": 3}, "controls must be {number: ..., seed: ...}, given 3"),
        ({"controls": {"number": -1}}, "controls: number must be a whole number of at least 0, given -1"),
        ({"ray": {"worker": 2}}, "unknown key of ray 'worker', did you mean 'workers'?"),
        ({"ray": 0}, "number of Ray workers of at least 1, given 0"),
        ({"n": 0}, "n must be a whole number of at least 1, given 0"),
        ({"n": True}, "n must be a whole number of at least 1, given True"),
        ({"seed": "a"}, "seed must be a whole number of at least 0, given 'a'"),
        ({"model": None}, "model must be a text, given None"),
        ({"data": "pope"}, "data must have a kind and that kind's options, given 'pope'"),
        ({"heads": "some"}, "heads must be all, {layers: [2, 3]}"),
        ({"heads": []}, "heads must be all, {layers: [2, 3]}"),
        ({"heads": [[1, 2, 3]]}, "heads must be all, {layers: [2, 3]}"),
        ({"heads": {"top": 3}}, "heads must be all, {layers: [2, 3]}"),
        ({"heads": {"layers": 3}}, "heads must be all, {layers: [2, 3]}"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(values, text):
    with pytest.raises(LensError) as caught:
        SweepConfig.from_values(values)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ({"data": {"kind": "pop"}}, ["unknown data set 'pop', did you mean 'pope'?"]),
        ({"data": {"kind": "shapes", "m": 3}}, ["unknown option of shapes 'm'", "valid: n, seed, kinds"]),
        ({"metric": "logprob"}, ["unknown metric 'logprob', did you mean 'log_prob'?"]),
        ({"ablation": "nil"}, ["unknown ablation mode 'nil'", "valid: zero, mean"]),
        ({"dtype": "float99"}, ["unknown dtype 'float99'"]),
        ({"backend": "jax"}, ["unknown backend 'jax'"]),
        ({"heads": [[9, 0]]}, ["layer 9 is out of range: the model has layers 0 to 5"]),
        ({"heads": {"top": 3, "of": "nowhere.safetensors"}}, ["there is no file of head scores"]),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_written(cli, config, tmp_path, values, texts):
    refused(cli("sweep", config(**values)), *texts)
    assert not (tmp_path / "out").exists()


def test_wrong_names_are_refused_before_the_model_is_loaded(cli, config, monkeypatch):
    monkeypatch.setattr(Lens, "demo", None)
    for values in ({"metric": "x"}, {"ablation": "x"}, {"dtype": "x"}, {"data": {"kind": "x"}}, {"heads": "x"}):
        assert cli("sweep", config(**values)).status == 2


def test_a_file_that_is_no_config_is_refused(cli, tmp_path):
    refused(cli("sweep", tmp_path / "no [red] where.yaml"), f"the config '{tmp_path / 'no [red] where.yaml'}' cannot")
    (tmp_path / "a.yaml").write_text("heads: [1, 2")
    refused(cli("sweep", tmp_path / "a.yaml"), "the config 'a.yaml' is no YAML")
    (tmp_path / "a.yaml").write_text("- heads")
    refused(cli("sweep", tmp_path / "a.yaml"), "must hold keys and values, it holds ['heads']")
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\xff")
    refused(cli("sweep", tmp_path / "a.yaml"), "cannot be read")
    refused(cli("sweep", "--data-option", "n"), "--data-option takes NAME=VALUE, as images=val2014, given 'n'")
    refused(cli("sweep", "--heads", "[1, "), "--heads '[1, ' cannot be read")


def test_option_values_are_text_unless_they_are_numbers_lists_or_null():
    from lmm_lens.cli.sweep import _entries

    options = ["a=3", "b=yes", "c=[x, y]", "d=null", "e={question} Answer!", "f=1.5", "g=a=b", "h={question}"]
    expected = {"a": 3, "b": "yes", "c": ["x", "y"], "d": None, "e": "{question} Answer!", "f": "1.5", "g": "a=b"}
    assert _entries({"data_option": options}) == {"data": {**expected, "h": "{question}"}}
