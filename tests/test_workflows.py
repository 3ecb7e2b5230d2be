"""What runs elsewhere is only seen to fail there, so its files are checked here as far as that goes."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def targets(command: str) -> set[str]:
    """Those of every `make` in a script."""
    named = set()
    for words in re.findall(r"^\s*make (.+?)(?: \|\| .*| && .*)?$", command, re.MULTILINE):
        named |= {word for word in words.replace('"', "").split() if "=" not in word and not word.startswith("$")}
    return named


@pytest.mark.parametrize("path", sorted(GITHUB.rglob("*.yml")), ids=lambda path: path.name)
def test_it_is_yaml_without_a_key_given_twice(path):
    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = [self.construct_object(key) for key, _ in node.value]
            assert len(keys) == len(set(keys)), keys
            return super().construct_mapping(node, deep)

    assert yaml.load(path.read_text(encoding="utf-8"), Strict)


@pytest.mark.parametrize("path", sorted((GITHUB / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_the_targets_that_a_workflow_makes_exist(path):
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    commands = [step.get("run", "") for job in jobs for step in job["steps"]]
    assert set().union(*map(targets, commands)) <= TARGETS


def test_every_check_of_a_workflow_is_also_one_of_a_submission():
    workflow = yaml.safe_load((GITHUB / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    elsewhere = set().union(
        *(targets(step.get("run", "")) for job in workflow["jobs"].values() for step in job["steps"])
    )
    assert elsewhere == {"lint", "docs", "containers", "emoji", "harness", "attack", "long", "stories", "test"}


def test_the_weekly_workflow_asks_ndifs_own_server():
    workflow = yaml.safe_load((GITHUB / "workflows" / "newest.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["ndif"]["steps"]
    assert [targets(step["run"]) for step in steps if "make" in step.get("run", "")] == [{"ndif"}]
    assert "schedule" in workflow[True]  # what YAML makes of `on`


@pytest.mark.parametrize("failing", [(), ("lint",), ("docs",), ("test",), ("lint", "docs"), ("ndif",), ("fetch",)])
@pytest.mark.parametrize("has_ndif", [False, True])
def test_continuous_integration_runs_everything_and_fails_if_anything_fails(tmp_path, failing, has_ndif):
    """With a `make` that only says what it was asked for."""
    made = tmp_path / "make"
    fails = f'case " {" ".join(failing)} " in *" $1 "*) exit 2;; esac'
    made.write_text(f'#!/bin/sh\n[ "$1" != fetch ] || sleep 0.3\necho "$1"\n{fails}\n')
    made.chmod(0o755)
    (tmp_path / "copy" / ".ci").mkdir(parents=True)
    copy = tmp_path / "copy" / ".ci" / "run"
    copy.write_bytes((ROOT / ".ci" / "run").read_bytes())
    if has_ndif:
        (tmp_path / "copy" / ".venv" / "ndif").mkdir(parents=True)
        (tmp_path / "copy" / ".venv" / "ndif" / ".installed").touch()
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["bash", copy], capture_output=True, text=True, env=environment, check=False)
    said = done.stdout.splitlines()
    assert 0 < said.index("fetch") < said.index("containers")  # beside whatever runs until then
    said.remove("fetch")
    made = ["lint", "docs", "containers", "emoji", "harness", "attack", "long", "stories", *["ndif"] * has_ndif, "test"]
    assert [line for line in said if line in TARGETS] == made
    assert [line for line in said if line.startswith("NO NDIF SERVER")] == said[:1] * (not has_ndif)
    assert said[-1] == "test"
    failing = tuple(target for target in failing if target in made)
    assert (done.returncode != 0) == bool(failing)
    early = [target for target in failing if target != "test"]
    assert [line for line in said if line.startswith("FAILED")] == (
        [f"FAILED BEFORE THE TESTS: {' '.join(early)}"] if early else []
    )


def test_without_a_browser_the_tests_of_pages_are_left_out_and_that_is_said(tmp_path):
    """The recipe of `make test`, with a Python that finds no browser and says how it was called."""
    fake = tmp_path / ".venv" / "bin" / "python"
    fake.parent.mkdir(parents=True)
    fake.write_text('#!/bin/sh\ncase "$*" in *chromium*) exit 1;; *) echo "called: $*";; esac\n')
    fake.chmod(0o755)
    for name in ("pyproject.toml", "setup.py", "constraints.txt", ".venv/.installed"):
        (tmp_path / name).touch()
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")  # not root
    (tmp_path / "id").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["make", "test"], cwd=tmp_path, capture_output=True, text=True, env=environment, check=True)
    said, called = done.stdout.splitlines()
    assert said.startswith("NO BROWSER: the tests of pages are left out; ")
    assert "playwright install chromium" in said
    assert called.endswith("-m not attack and not long and not story and not browser")
