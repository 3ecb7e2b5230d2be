"""`lmm-lens info` and `lmm-lens score`: what they print, and how they refuse."""

import re

import pytest
import torch
import transformers as hf

import lmm_lens
from lmm_lens import HeadScores, Lens, score_heads
from lmm_lens.answers.outcomes import ANSWER_METRICS
from lmm_lens.bundled import shapes
from lmm_lens.cli import metrics
from lmm_lens.comparisons.metrics import TEXT_METRICS
from lmm_lens.hooks.points import HOOK_POINTS
from lmm_lens.scoring import HEAD_METRICS
from tests.support.cases import case

QUESTION = "what color is the circle?"


def refused(result, text):
    assert result.status == 2
    assert text in result.err
    assert result.err.startswith("error:")
    assert "Traceback" not in result.err + result.out


def test_info_describes_the_bundled_model_without_its_weights(cli, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)  # whoever loads weights fails
    result = cli("info", "demo")
    assert result.status == 0
    for text in ("LlavaForConditionalGeneration", "llava", "6 layers x 8 heads of 16", "image 4", "both ways"):
        assert text in result.out
    for site in ("resid_pre", "pattern", "z", "attn_out", "mlp_out", "resid_post"):
        assert site in result.out


def test_info_takes_a_folder_with_nothing_but_a_config(cli, tmp_path):
    case("qwen3_5").model.config.save_pretrained(tmp_path)
    result = cli("info", tmp_path)
    assert result.status == 0
    assert "4 layers x" in result.out
    assert "both ways" in result.out
    assert "layers [0, 2] have no heads (linear attention)" in result.out
    assert result.out.count("with heads") == 3  # pattern, z and attn_out


def test_info_takes_the_config_file_alone_and_says_what_does_not_work(cli, tmp_path):
    case("mllama").model.config.save_pretrained(tmp_path)
    result = cli("info", tmp_path / "config.json")
    assert result.status == 0
    for text in ("MllamaForConditionalGeneration", "not supported", "no grid", "attend to the vision tower's output"):
        assert text in result.out


def test_families_lists_every_adapter(cli):
    from lmm_lens.adapters import families

    for options in ((), ("--markdown",)):
        result = cli("families", *options)
        assert result.status == 0
        for adapter in families().values():
            assert adapter.family in result.out


@pytest.mark.parametrize("name", ["NONSENSE", "no/such-model", "[/bold]", "[red]"])
def test_a_model_that_does_not_exist_is_refused_by_name(cli, name):
    result = cli("info", name)
    refused(result, f"'{name}' cannot be opened as an image-text-to-text model")
    assert "give a Hub name" in result.err or "the Hub cannot be reached from here" in result.err  # HF_HUB_OFFLINE


def test_a_text_only_model_is_refused(cli, tmp_path):
    hf.LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    refused(cli("info", tmp_path), "cannot be opened as an image-text-to-text model")


def test_score_prints_the_highest_heads_of_the_users_picture(cli, lens, picture):
    result = cli("score", "demo", "--image", picture, "--question", QUESTION, "--top", 5)
    assert result.status == 0
    expected = score_heads(lens, lens.prompt(QUESTION, images=picture))
    assert [head for head, *_ in result.heads] == str(expected.top(5)).split()
    for (layer, head), (_, value, *interval) in zip(expected.top(5), result.heads, strict=True):
        assert value == pytest.approx(float(expected.values[layer, head]), abs=5.1e-4)
        assert not interval, "one prompt has none"
    said = " ".join(result.out.split())
    assert "visual_mass: attention on the visual tokens (query last) n = 1 prompt, which has no interval" in said


def test_every_question_is_asked_of_every_picture(cli, lens, picture, tmp_path):
    other = shapes.examples(2, seed=8)[1].image
    other.save(tmp_path / "other.png")
    images = ["--image", picture, "--image", tmp_path / "other.png"]
    asked = ["--question", QUESTION, "--question", "describe the image."]
    result = cli("score", "demo", *images, *asked, "--metric", "concentration", "--query", "answer", "--top", 48)
    prompts = [lens.prompt(q, images=i) for i in (picture, other) for q in (QUESTION, "describe the image.")]
    expected = score_heads(lens, prompts, "concentration", "answer")
    printed = {head: mean for head, mean, low, high in result.heads if low <= mean <= high}
    assert "n = 4 prompts" in result.out
    assert len(printed) == 48
    for layer in range(6):
        for head in range(8):
            assert printed[f"L{layer}H{head}"] == pytest.approx(float(expected.values[layer, head]), abs=5.1e-4)


def test_more_heads_than_there_are_can_be_asked_for(cli, picture):
    result = cli("score", "demo", "--image", picture, "--question", QUESTION, "--top", 1000)
    assert (result.status, len(result.heads)) == (0, 48)


def test_scores_and_heat_map_are_written_where_asked(cli, picture, tmp_path):
    out = tmp_path / "new [folder]" / "deeper"
    options = ["--image", picture, "--question", QUESTION, "--metric", "nonsink_mass", "--out", out]
    result = cli("score", "demo", *options)
    assert result.status == 0
    assert sorted(path.name for path in out.iterdir()) == ["nonsink_mass.png", "nonsink_mass.safetensors"]
    saved = HeadScores.load(out / "nonsink_mass.safetensors", lens=Lens.demo())
    assert f"L{saved.top(1).heads[0][0]}H{saved.top(1).heads[0][1]}" == result.heads[0][0]
    assert str(out / "nonsink_mass") in result.out


def test_a_folder_is_a_model_too(cli, picture):
    options = ["--image", picture, "--question", QUESTION]
    folder = cli("score", shapes.checkpoint("sinks"), *options, "--dtype", "float32")
    assert folder.heads == cli("score", "demo", *options).heads


# ---------------------------------------------------------------------- refusals


def test_a_picture_that_is_not_there_is_refused_by_its_whole_name(cli, tmp_path):
    missing = tmp_path / "a [red] picture.png"
    result = cli("score", "demo", "--image", missing, "--question", QUESTION)
    refused(result, f"'{missing}' cannot be opened as an image")


def test_a_file_that_is_no_picture_is_refused(cli, tmp_path):
    (tmp_path / "x.png").write_text("text")
    refused(cli("score", "demo", "--image", tmp_path / "x.png", "--question", QUESTION), "cannot be opened as an image")


def test_an_unknown_metric_is_refused_before_the_model_is_loaded(cli, picture, monkeypatch):
    monkeypatch.setattr(Lens, "demo", None)
    result = cli("score", "demo", "--image", picture, "--question", QUESTION, "--metric", "visual_mas")
    refused(result, "unknown metric 'visual_mas', did you mean 'visual_mass'?")
    assert "valid: visual_mass, nonsink_mass" in result.err


def test_an_unknown_query_is_refused(cli, picture):
    result = cli("score", "demo", "--image", picture, "--question", QUESTION, "--query", "first")
    refused(result, "unknown query 'first'")


def test_region_mass_needs_boxes_that_the_command_line_does_not_take(cli, picture):
    result = cli("score", "demo", "--image", picture, "--question", QUESTION, "--metric", "region_mass")
    refused(result, "region_mass needs boxes")


def test_an_empty_question_is_refused(cli, picture):
    refused(cli("score", "demo", "--image", picture, "--question", " "), "expected a text or a list of texts")


@pytest.mark.parametrize("command", ["info", "score"])
def test_commands_agree_on_a_model_that_does_not_exist(cli, picture, command):
    options = ["--image", picture, "--question", QUESTION] if command == "score" else []
    refused(cli(command, "NONSENSE", *options), "'NONSENSE' cannot be opened as an image-text-to-text model")


def test_a_number_format_that_does_not_exist_is_refused(cli, picture):
    options = ["--image", picture, "--question", QUESTION, "--dtype", "float99"]
    refused(cli("score", shapes.checkpoint(), *options), "float99")


@pytest.mark.parametrize(
    "arguments", [["score", "demo"], ["info"], ["demo", "--n", "3"], ["nonsense"], ["info", "demo", "--nonsense"]]
)
def test_wrong_usage_ends_with_status_2_and_says_how_to_use_it(cli, arguments):
    result = cli(*arguments)
    assert result.status == 2
    assert "Usage: " in result.err  # the name before it is that of the process
    assert "Traceback" not in result.err


def test_without_a_command_the_help_is_shown(cli):
    result = cli()
    assert (result.status, result.err) == (0, "")
    for command in ("demo", "info", "score"):
        assert command in result.out


def test_the_version_is_printed(cli):
    result = cli("--version")
    assert (result.status, result.out) == (0, f"lmm-lens {lmm_lens.__version__}\n")


# ---------------------------------------------------------------------- what is on the screen


def test_help_names_every_metric_that_a_command_takes(cli):
    assert tuple(n for n, m in HEAD_METRICS.items() if not (m.needs_boxes or m.needs_relevant)) == metrics.HEADS
    assert tuple(ANSWER_METRICS) == metrics.ANSWERS
    assert tuple(TEXT_METRICS) == metrics.TEXTS
    takes = {"score": metrics.HEADS, "sweep": metrics.ANSWERS, "compare": metrics.TEXTS + metrics.ANSWERS}
    for command, names in takes.items():
        shown = cli(command, "--help").out
        for name in names:
            assert re.search(rf"\b{name}\b", shown), f"{command} --help does not name {name}"


def test_no_word_is_cut_at_80_columns(cli, picture, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    asked = ("--image", picture, "--question", QUESTION)
    commands = (("info", "demo"), ("families",), ("score", "demo", *asked), ("sweep", "--help"), ("compare", "--help"))
    for command in commands:
        out = cli(*command).out
        assert "…" not in out, command
        assert max(map(len, out.splitlines())) <= 80, command
    words = set(re.findall(r"[\w-]+", cli("info", "demo").out))
    for point in HOOK_POINTS.values():
        assert set(re.findall(r"[\w-]+", f"{point.shape} {point.meaning}")) <= words
