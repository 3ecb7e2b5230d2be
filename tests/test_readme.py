"""The README's examples run as printed, and what it links and names exists."""

import linecache
import re
from pathlib import Path

from lmm_lens.cli.support import table

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_every_python_example_runs_as_printed(capsys):
    names: dict[str, object] = {"__name__": "readme"}  # one after the other, as a reader types them
    for i, code in enumerate(blocks("python")):
        file = f"README example {i}"
        linecache.cache[file] = (
            len(code),
            None,
            code.splitlines(keepends=True),
            file,
        )  # nnsight reads its blocks there
        exec(compile(code, file, "exec"), names)
    printed = capsys.readouterr().out
    assert "image" in printed
    assert "VAR(p=0.6" in printed


def test_every_linked_file_exists():
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("https://"):
            assert (root / target).exists(), target


def test_the_commands_of_the_readme_exist():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("bash")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_table_of_families_is_that_of_the_adapters():
    from lmm_lens.cli import support

    assert support.within(README) == README, "run `make readme`"


def test_the_number_of_families_is_that_of_the_table():
    told = re.findall(r"<b>(\d+) model families|\| multimodal models \| (\d+) families", README)
    assert [int(one or other) for one, other in told] == [len(table())] * 2
