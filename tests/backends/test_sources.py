# ruff: noqa: RET504  (a trace's block binds names; it cannot return)
"""Lenses made and run in several threads at once: one thread at a time reads sources, and each gives its answer."""

import ast
import gc
import inspect
import linecache
import logging
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from nnsight.intervention import source
from nnsight.tracing.globals import BLOCKS, SOURCES

from lmm_lens import Knockout, Lens, Read
from lmm_lens.backends.nnsight.loops import open_ended_loops
from lmm_lens.backends.requirements import REQUIREMENTS, importing
from lmm_lens.backends.sources import READING, read_once, source_of
from lmm_lens.core import kernels
from tests.support.cases import case

KINDS = {
    "native": {},
    "transformer_lens": {"backend": "transformer_lens"},
    "nnsight": {"backend": "nnsight"},
    "remote": {"backend": "nnsight", "remote": "local"},
}
EDITS = [Knockout("image", "question")]


def lens_on(kind):
    return Lens(case("llava").model, **KINDS[kind])


def traced(lens, prompt):
    with lens.trace(prompt, EDITS):
        lens.read(0, "pattern")
        out = lens.read(2, "resid_post").save()
    return out


def everything(kind):
    """What a lens made here and now gives: logits of a run, of a generation, and what a trace reads."""
    llava, lens = case("llava"), lens_on(kind)
    found = [lens.run(llava.prompt, EDITS).logits]
    found.append(lens.generate(llava.prompt, EDITS, max_new_tokens=2, logits=True, eos_token_id=[]).logits)
    return [*found, traced(lens, llava.prompt)] if kind in ("nnsight", "remote") else found


def together(work, items):
    """What each thread makes of its item; all begin at the same moment."""
    start = threading.Barrier(len(items))

    def waited(item):
        start.wait()
        return work(item)

    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(waited, items))


@pytest.fixture
def unread():
    """Nothing that linecache or nnsight has read is known any more, as in a process that begins."""
    assert case("llava").prompt  # made before: transformers reads sources when it makes a model
    for cache in (linecache.cache, source.FORWARD_CACHE, SOURCES, BLOCKS):
        cache.clear()


@pytest.fixture
def hurried():
    """Threads take turns as often as they can, also within a garbage collection, of which there are many."""

    def give_way(phase, info):
        time.sleep(0)

    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    gc.callbacks.append(give_way)
    gc.set_threshold(100)
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)
    gc.callbacks.remove(give_way)


def stack_of(thread):
    frame = sys._current_frames().get(thread)
    return "".join(traceback.format_stack(frame)) if frame is not None else "gone"


@pytest.fixture
def readers(monkeypatch):
    """How often each thread read, parsed or rewrote sources; an error as soon as two do it at once."""
    inside, counts = Counter(), Counter()

    def watched(function):
        def watch(*args, **kwargs):
            me = threading.get_ident()
            inside[me] += 1
            try:
                time.sleep(1e-3)  # long enough for another thread to come in
                others = [thread for thread, depth in inside.items() if depth and thread != me]
                assert not others, f"{function.__name__} while another thread is here:\n{stack_of(others[0])}"
                counts[me] += 1
                return function(*args, **kwargs)
            finally:
                inside[me] -= 1

        return watch

    for module, name in ((ast, "parse"), (inspect, "getsourcelines"), (source, "instrument")):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    return counts


def test_one_thread_at_a_time_reads_sources(unread, readers):
    together(everything, ["nnsight", "remote", "nnsight", "transformer_lens"])
    assert len(readers) >= 3, "each lens of nnsight reads"
    assert sum(readers.values()) > 20


@pytest.mark.parametrize(
    "threads", [["nnsight"] * 8, ["remote"] * 3, list(KINDS) * 2], ids=["here", "as on a server", "all kinds"]
)
def test_lenses_made_and_run_in_many_threads_give_their_answers(threads, unread, hurried):
    expected = {kind: everything(kind) for kind in set(threads)}
    for cache in (linecache.cache, source.FORWARD_CACHE, SOURCES, BLOCKS):
        cache.clear()
    for kind, given in zip(threads, together(everything, threads), strict=True):
        for one, other in zip(given, expected[kind], strict=True):
            assert (one - other).abs().max() < 1e-4, kind


def test_operations_are_labelled_in_many_threads(unread, hurried):
    """The first thing that a new lens does."""
    for _ in range(4):
        lenses = [lens_on("nnsight") for _ in range(8)]
        for cache in (linecache.cache, source.FORWARD_CACHE):
            cache.clear()
        labelled = together(lambda lens: lens._backend.model_envoys.layers, lenses)
        assert len({(layer.attention_call, layer.cache_update) for layers in labelled for layer in layers}) == 1


def test_bridges_made_at_once_leave_logging_and_warnings_as_they_were():
    logger = logging.getLogger("transformer_lens")
    before = logger.level, list(warnings.filters)
    together(lens_on, ["transformer_lens"] * 3)
    assert (logger.level, list(warnings.filters)) == before


@pytest.mark.parametrize("edits", [[], EDITS], ids=["plain", "edited"])
def test_traces_of_many_threads_read_in_turn(edits, unread, readers):
    """The block, that of the edits, and operations of layers that a hook point is asked of for the first time."""
    llava, lenses = case("llava"), [lens_on("nnsight") for _ in range(3)]
    for lens in lenses:
        assert lens._backend.model_envoys
    readers.clear()

    def read(lens):
        with lens.trace(llava.prompt, edits):
            total = sum(lens.read(layer, "pattern").detach().sum() for layer in range(3)).save()
        return float(total)

    totals = together(read, lenses)
    assert len(readers) == 3
    assert totals == pytest.approx([totals[0]] * 3)


def test_runs_of_many_threads_label_in_turn(unread, readers):
    """A layer whose pattern is read for the first time; the first layer was labelled with the model."""
    llava, lenses = case("llava"), [lens_on("nnsight") for _ in range(3)]
    for lens in lenses:
        lens.run(llava.prompt, read=[Read("pattern", [0])])
    readers.clear()
    together(lambda lens: lens.run(llava.prompt, read=["pattern"]), lenses)
    assert len(readers) == 3


def is_held():
    """Whether the lock is taken, as another thread sees it."""
    with ThreadPoolExecutor(1) as pool:
        free = pool.submit(lambda: READING.acquire(blocking=False) and (READING.release() or True)).result()
    return not free


def test_the_lock_is_held_where_sources_are_read_and_frameworks_imported(monkeypatch):
    seen = []
    monkeypatch.setattr(inspect, "getsource", lambda function: seen.append(is_held()) or "")
    source_of(lambda: None)
    for backend in REQUIREMENTS:
        with importing(backend):
            seen.append(is_held())
    assert seen == [True] * 3
    assert not is_held()


def test_the_source_of_a_decorated_function_is_that_of_the_innermost():
    from functools import wraps

    def inner(x):
        return x + 1

    @wraps(inner)
    def outer(x):
        return inner(x)

    assert "x + 1" in source_of(outer)
    with pytest.raises(TypeError):
        source_of(len)  # not `print`, in whose place frameworks put their own


def functions_of(module):
    return [f for f in vars(module).values() if inspect.isfunction(f) and f.__module__ == module.__name__]


def test_remembered_sources_are_those_that_are_read():
    read = [(inspect.getsource(f), inspect.getsourcelines(f)) for f in functions_of(kernels)]
    assert len(read) > 10
    for _ in range(2):
        with read_once():
            assert [(inspect.getsource(f), inspect.getsourcelines(f)) for f in functions_of(kernels)] == read


def test_a_function_of_this_library_is_split_into_tokens_once(monkeypatch):
    blocks = []
    getblock = inspect.getblock
    monkeypatch.setattr(inspect, "getblock", lambda lines: blocks.append(lines) or getblock(lines))
    scope = {"__name__": "lmm_lens.of_this_test"}
    source = "def ours(x):\n    return x\n"
    linecache.cache["<ours>"] = len(source), None, source.splitlines(True), "<ours>"
    exec(compile(source, "<ours>", "exec"), scope)
    with read_once():
        first, _ = inspect.getsourcelines(scope["ours"])
        first.clear()  # whoever gets it may do with it what he likes
    with read_once():
        assert inspect.getsource(scope["ours"]) == source
        assert len(blocks) == 1
        for _ in range(2):
            assert "never_reached" in inspect.getsource(never_reached)  # of others nothing is remembered
    assert len(blocks) == 3


def test_inspect_is_left_as_it_was_after_an_error_too():
    before = inspect.getsourcelines
    with pytest.raises(OSError, match="could not get source"), read_once(), read_once():
        inspect.getsource(eval("lambda: 0"))
    assert inspect.getsourcelines is before


# ---------------------------------------------------------------------- the warning of open-ended loops


def never_reached():
    warnings.warn("'model.layers.0.input.i5' was never reached: the loop asked for a step", stacklevel=1)


def test_the_warning_is_silent_until_the_last_loop_has_ended():
    before = list(warnings.filters)
    first, second = open_ended_loops(), open_ended_loops()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # as `catch_warnings` of two threads, which would bring the warning back here
    never_reached()
    second.__exit__(None, None, None)
    assert list(warnings.filters) == before
    with pytest.raises(UserWarning, match="was never reached"):
        never_reached()


def test_a_filter_of_the_users_own_stays():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was never reached", category=UserWarning)
        before = list(warnings.filters)
        with open_ended_loops():
            pass
        assert list(warnings.filters) == before
        never_reached()
