"""The weights of a Llama in a GGUF file (version 2 or 3), dequantised to fp32 under the names of transformers.

transformers reads such files too, and takes three passes over the vocabulary in Python for it. Here what stands before
the tensors is stepped over.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"GGUF"
ALIGNMENT = 32  # bytes, unless the file says otherwise, which this one does not
STRING, ARRAY = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its type
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Cursor:
    """Reads little-endian values one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def number(self, form: str) -> int:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def text(self) -> str:
        n = self.number("Q")
        self.at += n
        return self.data[self.at - n : self.at].decode()

    def skip(self, kind: int) -> None:
        """Step over a value of a type."""
        if kind == STRING:
            n = self.number("Q")
            self.at += n
        elif kind == ARRAY:
            inner, n = self.number("I"), self.number("Q")
            if inner in SIZES:
                self.at += n * SIZES[inner]
            else:
                for _ in range(n):
                    self.skip(inner)
        else:
            self.at += SIZES[kind]


def read_weights(file: Path, n_heads: int, n_key_value_heads: int) -> dict[str, Any]:
    """Every tensor of the file by its name in `LlamaForCausalLM`, fp32."""
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != MAGIC:
            raise ValueError(f"{file} is no GGUF file")
        import torch
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        weights = {}
        cursor = Cursor(data)
        cursor.at = 8  # and its version
        n_tensors, n_facts = cursor.number("Q"), cursor.number("Q")
        for _ in range(n_facts):
            cursor.text()
            cursor.skip(cursor.number("I"))
        found = []
        for _ in range(n_tensors):
            name = cursor.text()
            shape = [cursor.number("Q") for _ in range(cursor.number("I"))]
            found.append((name, shape[::-1], GGMLQuantizationType(cursor.number("I")), cursor.number("Q")))
        start = -(-cursor.at // ALIGNMENT) * ALIGNMENT
        for name, shape, kind, offset in found:
            block, size = GGML_QUANT_SIZES[kind]
            n_bytes = int(np.prod(shape)) // block * size
            raw = np.frombuffer(data, np.uint8, n_bytes, start + offset).reshape(*shape[:-1], -1)
            values = np.array(dequantize(raw, kind), np.float32).reshape(shape)
            heads = {"attn_q": n_heads, "attn_k": n_key_value_heads}.get(name.split(".")[-2])
            weights[renamed(name)] = torch.from_numpy(values if heads is None else unpaired(values, heads))
            del raw  # or the file could not be closed
    return weights


def renamed(name: str) -> str:
    """A tensor's name in `LlamaForCausalLM`."""
    *block, part, ending = name.split(".")
    return ".".join([*(["model.layers", block[1]] if block else []), NAMES[part], ending])


def unpaired(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of q and k as transformers has them: rotated halves one after the other, where GGUF interleaves them."""
    by_head = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(by_head.swapaxes(1, 2)).reshape(rows.shape)
