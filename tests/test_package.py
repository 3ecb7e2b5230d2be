"""What `import lmm_lens` costs and offers, and what is published: the wheel and the source archive."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import lmm_lens

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "numpy", "pandas", "matplotlib", "transformer_lens", "nnsight", "typer", "rich"}


def python(code: str, cwd=None, **environment) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, time; start = time.perf_counter(); import lmm_lens; spent = time.perf_counter() - start\n"
        f"print(sorted({HEAVY} & set(sys.modules)), f'import took {{1000 * spent:.0f}} ms')"
    )
    printed = python(code)
    print(printed)
    assert printed.startswith("[]")


def test_every_public_name_can_be_had():
    for name in lmm_lens.__all__:
        assert getattr(lmm_lens, name) is not None
    assert set(dir(lmm_lens)) == set(lmm_lens.__all__)
    assert {"Lens", "Prompt", "HeadSet", "HeadScores", "AblateHeads", "score_heads", "LensError"} <= set(
        lmm_lens.__all__
    )


def test_a_star_import_gives_all_of_them():
    namespace = {}
    exec("from lmm_lens import *", namespace)
    assert set(lmm_lens.__all__) <= set(namespace)


def test_public_names_are_those_of_their_modules():
    from lmm_lens.hooks.heads import HeadSet
    from lmm_lens.scoring import score_heads

    assert lmm_lens.HeadSet is HeadSet
    assert lmm_lens.score_heads is score_heads


def test_the_bundled_world_is_imported_from_the_package():
    for name in ("shapes", "emoji"):
        printed = python(f"import sys; from lmm_lens import {name}; print({name}.__name__, 'torch' in sys.modules)")
        assert printed.split() == [f"lmm_lens.bundled.{name}", "False"]


def test_a_name_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(AttributeError) as caught:
        lmm_lens.Lense  # noqa: B018
    assert "module 'lmm_lens' has no attribute 'Lense'" in str(caught.value)
    assert "Lens" in str(caught.value).replace("Lense", "")
    assert not hasattr(lmm_lens, "nonsense")


def test_every_public_name_is_documented():
    for name in set(lmm_lens.__all__) - {"__version__"}:
        assert (getattr(lmm_lens, name).__doc__ or "").strip(), name


def test_every_subpackage_can_be_imported():
    packages = sorted(path.parent.relative_to(ROOT) for path in (ROOT / "lmm_lens").rglob("__init__.py"))
    for package in packages:
        importlib.import_module(".".join(package.parts))


def test_a_citation_names_the_version_and_the_address_of_this_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bibtex = (ROOT / "docs" / "cite.md").read_text(encoding="utf-8")
    assert citation["version"] == lmm_lens.__version__
    assert re.findall(r"version += \{(.+)\}", bibtex) == [lmm_lens.__version__]
    assert citation["repository-code"] == project["urls"]["Repository"]
    assert re.findall(r"url += \{(.+)\}", bibtex) == [project["urls"]["Repository"]]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]


def test_the_changelog_begins_with_what_is_not_released_yet_and_knows_every_kind_of_change():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", version) for version in versions[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", changelog, re.MULTILINE)) <= kinds


# ---------------------------------------------------------------------- what is published

BUILD = "from setuptools import build_meta as build; build.build_sdist({0!r}); build.build_wheel({0!r})"


def sources(*options: str) -> set[str]:
    """The files of the project as git lists them; in an unpacked source archive there is no git, and all are."""
    listed = subprocess.run(["git", "ls-files", *options], cwd=ROOT, capture_output=True, text=True, check=False)
    if (ROOT / ".git").exists() and listed.returncode == 0:
        return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    names = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()}
    return {
        name for name in names if not re.search(r"(^|/)(\.venv|__pycache__|\.\w+_cache|[^/]+\.egg-info|build)/", name)
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both built from a copy, so that neither the build leaves files here nor old ones here reach the build."""
    folder = tmp_path_factory.mktemp("built")
    names = sources("--cached", "--others", "--exclude-standard")
    for name in names:
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    python(BUILD.format(str(folder)), cwd=folder / "source")
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return SimpleNamespace(wheel=wheel, archive=archive, names=names)


@pytest.fixture(scope="module")
def wheel(built):
    with zipfile.ZipFile(built.wheel) as opened:
        names = set(opened.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        (entry_points,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        return SimpleNamespace(
            path=built.wheel,
            names=names,
            metadata=Parser().parsestr(opened.read(metadata).decode()),
            entry_points=opened.read(entry_points).decode(),
        )


def test_the_wheel_holds_the_library_and_the_adapters_whole_and_nothing_else(built, wheel):
    expected = {name for name in built.names if name.startswith("lmm_lens/")}
    expected |= {f"lmm_lens/{name}" for name in built.names if name.startswith("adapters/")}
    assert {"lmm_lens/py.typed", "lmm_lens/reports/demo.html.j2", "lmm_lens/viewer/assets/main.js"} <= expected
    assert {f"lmm_lens/bundled/shapes/checkpoints/{name}/model.safetensors" for name in ("sinks", "plain")} <= expected
    found = {name for name in wheel.names if ".dist-info/" not in name}
    assert found == expected


def test_the_source_archive_holds_the_whole_repository(built):
    with tarfile.open(built.archive) as opened:
        found = {member.name.partition("/")[2] for member in opened.getmembers() if member.isfile()}
    assert sources() - found == set()
    assert not [name for name in found if name.endswith(".pyc") or name.startswith((".venv", "build/", "dist/"))]


def test_the_wheel_says_what_it_is(wheel):
    assert wheel.metadata["Name"] == "lmm-lens"
    assert wheel.metadata["Version"] == lmm_lens.__version__
    pythons = {
        classifier.rpartition(" ")[2]
        for classifier in wheel.metadata.get_all("Classifier")
        if classifier.startswith("Programming Language :: Python :: 3.")
    }
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    assert pythons == set(workflow["jobs"]["tests"]["strategy"]["matrix"]["python"])


def test_the_wheel_has_the_command_and_the_licence(wheel):
    assert "lmm-lens = lmm_lens.cli:main" in wheel.entry_points
    assert any(name.endswith("LICENSE") for name in wheel.names)


def test_what_the_wheel_announces_to_others_is_there(wheel):
    """Entry points are text: one whose module has moved fails in the framework that loads it, not here."""
    announced = re.findall(r"^\w+ = ([\w.]+):(\w+)$", wheel.entry_points, re.MULTILINE)
    assert len(announced) > 5
    for module, name in announced:
        assert callable(getattr(importlib.import_module(module), name)), f"{module}:{name}"


@pytest.mark.long
def test_an_installed_wheel_works_away_from_the_sources(wheel, tmp_path):
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel.path]
    subprocess.run(command, check=True, capture_output=True)
    code = (
        "import lmm_lens.adapters; from lmm_lens import Lens, score_heads\n"
        "from lmm_lens.bundled import shapes\n"
        "from lmm_lens.reports.demo import write_report\n"
        "print(lmm_lens.__file__, lmm_lens.adapters.__file__, sep='\\n')\n"
        "lens = Lens.demo(); example = shapes.examples(1)[0]\n"
        "prompt = lens.prompt(example.question, images=example.image)\n"
        "print(lens.adapter.family, tuple(score_heads(lens, prompt).per_prompt.shape))"
    )
    printed = python(code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")).splitlines()
    assert printed[:2] == [
        str(tmp_path / "site" / "lmm_lens" / "__init__.py"),
        str(tmp_path / "site" / "lmm_lens" / "adapters" / "__init__.py"),
    ]
    assert printed[2] == "llava (1, 6, 8)"
