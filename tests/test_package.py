"""What `import lmm_lens` costs and offers, and what the wheel holds."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

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
    packages = sorted(path.parent for path in (ROOT / "lmm_lens").glob("*/__init__.py"))
    for package in packages:
        importlib.import_module(f"lmm_lens.{package.name}")


def test_the_version_is_that_of_the_distribution():
    (declared,) = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert lmm_lens.__version__ == declared


# ---------------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that neither the build leaves files here nor old ones here reach the build."""
    folder = tmp_path_factory.mktemp("wheel")
    left_out = (".*", "__pycache__", "build", "dist", "*.egg-info", "lmm-lens-*", "tutorials", "docs", "tests")
    ignored = shutil.ignore_patterns(*left_out)
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", ".", "-w", folder]
    done = subprocess.run(command, cwd=folder / "source", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return SimpleNamespace(path=built, source=folder / "source", names=set(zipfile.ZipFile(built).namelist()))


def test_the_wheel_holds_every_module_of_the_sources(wheel):
    for folder, inside in ((wheel.source / "lmm_lens", "lmm_lens"), (wheel.source / "adapters", "lmm_lens/adapters")):
        modules = {f"{inside}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.py")}
        assert modules - wheel.names == set()


def test_the_wheel_holds_the_checkpoints_the_template_and_the_type_marker(wheel):
    for variant in ("sinks", "plain"):
        files = {path.name for path in (wheel.source / "lmm_lens/bundled/shapes/checkpoints" / variant).iterdir()}
        assert {"model.safetensors", "config.json", "tokenizer.json"} <= files
        assert {f"lmm_lens/bundled/shapes/checkpoints/{variant}/{name}" for name in files} <= wheel.names
    assert {"lmm_lens/reports/demo.html.j2", "lmm_lens/py.typed", "lmm_lens/bundled/shapes/README.md"} <= wheel.names
    page = {f"lmm_lens/viewer/assets/{path.name}" for path in (wheel.source / "lmm_lens/viewer/assets").iterdir()}
    assert len(page) > 5
    assert page <= wheel.names


def test_the_wheel_holds_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel.names}
    assert tops == {"lmm_lens", next(top for top in tops if top.endswith(".dist-info"))}
    assert not [name for name in wheel.names if "test" in name or "__pycache__" in name or name.endswith(".pyc")]


def test_the_wheel_has_the_command_and_the_licence(wheel):
    entry_points = next(name for name in wheel.names if name.endswith("entry_points.txt"))
    assert "lmm-lens = lmm_lens.cli:main" in zipfile.ZipFile(wheel.path).read(entry_points).decode()
    assert any(name.endswith("LICENSE") for name in wheel.names)


def test_an_installed_wheel_works_away_from_the_sources(wheel, tmp_path):
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel.path]
    subprocess.run(command, check=True, capture_output=True)
    code = (
        "import lmm_lens.adapters; from lmm_lens import Lens, score_heads, shapes\n"
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
