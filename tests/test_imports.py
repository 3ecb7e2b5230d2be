"""What is imported when, and what works without what: each in a fresh process, which says what it has imported.

TransformerLens, nnsight, matplotlib and pandas are installed with lmm-lens, Ray by those who want it. None of them is
imported before it is used, so that each can be missing, or broken, where it is not.
"""

import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from lmm_lens.backends.requirements import REQUIREMENTS

pytestmark = pytest.mark.long
ROOT = Path(__file__).parent.parent
HEAVY = ["matplotlib", "nnsight", "pandas", "ray", "transformer_lens"]
PREAMBLE = """
import sys

class Without:
    '''A finder that does not see some packages, which is what a missing package looks like.'''
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in MISSING else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
told = {}

def tell(stage):
    told[stage] = [name for name in HEAVY if name in sys.modules]

def refused(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]
"""
NATIVE = """
import lmm_lens
tell("import lmm_lens")
from lmm_lens import AblateHeads, Lens, activation_patching, head_effects, score_heads
from lmm_lens.bundled import shapes
lens, example = Lens.demo(), shapes.examples(1)[0]
prompt = lens.prompt(example.question, images=example.image)
run = lens.run(prompt, [AblateHeads([(1, 2)])], read=["pattern", "z"])
tell("lens.run")
lens.generate(prompt, max_new_tokens=2)
tell("lens.generate")
scores = score_heads(lens, prompt)
tell("score_heads")
head_effects(lens, [prompt], heads=scores.top(2), answers=[("red", "blue")])
tell("head_effects")
blank = lens.prompt(example.question, images=shapes.blank(0))
activation_patching(lens, prompt, blank, layers=[1], answers=[("red", "blue")])
tell("activation_patching")
"""
BRIDGE = """
from lmm_lens import AblateHeads, Lens
from lmm_lens.bundled import shapes
lens, example = Lens.demo(backend="transformer_lens"), shapes.examples(1)[0]
prompt = lens.prompt(example.question, images=example.image)
lens.run(prompt, [AblateHeads([(1, 2)])], read=["pattern"])
lens.run_with_cache(prompt)
tell("a bridge")
"""
TRACE = """
from lmm_lens import AblateHeads, Lens
from lmm_lens.bundled import shapes
lens, example = Lens.demo(backend="nnsight"), shapes.examples(1)[0]
prompt = lens.prompt(example.question, images=example.image)
lens.run(prompt, [AblateHeads([(1, 2)])], read=["pattern"])
with lens.trace(prompt):
    pattern = lens.read(2, "pattern").save()
assert pattern.shape[1] == lens.n_heads
tell("a trace")
"""


def fresh(code: str, tmp_path: Path, missing: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """What a fresh interpreter tells, where some packages are not installed."""
    given = f"MISSING, HEAVY = {list(missing)!r}, {HEAVY!r}\n"
    script = tmp_path / "script.py"  # nnsight reads the blocks of traces from a file
    script.write_text(given + PREAMBLE + textwrap.dedent(code) + "\nimport json\nprint('TOLD', json.dumps(told))\n")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(re.findall(r"^TOLD (.*)$", done.stdout, re.MULTILINE)[-1])


def test_native_work_imports_none_of_them(tmp_path):
    assert fresh(NATIVE, tmp_path) == {
        "import lmm_lens": [],
        "lens.run": [],
        "lens.generate": [],
        "score_heads": [],
        "head_effects": [],
        "activation_patching": [],
    }


def test_native_work_needs_none_of_them_and_what_needs_one_says_so(tmp_path):
    code = """
    FOLDER = shapes.checkpoint("sinks")
    told["transformer_lens"] = refused(lambda: Lens.demo(backend="transformer_lens"))
    told["nnsight"] = refused(lambda: Lens.demo(backend="nnsight"))
    told["a server"] = refused(lambda: Lens.from_pretrained(FOLDER, backend="nnsight", remote=True))
    told["bridge"] = refused(lambda: lens.bridge)
    told["run_with_cache"] = refused(lambda: lens.run_with_cache(prompt))
    told["run_with_hooks"] = refused(lambda: lens.run_with_hooks(prompt))
    told["patching_model"] = refused(lambda: lens.patching_model(prompt))
    told["fwd_hooks"] = refused(lambda: lens.fwd_hooks(prompt, [AblateHeads([(1, 2)])]))
    told["bridge_inputs"] = refused(lambda: lens.bridge_inputs(prompt))
    told["trace"] = refused(lambda: lens.trace(prompt))
    told["matplotlib"] = refused(scores.plot)
    told["pandas"] = refused(scores.to_pandas)
    told["ray"] = refused(lambda: head_effects(lens, [prompt], ray=2))
    """
    told = fresh(NATIVE + textwrap.dedent(code), tmp_path, tuple(HEAVY))
    needs = {**REQUIREMENTS, "bridge_inputs": REQUIREMENTS["transformer_lens"], "a server": REQUIREMENTS["nnsight"]}
    for asked, requirement in needs.items():
        kind, text = told[asked]
        backend = next(name for name, needed in REQUIREMENTS.items() if needed == requirement)
        assert kind == "ModelError"
        assert text == (
            f"backend={backend!r} needs {requirement}, which cannot be loaded: No module named {backend!r}\n"
            f"  pip install '{requirement}', or use backend='native', which needs no framework"
        )
    for call in ("bridge", "run_with_cache", "run_with_hooks", "fwd_hooks", "patching_model"):
        assert told[call][0] == "LensError", told[call]
        assert 'the native backend has no bridge: use Lens(..., backend="transformer_lens")' in told[call][1]
    assert told["trace"][0] == "LensError"
    for name in ("matplotlib", "pandas"):
        assert told[name] == ["ModuleNotFoundError", f"No module named {name!r}"]
    assert told["ray"][0] == "ScoreError"
    assert re.fullmatch(r"ray= needs Ray, which cannot be loaded: .*\n  pip install 'lmm-lens\[ray\]'", told["ray"][1])


def test_a_bridge_works_without_nnsight(tmp_path):
    """TransformerLens itself imports pandas."""
    told = fresh(BRIDGE, tmp_path, ("nnsight", "matplotlib", "ray"))
    assert told == {"a bridge": ["pandas", "transformer_lens"]}


def test_a_trace_works_without_transformer_lens(tmp_path):
    assert fresh(TRACE, tmp_path, ("transformer_lens", "matplotlib", "pandas", "ray")) == {"a trace": ["nnsight"]}


@pytest.mark.parametrize(("code", "without"), [(BRIDGE, "nnsight"), (TRACE, "transformer_lens")])
def test_neither_framework_imports_the_other_where_it_is_installed(code, without, tmp_path):
    ((_, imported),) = fresh(code, tmp_path).items()
    assert without not in imported
    assert not {"matplotlib", "ray"} & set(imported)


def test_a_framework_that_lacks_something_of_its_own_is_told_as_well(tmp_path):
    code = """
    from lmm_lens import Lens
    told["transformer_lens"] = refused(lambda: Lens.demo(backend="transformer_lens"))
    """
    told = fresh(code, tmp_path, ("pandas",))
    assert told["transformer_lens"][0] == "ModelError"
    assert "which cannot be loaded: No module named 'pandas'" in told["transformer_lens"][1]


def test_what_is_told_to_install_is_what_the_distribution_needs():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(REQUIREMENTS.values()) <= set(declared)
