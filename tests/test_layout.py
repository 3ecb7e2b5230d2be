"""The house: rooms in one order, a mirror of them in tests/, and a list of what is public."""

import ast
import importlib
import re

import pytest

import lmm_lens
from tests.support.rooms import LINES, ROOT, Arrow, arrows, drawn, modules, room, upwards

TESTS = ROOT / "tests"
NO_MIRROR = {
    "backends/transformer_lens/architectures": "a table for TransformerLens, tested by the bridges that it makes",
    "figures": "what all figures share shows in each method's own, which are tested beside the method",
}
NO_ROOM = {
    "backends/remote": "the nnsight backend with a server of its own, which runs without lmm-lens",
    "attacks": "what takes minutes to break the library with; `make attack` runs it",
    "stories": "the notebooks, run anew; `make stories` does",
    "containers": "what people hold their models in, with packages that only `make containers` installs",
    "emoji": "the library on emoji-llava, with the language model that only `make emoji` installs",
    "harness": "a lens as a model of lmms-eval, which only `make harness` installs",
    "jupyter": "the viewer's widget in JupyterLab, which only `make jupyter` installs",
    "browser": "pages in a browser",
    "docs": "the site and its blocks of code",
    "support": "what several tests share",
    "tutorials": "the notebooks",
}
PUBLIC = """
Lens Prompt Span Box HeadSet Read Intervention
VAR AblateHeads AblateTokens BoostAttention Knockout KnockoutSinks PatchHeads PatchPattern PatchResidual head_means
InformationFlow information_flow
Edit EditPattern ScaleAttention Direction direction Steer
find_sinks HeadScores score_heads localization_heads localize
PatchScores activation_patching attribution_patching HeadEffects head_effects head_attribution
AttentionMap attention_map LogitLens logit_lens Translators fit_translators LatentLens latent_lens EmbeddingBank
embedding_bank DirectAttribution direct_attribution PixelAttribution pixel_attribution DeletionCurve deletion_curve
Circuit find_circuit smallest_heads
compare Comparison Condition ablation_table image_table blank_images swapped_images exact_match
DataSet Sample Misplaced misplaced view View LensError __version__
"""
SHARED_BACKENDS = {
    ("transformer_lens", "native.backend"): "a bridge runs as a native model does, through other hooks",
    ("transformer_lens", "native.session"): "a bridge runs as a native model does, through other hooks",
    ("transformer_lens", "native.interface"): "an apply block around a run of the bridge",
    ("transformer_lens", "native.tower"): "the tower of a bridge is transformers' own",
    ("transformer_lens", "native.module_hooks"): "the tower of a bridge is transformers' own",
    ("nnsight", "native.tower"): "here the tower of a twin is hooked as a native one is",
    ("nnsight", "native.session"): "a model in training mode is refused in the same words",
}


# ---------------------------------------------------------------------- the order


def test_every_room_has_its_place_in_the_order():
    assert {room(name) for name in modules()} - {""} == set(LINES)


def test_no_room_imports_one_above_it_or_beside_it():
    assert len(arrows()) > 500
    assert "\n".join(map(str, upwards(arrows()))) == ""


def test_an_arrow_is_seen_wherever_an_import_stands(tmp_path):
    file = tmp_path / "part.py"
    file.write_text(
        "import torch, lmm_lens.cli\n"
        "from ..hooks import heads\n"
        "from . import rows\n"
        "if TYPE_CHECKING:\n    from lmm_lens.lens import Lens\n"
        "def later():\n    from .. import effects, errors\n    from ..adapters.base import Adapter\n"
    )
    known = dict.fromkeys(
        ["lmm_lens", "lmm_lens.hooks.heads", "lmm_lens.core.rows", "lmm_lens.effects", "lmm_lens.errors"], file
    )
    found = list(drawn("lmm_lens.core.part", file, known))
    assert [(arrow.target, arrow.line) for arrow in sorted(found, key=lambda arrow: (arrow.line, arrow.target))] == [
        ("lmm_lens.cli", 1),
        ("lmm_lens.hooks.heads", 2),
        ("lmm_lens.core.rows", 3),
        ("lmm_lens.lens", 5),
        ("lmm_lens.effects", 7),
        ("lmm_lens.errors", 7),
        ("lmm_lens.adapters.base", 8),
    ]
    assert [arrow.line for arrow in sorted(upwards(found), key=lambda arrow: arrow.line)] == [1, 2, 5, 7, 8]


@pytest.mark.parametrize(
    ("source", "target", "is_upwards"),
    [
        ("effects.sweep", "lmm_lens.scoring.metrics", False),
        ("scoring.score", "lmm_lens.effects.sweep", True),
        ("patching.activation", "lmm_lens.effects", True),  # beside it
        ("prompts.view", "lmm_lens.prompts.spans", False),
        ("lens.lens", "lmm_lens", True),  # the front
    ],
)
def test_which_arrows_point_upwards(source, target, is_upwards):
    arrow = Arrow(f"lmm_lens.{source}", target, "file.py", 1)
    assert upwards([arrow]) == [arrow] * is_upwards


def test_backends_know_nothing_of_one_another_but_what_is_listed():
    kinds = {"native", "nnsight", "transformer_lens"}
    prefix = "lmm_lens.backends."
    found = set()
    for arrow in arrows():
        if arrow.source.startswith(prefix) and arrow.target.startswith(prefix):
            source, target = (name.removeprefix(prefix) for name in (arrow.source, arrow.target))
            mine, theirs = source.split(".")[0], target.split(".")[0]
            if mine in kinds and theirs in kinds and mine != theirs:
                found.add((mine, target))
    assert found == set(SHARED_BACKENDS)


# ---------------------------------------------------------------------- the mirror


def folders(root) -> set[str]:
    return {path.parent.relative_to(root).as_posix() for path in root.rglob("__init__.py")} - {"."}


def test_every_room_has_its_mirror_in_tests():
    rooms = folders(ROOT / "lmm_lens") | {"adapters"}
    assert {name for name in rooms if not list((TESTS / name).rglob("test_*.py"))} == set(NO_MIRROR)


def test_every_folder_of_tests_is_a_mirror_or_says_what_it_is():
    rooms = folders(ROOT / "lmm_lens") | {"adapters"}
    extra = {name for name in folders(TESTS) if not any(name.startswith(f"{other}/") for other in NO_ROOM)} - rooms
    assert extra == set(NO_ROOM)


def imports_of_tests():
    """(file, module of tests that it imports) of every file of tests."""
    for path in sorted(TESTS.rglob("*.py")):
        package = path.relative_to(ROOT).parent.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                above = package[: len(package) + 1 - node.level] if node.level else ()
                base = ".".join([*above, *filter(None, [node.module])])
                for name in [base, *(f"{base}.{alias.name}" for alias in node.names)]:
                    if (ROOT / name.replace(".", "/")).with_suffix(".py").exists() and name.startswith("tests."):
                        yield path.relative_to(TESTS), name.removeprefix("tests.").split(".")


def test_no_test_imports_a_test_and_what_two_folders_share_is_in_support():
    found = list(imports_of_tests())
    assert len(found) > 300
    for path, target in found:
        here = "/".join(path.parts)
        assert not target[-1].startswith("test_"), f"{here} imports the tests of {'.'.join(target)}"
        assert target[-1] != "conftest", f"{here} imports {'.'.join(target)}: a fixture needs no import"
        is_own = path.parent.parts[: len(target) - 1] == tuple(target[:-1])
        assert target[0] == "support" or is_own, f"{here} imports {'.'.join(target)}: what two share is in support"


# ---------------------------------------------------------------------- what is public


def test_public_names_are_those_that_are_listed_here():
    """Adding one is a decision, and taking one away breaks somebody."""
    assert sorted(lmm_lens.__all__) == sorted(PUBLIC.split())


def reference() -> list[str]:
    pages = (page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "reference").glob("*.md")))
    return [name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]


def resolved(name: str):
    """What a dotted name leads to, through modules and what they hold."""
    module, _, rest = name.partition(".")
    found = importlib.import_module(module)
    for part in rest.split("."):
        module = f"{module}.{part}"
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(module)
    return found


def test_what_the_reference_names_exists_and_is_marked_private_nowhere():
    """Public are the names of the front, what the reference names, and lmm_lens.adapters; all else may change."""
    assert len(reference()) > 50
    for name in reference():
        assert (resolved(name).__doc__ or "").strip(), name
        assert not any(part.startswith("_") for part in name.split(".")), name


def test_every_name_of_the_front_is_in_the_reference():
    named = {name.rpartition(".")[2] for name in reference()}
    assert set(PUBLIC.split()) - named == {"__version__"}
