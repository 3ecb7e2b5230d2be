"""Tiny LLaVA models with their real processors, and pictures whose colours say where each pixel lies."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from torch import Tensor, nn
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lmm_lens import Lens
from lmm_lens.prompts.prompt import Prompt
from tests.support.families.table import Built, family
from tests.support.models.parts import TEXT, TOWER
from tests.support.tokenizer import byte_tokenizer

BLANK = {"do_normalize": False}  # pixels stay colours


@cache
def tokenizer() -> Any:
    return byte_tokenizer(image_token="<image>", video_token="<video>")


def config(kind: type, edge: int, tower: type, text: type, **options: Any) -> Any:
    ids = {
        f"{name}_token_index": tokenizer().convert_tokens_to_ids(f"<{name}>")
        for name in ("image", "video")
        if hasattr(kind, f"{name}_token_index")
    }
    heads = {} if text is hf.LlamaConfig else {"head_dim": None}
    words = {key: value for key, value in {**TEXT, "vocab_size": 300, **heads}.items() if value is not None}
    vision = tower(**{**TOWER, "image_size": edge, "patch_size": 14})
    return kind(vision_config=vision, text_config=text(**words), **ids, **options)


def squares(edge: int) -> dict[str, Any]:
    """Settings of a processor that makes squares of the middle."""
    return {"size": {"shortest_edge": edge}, "crop_size": {"height": edge, "width": edge}, **BLANK}


NEXT_POINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


@family("llava_next")
def llava_next() -> Built:
    settings = config(hf.LlavaNextConfig, 56, hf.CLIPVisionConfig, hf.LlamaConfig, image_grid_pinpoints=NEXT_POINTS)
    images = hf.LlavaNextImageProcessorPil(**squares(56), image_grid_pinpoints=NEXT_POINTS)
    how = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return hf.LlavaNextForConditionalGeneration(settings), hf.LlavaNextProcessor(images, tokenizer(), **how)


@family("llava_next_video")
def llava_next_video() -> Built:
    settings = config(
        hf.LlavaNextVideoConfig, 56, hf.CLIPVisionConfig, hf.LlamaConfig, image_grid_pinpoints=NEXT_POINTS
    )
    images = hf.LlavaNextImageProcessorPil(**squares(56), image_grid_pinpoints=NEXT_POINTS)
    films = hf.LlavaNextVideoVideoProcessor(**squares(56))
    how = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = hf.LlavaNextVideoProcessor(films, images, tokenizer(), **how)
    return hf.LlavaNextVideoForConditionalGeneration(settings), processor


@family("llava_onevision")
def llava_onevision() -> Built:
    """As the real one: a tower whose last pixels no patch sees (70 of 72), an odd side, and up to 36 crops."""
    points = [[72 * rows, 72 * columns] for rows in range(1, 7) for columns in range(1, 7)]
    settings = config(
        hf.LlavaOnevisionConfig,
        72,
        hf.SiglipVisionConfig,
        hf.Qwen2Config,
        image_grid_pinpoints=points,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )
    edge = {"size": {"height": 72, "width": 72}, **BLANK}
    images = hf.LlavaOnevisionImageProcessorPil(**edge, image_grid_pinpoints=points)
    films = hf.LlavaOnevisionVideoProcessor(**edge)
    how = {"num_image_tokens": 25, "vision_feature_select_strategy": "full"}
    processor = hf.LlavaOnevisionProcessor(images, tokenizer(), films, **how)
    return hf.LlavaOnevisionForConditionalGeneration(settings), processor


@family("video_llava")
def video_llava() -> Built:
    settings = config(hf.VideoLlavaConfig, 56, hf.CLIPVisionConfig, hf.LlamaConfig)
    images, films = hf.VideoLlavaImageProcessor(**squares(56)), hf.VideoLlavaVideoProcessor(**squares(56))
    processor = hf.VideoLlavaProcessor(images, films, tokenizer(), patch_size=14)
    return hf.VideoLlavaForConditionalGeneration(settings), processor


@family("llava")
@family("llava class token", "full")
@family("llava padded", "default", True)
def llava(keeps: str = "default", pad: bool = False) -> Built:
    """The released model's processor: the middle crop, or padded; the class token may be kept."""
    images = hf.LlavaImageProcessorPil(**squares(56), do_pad=pad)
    settings = config(hf.LlavaConfig, 56, hf.CLIPVisionConfig, hf.LlamaConfig, vision_feature_select_strategy=keeps)
    return hf.LlavaForConditionalGeneration(settings), _processor(images, keeps)


@family("vipllava")
def vipllava() -> Built:
    settings = config(hf.VipLlavaConfig, 56, hf.CLIPVisionConfig, hf.LlamaConfig, vision_feature_layers=[-1, -2])
    processor = _processor(hf.LlavaImageProcessorPil(**squares(56), do_pad=False), "default")
    return hf.VipLlavaForConditionalGeneration(settings), processor


@family("llava siglip 72")
def llava_siglip() -> Built:
    """Squeezed for SigLIP; 2 of 72 pixels fill no patch, as 6 of the real 384."""
    settings = config(hf.LlavaConfig, 72, hf.SiglipVisionConfig, hf.LlamaConfig, vision_feature_select_strategy="full")
    images = SiglipImageProcessorPil(size={"height": 72, "width": 72}, **BLANK)
    processor = hf.LlavaProcessor(images, tokenizer(), patch_size=14, vision_feature_select_strategy="full")
    return hf.LlavaForConditionalGeneration(settings), processor


def _processor(images: Any, keeps: str) -> Any:
    """With a class token before the patches, which `keeps` leaves out or in."""
    return hf.LlavaProcessor(
        images, tokenizer(), patch_size=14, vision_feature_select_strategy=keeps, num_additional_image_tokens=1
    )


ANYRES = ["llava_next", "llava_next_video", "llava_onevision"]


def placeholders(lens: Lens, prompt: Prompt, row: int = 0) -> list[int]:
    """Positions of image tokens, newline vectors included, as the model itself finds them."""
    return (prompt.inputs["input_ids"][row] == lens.model.config.image_token_id).nonzero().flatten().tolist()


def check_bookkeeping(lens: Lens, prompt: Prompt) -> None:
    """Every image token is in exactly one span, and the masks partition the sequence."""
    for row, spans in enumerate(prompt.spans):
        held = sorted(position for span in spans for position in span.positions)
        assert held == placeholders(lens, prompt, row)
    kinds = torch.stack([prompt.mask(name) for name in ("image", "video", "marker", "text", "pad")])
    assert bool((kinds.sum(0) == 1).all())


# ---------------------------------------------------------------------- what a token sees


def ramp(width: int, height: int, blue: int = 255) -> Image.Image:
    """A picture of up to 256 x 256 pixels: red is x, green is y, and blue is its own, so that padding shows."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, blue)], -1).astype(np.uint8))


def colours(model: nn.Module, pixels: Tensor) -> Tensor:
    """The mean colour of every patch in place of its features: [..., patch, channel]."""
    mean = nn.functional.avg_pool2d(pixels.flatten(0, -4), model.config.vision_config.patch_size)
    return (mean.flatten(2).transpose(1, 2) * 255).unflatten(0, pixels.shape[:-3])


def seen(model: nn.Module, inputs: Any) -> Tensor:
    """The mean colour that every image token sees, NaN for a newline vector, as the model packs them: [token, 3]."""
    sizes = inputs["image_sizes"].tolist()
    counts = inputs.get("batch_num_images", torch.ones(len(sizes), dtype=torch.int)).tolist()
    cut = [n == 1 for n in counts for _ in range(n)]
    points, edge = model.config.image_grid_pinpoints, model.config.vision_config.image_size
    n_tiles = [
        image_size_to_num_patches(size, points, edge) if alone else 1 for size, alone in zip(sizes, cut, strict=True)
    ]
    tiles = [tile[:n] for tile, n in zip(colours(model, inputs["pixel_values"]), n_tiles, strict=True)]
    options = {} if "onevision" in model.config.model_type else {"vision_feature_select_strategy": "default"}
    newline = torch.full((3,), torch.nan)
    return torch.cat(model.model.pack_image_features(tiles, sizes, image_newline=newline, **options)[0])


def check_colours(
    prompt: Prompt, positions: list[int], found: Tensor, row: int = 0, near: float = 0.75, least: int = 1
) -> None:
    """The mean place that every token sees in a ramp is its box's centre; those that see padding are left out."""
    inside = [(p, colour) for p, colour in zip(positions, found.tolist(), strict=True) if colour[2] > 254.5]
    assert len(inside) >= least
    for position, (x, y, _) in inside:
        box = prompt.box(position, row)
        centre = ((box.x0 + box.x1 - 1) / 2, (box.y0 + box.y1 - 1) / 2)  # pixel 0 has its centre at 0.5
        assert (x, y) == pytest.approx(centre, abs=near), (position, box)
