"""A tower of convolutions that stands in for those of timm, which is not installed beside the tests."""

import transformers as hf
from transformers import AutoModel

SETTINGS = {"hidden_sizes": [8, 8, 16, 32], "depths": [1, 1, 1, 1], "num_stages": 4, "num_channels": 3, "patch_size": 4}
SETTINGS |= {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "drop_path_rate": 0.0, "layer_scale_init_value": 1e-6}


class CellsConfig(hf.Gemma3nVisionConfig):
    """What Gemma 3n asks of its tower, with the settings of ConvNeXt."""

    model_type = "convnext_cells"


class Cells(hf.ConvNextModel):
    """Stock ConvNeXt: 32 x 32 pixels a cell."""

    config_class = CellsConfig


AutoModel.register(CellsConfig, Cells, exist_ok=True)


def cells() -> CellsConfig:
    """The configuration of a small one."""
    config = CellsConfig(hidden_size=32, vocab_size=8, vocab_offset=290)
    for name, value in SETTINGS.items():
        setattr(config, name, value)
    return config
