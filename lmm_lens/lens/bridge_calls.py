"""What a TransformerLens user calls: runs with a cache or with hooks, the image always there; interventions as hooks.

`lens.run_with_cache` and `lens.run_with_hooks` are the bridge's own, called with all inputs of the prompt, and inside
whatever the lens applies. `fwd_hooks` turns interventions into (name, function) pairs for the plain bridge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..backends.transformer_lens.backend import Hook, bridge_hooks
from ..core.tapping import Tapping
from ..errors import HookError, InterventionError
from ..hooks.results import Report
from ..interventions.base import Intervention
from ..prompts.prompt import Prompt, check_prompt
from .bridge_cache import EMBED, ENTERS, PromptCache

if TYPE_CHECKING:
    from .lens import Lens

TOWER = "vision."  # begins the names of the tower's hooks
NamesFilter = str | list[str] | Callable[[str], bool] | None


def bridge_inputs(prompt: Prompt) -> dict[str, Any]:
    """The inputs of a prompt as a TransformerBridge takes them: the token ids are called `input`.

    For `bridge(...)`, `bridge.run_with_hooks(...)`, `bridge.run_with_cache(...)` and `bridge.hf_generate(...)` alike.
    """
    check_prompt(prompt)
    rest = dict(prompt.inputs)
    return {"input": rest.pop("input_ids"), **rest}


def run_with_cache(
    lens: Lens,
    prompt: Prompt,
    interventions: Sequence[Intervention] = (),
    *,
    names_filter: NamesFilter = None,
    **options: Any,
) -> tuple[Any, PromptCache]:
    """One pass over a prompt, image included, with its activations by TransformerLens's names.

    Args:
        lens: a lens of the TransformerLens backend.
        prompt: from `Lens.prompt`.
        interventions: edits, in order; the cache holds what they left. Those of an enclosing `apply` come first.
        names_filter: which activations: names, or a function of the name; None for all, which is a lot.
        **options: of `TransformerBridge.run_with_cache` (stop_at_layer, pos_slice, device, incl_bwd, ...).

    Returns:
        The logits, and the cache. Gradients are kept as torch is set: use torch.no_grad() where none are needed.

    Raises:
        LensError: the lens has another backend.
        HookError: a hook of the vision tower is named, and it did not run.
    """
    bridge = lens.bridge
    extra = _selects(bridge, names_filter, EMBED) and not _selects(bridge, names_filter, ENTERS)
    chosen = _also(names_filter, ENTERS) if extra else names_filter
    with _acting(lens, prompt, interventions):
        out, cache = bridge.run_with_cache(
            **{"use_cache": False, **bridge_inputs(prompt), **options}, names_filter=chosen
        )
    if not callable(names_filter):  # a function takes what there is
        asked = [names_filter] if isinstance(names_filter, str) else names_filter or []
        _check_fired(lens, [name for name in asked if name.startswith(TOWER) and name not in cache])
    annotated = PromptCache(cache, prompt, lens.shape.reinjects)
    if extra:
        annotated.cache_dict.pop(ENTERS, None)
    return out, annotated


def run_with_hooks(
    lens: Lens,
    prompt: Prompt,
    interventions: Sequence[Intervention] = (),
    *,
    fwd_hooks: Sequence[tuple[Any, Callable[..., Any]]] = (),
    bwd_hooks: Sequence[tuple[Any, Callable[..., Any]]] = (),
    **options: Any,
) -> Any:
    """One pass over a prompt, image included, with TransformerLens hooks.

    Args:
        lens: a lens of the TransformerLens backend.
        prompt: from `Lens.prompt`.
        interventions: edits, in order; the hooks see what they left. Those of an enclosing `apply` come first.
        fwd_hooks, bwd_hooks: (name or function of names, function of (activation, hook)) pairs.
        **options: of `TransformerBridge.run_with_hooks` (return_type, stop_at_layer, ...).

    Returns:
        The logits, unless `return_type` says otherwise.

    Raises:
        LensError: the lens has another backend.
        HookError: a hook of the vision tower is named, and it did not run.
    """
    bridge, fired = lens.bridge, set[str]()
    noting = [
        (name, _noting(function, name, fired)) if _in_tower(name) else (name, function) for name, function in fwd_hooks
    ]
    with _acting(lens, prompt, interventions):
        out = bridge.run_with_hooks(
            **{"use_cache": False, **bridge_inputs(prompt), **options},
            fwd_hooks=noting,
            bwd_hooks=list(bwd_hooks),
        )
    _check_fired(lens, [name for name, _ in fwd_hooks if _in_tower(name) and name not in fired])
    return out


@contextmanager
def _acting(lens: Lens, prompt: Prompt, interventions: Sequence[Intervention]) -> Iterator[None]:
    """Inside, the bridge runs with interventions; afterwards it is said what they did not do."""
    plan = lens._plan(prompt, interventions, ())
    with lens._in_tower(plan, prompt) as tower, lens._backend.session(plan.taps_beside(tower), prompt) as session:
        yield
    if tower is not None:
        tower.check_ran()
    plan.reports(session.tapping, tower)


def _in_tower(name: Any) -> bool:
    """Whether a hook is named, and in the vision tower."""
    return isinstance(name, str) and name.startswith(TOWER)


def _noting(function: Callable[..., Any], name: str, fired: set[str]) -> Callable[..., Any]:
    """A hook that notes that it was called."""

    def noting(*args: Any, **kwargs: Any) -> Any:
        fired.add(name)
        return function(*args, **kwargs)

    return noting


def _check_fired(lens: Lens, missed: Sequence[str]) -> None:
    """HookError where something in the vision tower was asked for that did not run."""
    if missed:
        raise HookError(
            f"{', '.join(missed)} did not fire: the vision tower of {type(lens.adapter.model).__name__} did not run\n"
            "  give a prompt with pictures, and their pixels"
        )


def _selects(bridge: Any, names_filter: NamesFilter, name: str) -> bool:
    """Whether a filter selects a hook point under any of its names."""
    if names_filter is None:
        return True
    point = bridge.hook_dict.get(name)
    names = {name} if callable(names_filter) else {n for n, other in bridge.hook_dict.items() if other is point}
    names = {name} if name == EMBED else names - {EMBED}  # one hook point, which is asked for as the one or the other
    if callable(names_filter):
        return any(names_filter(n) for n in names)
    return bool(names & ({names_filter} if isinstance(names_filter, str) else set(names_filter)))


def _also(names_filter: NamesFilter, name: str) -> NamesFilter:
    if callable(names_filter):
        return lambda n: names_filter(n) or n == name
    return [*([names_filter] if isinstance(names_filter, str) else names_filter or []), name]


# ---------------------------------------------------------------------- interventions as hooks


class InterventionHooks(list[Hook]):
    """Interventions on one prompt as TransformerLens hooks: a list of (name, function).

    A pass as long as the prompt starts it anew; passes of one token after it decode on. So one list serves any number
    of runs of the prompt, and generation with a cache inside `bridge.hooks(fwd_hooks=...)`.

    Args:
        lens: a lens of the TransformerLens backend.
        prompt: what will be run, or another prompt of the same layout.
        interventions: edits, in order.

    Raises:
        InterventionError: an edit touches nothing of this prompt, or does not fit the model; while running, that the
            bridge is run with something else than the prompt.
    """

    def __init__(self, lens: Lens, prompt: Prompt, interventions: Sequence[Intervention]) -> None:
        bridge = lens.bridge
        bridge_inputs(prompt)  # refuses what is no prompt
        self.prompt, self._plan = prompt, lens._plan_of(interventions)
        self._taps = self._plan.taps(prompt)
        self._tapping = Tapping([layer.n_heads for layer in lens.adapter.layers])
        self._tapping.start(prompt.n_rows, self._taps)
        self._next: int | None = None  # where the next pass starts; None before the first one
        super().__init__(bridge_hooks(bridge, self._tapping, self._begin))

    def _begin(self, site: str, layer: int, length: int) -> bool:
        tapping = self._tapping
        if self._next is not None and (site, layer) not in tapping.fired:
            return True  # inside a pass
        if length == self.prompt.n_tokens:
            tapping.start(self.prompt.n_rows, self._taps)
            tapping.first = 0
        elif self._next is not None and length == 1:
            tapping.first = self._next
        else:
            raise InterventionError(
                f"these hooks are for a prompt of {self.prompt.n_tokens} tokens, but the bridge ran with {length}\n"
                "  make hooks of the prompt that is run; to generate with them, use bridge.hf_generate, with its cache"
            )
        tapping.fired = set()
        self._next = tapping.first + length
        return True

    def reports(self) -> tuple[Report, ...]:
        """What each intervention did in all runs so far; one that changed nothing is also warned of."""
        self._tapping.settle()
        return self._plan.reports(self._tapping)


def fwd_hooks(lens: Lens, prompt: Prompt, interventions: Sequence[Intervention]) -> InterventionHooks:
    """Interventions as hooks for a plain TransformerBridge.

    lens.bridge.run_with_hooks(**lens.bridge_inputs(prompt), fwd_hooks=VAR().fwd_hooks(prompt, lens))
    """
    return InterventionHooks(lens, prompt, interventions)
