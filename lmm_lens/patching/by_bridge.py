"""The functions of `transformer_lens.patching`, by span."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pandas
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.patching import generic_activation_patch

from ..errors import PromptError
from ..lens.bridge_patching import PatchingModel
from .units import GroupsLike, Units


def get_act_patch_by_span(
    model: PatchingModel,
    clean_cache: ActivationCache,
    patching_metric: Callable[[Tensor], Any],
    activation_name: str = "resid_pre",
    *,
    groups: GroupsLike | None = None,
    reduce: Literal["scalar", "mean", "none"] = "scalar",
) -> tuple[Tensor, tuple[str, ...]]:
    """As the functions of `transformer_lens.patching`, with the spans of the prompt in the place of its positions.

    Args:
        model: from `lens.patching_model(corrupt)`.
        clean_cache: of a clean prompt with the same layout.
        patching_metric: of the logits, as `transformer_lens.patching` takes it.
        activation_name: with positions second: "resid_pre", "resid_mid", "attn_out", "mlp_out", "z", "q", ...
        groups: more spans by name, as in `activation_patching`.
        reduce: as in `transformer_lens.patching`: "scalar" for a metric that returns one number, else [batch].

    Returns:
        Float[layer, span], with reduce="none" Float[layer, span, batch], and the names of the spans: bos, before_image,
        each picture, markers, question, template, answer_turn, last, as far as the prompt has them.

    Raises:
        PromptError: the activation has no positions in its second dimension.
    """
    units = Units.of("span", model.prompt, model.cfg.n_heads, groups=groups)
    cells = [(layer, unit) for layer in range(model.cfg.n_layers) for unit in range(len(units.names))]

    def put(corrupt: Tensor, index: Any, clean: Tensor) -> Tensor:
        if corrupt.shape[:2] != units.masks.shape[1:]:
            raise PromptError(
                f"{activation_name} has shape {tuple(corrupt.shape)}, without the prompt's positions in second place\n"
                "  patch it by head, or another activation by span"
            )
        mask = units.masks[int(index[1])].to(corrupt.device)
        corrupt[mask] = clean[mask]
        return corrupt

    found: Any = generic_activation_patch(
        model,
        model.tokens,
        clean_cache,
        patching_metric,
        put,  # type: ignore[arg-type]
        activation_name,
        index_df=pandas.DataFrame(cells, columns=["layer", "span"]),
        reduce=reduce,  # type: ignore[arg-type]
    )
    values = found if isinstance(found, Tensor) else found.values
    return values.unflatten(0, (model.cfg.n_layers, len(units.names))), units.names
