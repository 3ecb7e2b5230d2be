"""The README's examples run and print what it says, and what it links and names exists.

`python -m tests.test_readme` writes the outputs anew.
"""

import contextlib
import io
import linecache
import re
from pathlib import Path

import pytest

from lmm_lens.cli.support import table
from tests.support.outputs import same

PAGE = Path(__file__).parent.parent / "README.md"
README = PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.long
def test_every_python_example_runs_and_prints_what_stands_below_it():
    examples = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
    assert [code for code, _ in examples] == blocks("python"), "every example has its output below it"
    for i, (printed, (_, shown)) in enumerate(zip(outputs(), examples, strict=True)):
        assert same(printed, shown), f"example {i} prints\n{printed}\nthe README says\n{shown}"


def outputs() -> list[str]:
    """What the examples print, one after the other, as a reader types them."""
    names: dict[str, object] = {"__name__": "readme"}
    printed = []
    for i, code in enumerate(blocks("python")):
        file = f"README example {i}"
        # nnsight reads its blocks there
        linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, file, "exec"), names)
        printed.append(out.getvalue())
    return printed


def write() -> None:
    """Put what the examples print into the README."""
    text = README
    for code, printed in zip(blocks("python"), outputs(), strict=True):
        lines = "\n".join(line.rstrip() for line in printed.rstrip().splitlines())
        begin = text.index("```text\n", text.index(code) + len(code)) + len("```text\n")
        text = text[:begin] + lines + "\n" + text[text.index("```", begin) :]
    PAGE.write_text(text, encoding="utf-8")


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
    told = re.findall(r"(\d+) model families|\| multimodal models \| (\d+) families", README)
    assert [int(one or other) for one, other in told] == [len(table())] * 3


if __name__ == "__main__":
    write()
