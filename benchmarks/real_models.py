"""Released models in their true shapes, as data, built with random bf16 weights and as many layers as memory holds.

The numbers are those of the published `config.json` files. A tower keeps its width and what it hands to the decoder,
and two of its layers: it runs once, here, and every pass is given its features. Five tokens are made attention sinks,
as `benchmarks.model` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf

from lmm_lens import Lens, Prompt

BOS, TEXT_BEFORE, TEXT_AFTER = 1, 34, 90
MASSIVE, KEY_GAIN = 100.0, 8.0
VICUNA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
}
CLIP_L_336 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
NEXT_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


@dataclass(frozen=True)
class RealModel:
    """A released model's shape, and one prompt of usual length.

    Attributes:
        name: as people write it.
        config: the numbers of its `config.json` that shape it.
        picture: the pixels of one picture, as its processor makes them, of noise.
        n_visual: image tokens of that picture, newline vectors included.
        sink_dims: two dimensions of the residual stream that are made massive in five tokens.
    """

    name: str
    config: Mapping[str, Any]
    picture: Callable[[], dict[str, torch.Tensor]]
    n_visual: int
    sink_dims: tuple[int, int]

    @property
    def n_layers(self) -> int:
        """Of the decoder as released."""
        return int(self.config["text_config"]["num_hidden_layers"])

    def settings(self, n_layers: int) -> Any:
        """The configuration, with this many layers."""
        config = {**self.config, "text_config": {**self.config["text_config"], "num_hidden_layers": n_layers}}
        return hf.CONFIG_MAPPING[config["model_type"]](**{key: v for key, v in config.items() if key != "model_type"})

    def weights(self, n_layers: int) -> int:
        """Bytes of the bf16 weights of so many layers, of the two layers of the tower, and of the rest."""
        with torch.device("meta"):
            model = class_of(settings := self.settings(n_layers))(settings)
        return sum(2 * int(each.numel()) for each in model.parameters())

    def fitting(self, free: float) -> int:
        """How many layers' weights fit into this many bytes, at most all."""
        first, second = (self.weights(n_layers) for n_layers in (1, 2))
        return max(1, min(self.n_layers, 1 + int((free - first) // (second - first))))

    def build(self, n_layers: int, device: torch.device) -> Lens:
        """A lens on random weights that can have sinks and never end their answers."""
        settings = self.settings(n_layers)
        torch.manual_seed(0)
        with device, torch.no_grad():
            model: Any = class_of(settings)._from_config(settings, dtype=torch.bfloat16).eval()
            model.get_input_embeddings().weight[BOS, list(self.sink_dims)] = MASSIVE
            for layer in model.model.language_model.layers:
                layer.self_attn.k_proj.weight[:, list(self.sink_dims)] *= KEY_GAIN
        model.generation_config.eos_token_id = None
        return Lens(model)

    def prompt(self, lens: Lens) -> Prompt:
        """Random text around one picture, whose features are computed here and hold sinks."""
        model: Any = lens.model
        image_id = model.config.image_token_id
        n_tokens = TEXT_BEFORE + self.n_visual + TEXT_AFTER
        ids = torch.randint(3, 1000, (1, n_tokens), generator=torch.Generator().manual_seed(0))
        ids[:, 0], ids[:, TEXT_BEFORE : TEXT_BEFORE + self.n_visual] = BOS, image_id
        pixels = {name: each.to(lens.device) for name, each in self.picture().items()}
        given = {name: x.to(model.dtype) if x.is_floating_point() else x for name, x in pixels.items()}
        with torch.no_grad():
            pictures = model.get_image_features(**given, return_dict=True)
        found = pictures.pooler_output
        features = found.flatten(0, -2) if isinstance(found, torch.Tensor) else found[0]  # a view
        if len(features) != self.n_visual:
            raise SystemExit(f"{self.name}: {len(features)} features where {self.n_visual} were expected")
        for dim in self.sink_dims:
            features[50 :: self.n_visual // 4, dim] = MASSIVE
        inputs: dict[str, Any] = {"input_ids": ids, "mm_encoder_outputs": {"image": pictures}}
        inputs |= {name: x for name, x in pixels.items() if not name.startswith("pixel")}
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (ids == image_id).int()
        return lens.prompt(inputs=inputs)


def class_of(settings: Any) -> Any:
    """The model class of a configuration."""
    return hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(settings)]


def square(side: int, n_tiles: int = 1) -> torch.Tensor:
    """Tiles of noise."""
    return torch.randn(n_tiles, 3, side, side, generator=torch.Generator().manual_seed(0))


LLAVA = RealModel(
    "LLaVA-1.5-7B",
    {
        "model_type": "llava",
        "text_config": VICUNA,
        "vision_config": {**CLIP_L_336, "num_hidden_layers": 2},
        "image_token_index": 32000,
    },
    lambda: {"pixel_values": square(336)},
    576,
    (1415, 2533),
)
LLAVA_NEXT = RealModel(
    "LLaVA-NeXT-7B",
    {
        "model_type": "llava_next",
        "text_config": VICUNA,
        "vision_config": {**CLIP_L_336, "num_hidden_layers": 2},
        "image_token_index": 32000,
        "image_grid_pinpoints": NEXT_PINPOINTS,
    },
    lambda: {"pixel_values": square(336, 5)[None], "image_sizes": torch.tensor([[672, 672]])},
    2880 + 48,  # the patches of five crops, and a newline vector after each of 48 rows
    (1415, 2533),
)
QWEN = RealModel(
    "Qwen2.5-VL-7B",
    {
        "model_type": "qwen2_5_vl",
        "text_config": {
            **QWEN_7B,
            "vocab_size": 152064,
            "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
        },
        "vision_config": {
            "depth": 2,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "fullatt_block_indexes": [1],
        },
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
    },
    # 1036 x 1036 pixels: 74 x 74 patches of 14, 2 x 2 of which are a token
    lambda: {
        "pixel_values": torch.randn(74 * 74, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": torch.tensor([[1, 74, 74]]),
    },
    1369,
    (458, 2570),
)
INTERNVL = RealModel(
    "InternVL3-8B",
    {
        "model_type": "internvl",
        "text_config": {
            "model_type": "qwen2",
            **QWEN_7B,
            "vocab_size": 151674,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 2,
            "num_attention_heads": 16,
            "image_size": [448, 448],
            "patch_size": [14, 14],
        },
        "image_token_id": 151667,
        "image_seq_length": 256,
        "downsample_ratio": 0.5,
    },
    lambda: {"pixel_values": square(448, 5)},
    5 * 256,  # four crops and the thumbnail
    (458, 2570),
)
MODELS = {"llava": LLAVA, "llava_next": LLAVA_NEXT, "qwen2_5_vl": QWEN, "internvl": INTERNVL}
