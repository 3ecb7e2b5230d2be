"""Open a model and its processor by name; what is heavy is imported when it is asked for."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import LensError, ModelError, unknown

HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""Options that say where files are, for a model and its processor alike."""
PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
)
PARTS = ("image_processor", "video_processor", "tokenizer")
OF_TOKENIZERS = ("chat_template", "model_max_length", "padding_side", "truncation_side")
OF_MODELS = ("attn_implementation", "device_map", "dtype", "quantization_config", "trust_remote_code")


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn transformers' long errors of loading into one that says what was tried."""
    try:
        yield
    except LensError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"{name!r} cannot be opened as an image-text-to-text model: {_first_line(error)}\n"
            f"  {_what_to_do(name, error)}"
        ) from error


def _what_to_do(name: str, error: Exception) -> str:
    """About what keeps a model from being opened."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled

    causes: list[BaseException] = []
    each: BaseException | None = error
    while each is not None:
        causes.append(each)
        each = each.__cause__ or each.__context__
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return (
            f"its terms are to be accepted first, at https://huggingface.co/{name}; then log in with "
            "`hf auth login`, or give token=..."
        )
    if any(isinstance(cause, (LocalEntryNotFoundError, OfflineModeIsEnabled)) for cause in causes):
        return (
            "the Hub cannot be reached from here, or HF_HUB_OFFLINE=1 forbids it, and this model is not in its cache\n"
            f"  where there is a network, `hf download {name}` puts it there; or give a folder"
        )
    if "does not appear to have a file named" in str(error):
        return "the weights are missing: an upload that is not finished, another format, or a name of something else"
    return "give a Hub name or a folder written by save_pretrained"


def open_model(
    name: str | os.PathLike[str], backend: str, remote: bool | str, processor: Any = None, **options: Any
) -> tuple[Any, Any]:
    """A model and its processor; for a server the model's shape alone, in nnsight's wrapping.

    Args:
        name: a Hub name or a folder, of a model or of a PEFT adapter, whose base model is then opened too.
        backend, remote: see `Lens`.
        processor: one that is loaded already, or the name of one; by default the model's own.
        **options: of the model, of the processor, or of where both are found; see `Lens.from_pretrained`.

    Raises:
        ModelError: there is no such model, it is no image-text-to-text model, or it takes no such option.
    """
    from transformers import AutoModelForImageTextToText

    name = os.fspath(name)
    with loading(name):
        adapter = _adapter_of(name, options)
        base, at_base = (name, options) if adapter is None else _base_of(name, adapter, options)
        own = dict(at_base)
        if processor is None or isinstance(processor, (str, os.PathLike)):
            home = (name, base) if processor is None else (os.fspath(processor),)
            processor, taken = _open_processor(home, own if processor is None else _without_places(own))
            own = _for_model(base, own, taken)
        if remote and backend == "nnsight":
            if adapter is not None:
                raise ModelError(
                    f"{name!r} is a PEFT adapter, which a server does not have\n"
                    "  merge it into its model, or open it with another backend"
                )
            from ..backends.nnsight.wrap import opened

            return opened(name, processor, **own), processor
        try:
            model = AutoModelForImageTextToText.from_pretrained(base, **own)
        except TypeError as error:
            raise _unknown_option(error, processor) or error from error
        if adapter is not None:
            model = _with_adapter(model, name, options)
        _complete(processor, model.config)
        return model.eval(), processor


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _places(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in HUB}


def _without_places(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for a processor that is somewhere else: revision and folder are the model's."""
    return {name: value for name, value in options.items() if name not in ("revision", "subfolder")}


# ---------------------------------------------------------------------- the processor


def _open_processor(names: tuple[str, ...], options: Mapping[str, Any]) -> tuple[Any, frozenset[str]]:
    """The processor of the first of some places that has one, and those of the options that it took.

    None where no place has files of one.
    """
    from transformers import AutoProcessor

    places = _places(options) | {name: options[name] for name in ("trust_remote_code",) if name in options}
    for name in names:
        if not _has_processor(name, places):
            continue
        try:
            processor = AutoProcessor.from_pretrained(name, **places)
            taken = frozenset(options) & _options_of(processor) - set(HUB)
            if taken:
                processor = AutoProcessor.from_pretrained(name, **places, **{n: options[n] for n in taken})
        except (OSError, ValueError, ImportError, TypeError) as error:
            raise ModelError(
                f"the processor in {name!r} cannot be opened: {_first_line(error)}\n"
                "  give processor=..., or the name of one; or copy all of its files there"
            ) from error
        return processor, taken
    return None, frozenset()


def _has_processor(name: str, places: Mapping[str, Any]) -> bool:
    from transformers.utils.hub import cached_file

    quiet = ("gated_repo", "missing_entries", "connection_errors")
    where: dict[str, Any] = {key: value for key, value in places.items() if key in HUB}
    where |= {f"_raise_exceptions_for_{problem}": False for problem in quiet}
    return any(cached_file(name, file, **where) is not None for file in PROCESSOR_FILES)


def _options_of(processor: Any) -> frozenset[str]:
    """What a processor and its parts can be told when they are opened."""
    found = {"use_fast", *OF_TOKENIZERS}
    for name in PARTS[:2]:
        kinds = getattr(type(getattr(processor, name, None)), "valid_kwargs", object).__mro__
        found |= {key for kind in kinds for key in getattr(kind, "__annotations__", {})}
    found |= set(inspect.signature(type(processor).__init__).parameters) - {"self", "args", "kwargs", *PARTS}
    return frozenset(found | set(getattr(getattr(processor, "tokenizer", None), "SPECIAL_TOKENS_ATTRIBUTES", ())))


def _for_model(name: str, options: Mapping[str, Any], taken: frozenset[str]) -> dict[str, Any]:
    """The options that are not the processor's alone: some are settings of the model too."""
    if not taken:
        return dict(options)
    from transformers import AutoConfig

    places = {key: value for key, value in options.items() if key in (*HUB, "trust_remote_code")}
    config = AutoConfig.from_pretrained(name, **places)
    return {key: value for key, value in options.items() if key not in taken or hasattr(config, key)}


def _unknown_option(error: TypeError, processor: Any) -> ModelError | None:
    """What to say of an option that a model's `__init__` was given because nothing else took it."""
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if found is None:
        return None
    valid = sorted(_options_of(processor)) if processor is not None else []
    return ModelError(unknown("option of the model or of its processor", found[1], [*OF_MODELS, *valid]))


def _complete(processor: Any, config: Any) -> None:
    """Set what old processor files leave to the model: how many tokens a picture takes, as its config tells."""
    tower = getattr(config, "vision_config", None)
    patch, edge = getattr(tower, "patch_size", None), getattr(tower, "image_size", None)
    if getattr(processor, "patch_size", 0) is None and patch is not None:
        processor.patch_size = patch
        if hasattr(processor, "num_additional_image_tokens"):  # a class token, which the strategy may then drop
            processor.num_additional_image_tokens = int(getattr(tower, "model_type", "") == "clip_vision_model")
    if getattr(processor, "num_image_tokens", 0) is None and isinstance(patch, int) and isinstance(edge, int):
        processor.num_image_tokens = (edge // patch) ** 2
    for name in ("vision_feature_select_strategy", "num_query_tokens"):
        if getattr(processor, name, 0) is None and getattr(config, name, None) is not None:
            setattr(processor, name, getattr(config, name))


# ---------------------------------------------------------------------- PEFT adapters


def _adapter_of(name: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config of a PEFT adapter; None where the name is of a model."""
    from transformers.utils.peft_utils import find_adapter_config_file

    file = find_adapter_config_file(name, **_places(options))
    if file is None:
        return None
    if importlib.util.find_spec("peft") is None:
        raise ModelError(f"{name!r} is a PEFT adapter, and peft is not installed\n  pip install peft")
    if (Path(name) / "config.json").is_file():  # a model with an adapter beside it, which transformers opens together
        return None
    config: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    return config


def _base_of(name: str, adapter: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of an adapter's base model, and the options for it."""
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"the PEFT adapter in {name!r} does not name its base model\n"
            "  give Lens(PeftModel.from_pretrained(base_model, folder), processor)"
        )
    if not Path(base).exists() and (Path(name) / base).exists():
        base = str(Path(name) / base)
    at_base = {**_without_places(options), **({"revision": adapter["revision"]} if adapter.get("revision") else {})}
    return str(base), at_base


def _with_adapter(model: Any, name: str, options: Mapping[str, Any]) -> Any:
    """The model in PEFT's wrapping, with the adapter active."""
    from peft import PeftModel

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        wrapped = PeftModel.from_pretrained(model, name, **_places(options))
    for each in said:
        if "missing adapter keys" in str(each.message):
            raise ModelError(
                f"the PEFT adapter in {name!r} does not fit {type(model).__name__}: weights of it are not in its file\n"
                "  it was made for another model, or with other versions of peft or transformers"
            )
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return wrapped
