"""Every code block of the documentation runs, and prints what the page says it prints."""

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import DOCS, blocks, expected, pages, run
from tests.support.outputs import same

pytestmark = pytest.mark.long
MAKEFILE = (DOCS.parent / "Makefile").read_text(encoding="utf-8")
ASKED = (
    "haotian-liu/LLaVA/issues/1080",
    "QwenLM/Qwen-VL/issues/511",
    "QwenLM/Qwen3-VL/issues/634",
    "OpenGVLab/InternVL/issues/700",
    "QwenLM/Qwen3-VL/issues/1464",
    "QwenLM/Qwen3-VL/issues/1097",
    "ywh187/FitPrune/issues/6",
    "stanfordnlp/pyvene/pull/151",
    "QwenLM/Qwen3-VL/issues/1551",
    "seilk/VisAttnSink/issues/6",
    "seilk/VisAttnSink/issues/5",
    "seilk/VisAttnSink/issues/7",
    "seilk/VisAttnSink/issues/4",
    "CR400AF-A/SparseMM/issues/5",
    "ndif-team/nnsight/issues/525",
    "compling-wat/vlm-lens/issues/94",
    "compling-wat/vlm-lens/issues/97",
    "compling-wat/vlm-lens/issues/80",
    "TransformerLensOrg/TransformerLens/issues/697",
    "huggingface/transformers/issues/38750",
    "huggingface/transformers/issues/31990",
    "TransformerLensOrg/TransformerLens/pull/820",
    "jessevig/bertviz/issues/73",
    "shikiw/OPERA/issues/16",
    "saccharomycetes/mllms_know/issues/36",
    "OpenGVLab/InternVL/issues/1101",
    "OmriKaduri/vlm-interp/issues/1",
    "QwenLM/Qwen3-VL/issues/2105",
    "LLaVA-VL/LLaVA-NeXT/issues/283",
    "DAMO-NLP-SG/VCD/issues/34",
    "meta-pytorch/captum/issues/1494",
)


def named(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def of_language(language: str) -> list:
    return [pytest.param(b, id=f"{named(p)}:{b.line}") for p in pages() for b in blocks(p) if b.language == language]


@pytest.mark.filterwarnings("ignore:.*was never reached")  # how nnsight ends the loop of an intervention in a trace
@pytest.mark.parametrize("path", [p for p in pages() if any(b.is_run for b in blocks(p))], ids=named)
def test_the_blocks_of_a_page_run_from_top_to_bottom_and_print_what_it_says(path):
    shown = expected(path)
    for block, printed in run(path):
        if block.line in shown:
            assert same(printed, shown[block.line]), (
                f"line {block.line} prints\n{printed}\nthe page says\n{shown[block.line]}"
            )
        else:
            assert not printed.strip(), f"line {block.line} prints what the page does not show:\n{printed}"


@pytest.mark.parametrize("path", pages(), ids=named)
def test_an_output_stands_below_a_block_that_runs_and_is_not_empty(path):
    outputs = [block for block in blocks(path) if block.is_output]
    assert len(outputs) == len(expected(path))
    assert all(block.code.strip() for block in outputs)


@pytest.mark.parametrize("block", [p for p in of_language("python") if not p.values[0].is_run])
def test_a_block_that_is_not_run_says_why_and_its_imports_work(block):
    assert re.search(r'title="needs .+"', block.info)
    tree = ast.parse(block.code)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names: dict[str, object] = {}
    exec(compile(ast.Module(imports, []), "imports", "exec"), names)
    assert imports


@pytest.mark.parametrize("block", of_language("bash"))
def test_the_commands_of_shell_blocks_exist(block):
    import typer.main

    from lmm_lens.cli import app

    commands = typer.main.get_command(app).commands
    for line in block.code.strip().splitlines():
        program, *words = shlex.split(line, comments=True)
        if program == "make":
            assert re.search(rf"^{words[0]}:", MAKEFILE, re.MULTILINE), line
            continue
        assert program == "lmm-lens", line
        if words == ["--help"]:
            continue
        assert words[0] in commands, line
        command = commands[words[0]]
        if hasattr(command, "commands"):
            assert words[1] in command.commands, line
            command = command.commands[words[1]]
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= options, line


@pytest.mark.parametrize("block", of_language("yaml"))
def test_a_config_is_one_that_its_command_takes(block, tmp_path):
    from lmm_lens.cli.compare_config import CompareConfig
    from lmm_lens.cli.study_config import StudyConfig
    from lmm_lens.cli.sweep_config import SweepConfig

    path = tmp_path / "config.yaml"
    path.write_text(block.code, encoding="utf-8")
    keys = yaml.safe_load(block.code)
    kind = StudyConfig if "models" in keys else CompareConfig if "conditions" in keys else SweepConfig
    assert kind.read(path, {}).out


@pytest.mark.parametrize("block", of_language("toml"))
def test_toml_can_be_read(block):
    assert tomllib.loads(block.code)


def test_every_public_ask_is_answered_on_a_page_with_code_that_runs():
    page = DOCS / "howto" / "asked.md"
    text = page.read_text(encoding="utf-8")
    assert not [thread for thread in ASKED if f"https://github.com/{thread})" not in text]
    answers = re.findall(r"\| \[[^|]*\]\(((?!https)[^)]*)\)", text)
    assert len(answers) == text.count("\n| ") - 1, "every row of the table has an answer"
    for row in text.splitlines():
        if row.startswith("| ") and "github.com" in row:
            targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]*)\)", row.rpartition(" | ")[2])]
            for target in targets:
                found = (page.parent / target).resolve() if target else page
                assert any(block.is_run for block in blocks(found)), target


def test_the_notebooks_that_are_named_exist():
    names = re.findall(r"`(\w+\.ipynb)`", (DOCS / "index.md").read_text(encoding="utf-8"))
    assert names == sorted(path.name for path in (DOCS.parent / "tutorials").glob("[0-9]*.ipynb"))


def test_outputs_are_compared_by_words_exactly_and_by_numbers_nearly():
    assert same("L1H4 0.481 of 60\n", "L1H4 0.479 of 60")
    assert not same("L1H4 0.48 of 60", "L1H4 0.58 of 60")
    assert not same("L1H4 0.48 of 60", "L1H5 0.48 of 60")
    assert not same("60 prompts", "61 prompts")
    assert same("a   -0.00", "a 0.00")


def test_what_the_comparison_counts_is_counted():
    from lmm_lens.cli.support import table
    from lmm_lens.scoring import HEAD_METRICS

    text = (DOCS / "comparison.md").read_text(encoding="utf-8")
    assert f"[{len(table())} families](support.md)" in text
    assert f"[{len(HEAD_METRICS)}, with intervals]" in text
