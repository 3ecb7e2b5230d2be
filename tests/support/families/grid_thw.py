"""Tiny models of the Qwen layout, each with the real processor of its family, built from nothing."""

from collections.abc import Mapping
from types import SimpleNamespace

import torch
import transformers as hf
from torch import Tensor
from transformers import ProcessorMixin
from transformers.models.ernie4_5_vl_moe.video_processing_ernie4_5_vl_moe import Ernie4_5_VLMoeVideoProcessor
from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor
from transformers.models.glm46v.video_processing_glm46v import Glm46VVideoProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor

from lmm_lens import Lens
from lmm_lens.prompts.prompt import Prompt
from tests.support.evidence import Pixels, identity
from tests.support.families.grid_thw_kin import GLM, KIN, QWEN, build_kin
from tests.support.families.grid_thw_kin import placeholders as _tokens
from tests.support.families.table import Built, family
from tests.support.models import FAMILIES
from tests.support.models.parts import MROPE, NO_HEAD_DIM, TEXT
from tests.support.tokenizer import byte_tokenizer

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


PLAIN = _tokens("<|image_pad|>", "<|video_pad|>", {"image": ("", ""), "video": ("", "")})
BAIDU = "<|IMAGE_PLACEHOLDER|>", "<|VIDEO_PLACEHOLDER|>"
PADDLE = _tokens(*BAIDU, {"image": ("<|IMAGE_START|>", "<|IMAGE_END|>"), "video": ("", "")}, image_token=BAIDU[0])
ERNIE = _tokens(
    *BAIDU,
    {**PADDLE.around, "video": ("<|VIDEO_START|>", "<|VIDEO_END|>")},
    **{f"{kind}_token": f"<|{kind.upper()}_PLACEHOLDER|>" for kind in ("image", "video")},
    **{f"{kind}_{end}_token": f"<|{kind}_{end}|>".upper() for kind in ("image", "video") for end in ("start", "end")},
)
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 32}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
BASE = {"hidden_size": 32, "intermediate_size": 64, "patch_size": 14}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2}
ERNIE_CONFIG = {
    "vision_config": {**BASE, "depth": 2, "num_heads": 2},
    "text_config": {
        **NO_HEAD_DIM,
        "moe_intermediate_size": [32, 32],
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
        "rope_parameters": {**MROPE, "mrope_section": [3, 3, 2]},
    },
}
PADDLE_CONFIG = {
    "vision_config": {**BASE, **LAYERS, "image_size": 112},
    "text_config": {**TEXT, "rope_parameters": MROPE},
}
LLAMA_CONFIG = {"vision_config": {**BASE, **LAYERS}, "text_config": NO_HEAD_DIM}
QWEN_3 = hf.Qwen3VLProcessor, hf.Qwen2VLImageProcessorPil, Qwen3VLVideoProcessor
# name: where its configuration comes from, its own part of it, tokens, processor, image and video processor
KNOWN = {
    "qwen2_vl": ("qwen2_vl", {}, QWEN, hf.Qwen2VLProcessor, hf.Qwen2VLImageProcessorPil, Qwen2VLVideoProcessor),
    "qwen2_5_vl": ("qwen2_5_vl", {}, QWEN, hf.Qwen2_5_VLProcessor, hf.Qwen2VLImageProcessorPil, Qwen2VLVideoProcessor),
    "qwen3_vl": ("qwen3_vl", {}, QWEN, *QWEN_3),
    "qwen3_vl_moe": ("qwen3_vl", EXPERTS, QWEN, *QWEN_3),
    "qwen3_5": ("qwen3_5", {}, QWEN, *QWEN_3),
    "qwen3_5_moe": ("qwen3_5", SHARED, QWEN, *QWEN_3),
    "glm4v": ("glm4v", {}, GLM, hf.Glm4vProcessor, hf.Glm4vImageProcessorPil, Glm4vVideoProcessor),
    "glm4v_moe": ("glm4v", ROUTED, GLM, hf.Glm4vProcessor, hf.Glm4vImageProcessorPil, Glm4vVideoProcessor),
    "glm46v": ("glm4v", {}, GLM, hf.Glm46VProcessor, hf.Glm46VImageProcessorPil, Glm46VVideoProcessor),
    "ernie4_5_vl_moe": (
        ERNIE_CONFIG,
        {},
        ERNIE,
        hf.Ernie4_5_VLMoeProcessor,
        hf.Ernie4_5_VLMoeImageProcessorPil,
        Ernie4_5_VLMoeVideoProcessor,
    ),
    "paddleocr_vl": (PADDLE_CONFIG, {}, PADDLE, hf.PaddleOCRVLProcessor, hf.PaddleOCRVLImageProcessorPil, None),
    "video_llama_3": (
        LLAMA_CONFIG,
        {"model_type": "qwen2"},
        PLAIN,
        hf.VideoLlama3Processor,
        hf.VideoLlama3ImageProcessorPil,
        VideoLlama3VideoProcessor,
    ),
}
OPTIONS = {"ernie4_5_vl_moe": {"draw_on_frames": False}}  # of the video processor: no font here to write the time with
NAMES = [*KNOWN, *KIN]


def tokens_of(name: str) -> SimpleNamespace:
    """The family's placeholders, and the markers around them."""
    return KIN[name][0] if name in KIN else KNOWN[name][2]


def template_of(tokens: SimpleNamespace) -> str:
    """A chat template as the families have it: every picture and video between its markers."""
    cases = "".join(
        f"{{% {word} part['type'] == '{kind}' %}}{tokens.around[kind][0]}{slot}{tokens.around[kind][1]}"
        for word, kind, slot in (("if", "image", tokens.image), ("elif", "video", tokens.video))
    )
    return (
        "{% for m in messages %}<|user|>{% for part in m['content'] %}"
        f"{cases}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}{{% endfor %}}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )


def build(name: str) -> Built:
    """A token covers 28 x 28 pixels, or 32 x 32 with Qwen 3."""
    if name in KIN:
        return build_kin(name, template_of(tokens_of(name)))
    like, own, tokens, processor, image_processor, video_processor = KNOWN[name]
    brackets = sorted({marker for pair in tokens.around.values() for marker in pair if marker})
    tokenizer = byte_tokenizer(tokens.image, tokens.video, *brackets, "<|user|>", "<|assistant|>", **tokens.named)
    id_of = tokenizer.convert_tokens_to_ids
    config = FAMILIES[like]()[0].config.to_dict() if isinstance(like, str) else like
    vision, text = dict(config["vision_config"]), {**config["text_config"], "vocab_size": len(tokenizer)}
    vision.pop("model_type", None), text.pop("model_type", None)
    text |= own
    if name == "glm46v":
        vision["model_type"], text["model_type"] = "glm4v_vision", "glm4v_text"
    ids = {"image_token_id": id_of(tokens.image), "video_token_id": id_of(tokens.video)}
    for kind, (start, end) in tokens.around.items():
        word = "vision" if tokens in (QWEN, PADDLE) else kind
        ids |= {f"{word}_start_token_id": id_of(start), f"{word}_end_token_id": id_of(end)} if start else {}
    model_type = hf.CONFIG_MAPPING[name]
    torch.manual_seed(0)  # after the model that the configuration may come from
    settings = model_type(vision_config=vision, text_config=text, **ids)
    model = hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[model_type](settings)
    size = {"shortest_edge": 28 * 28, "longest_edge": 224 * 224}
    patch = {"patch_size": vision["patch_size"], "merge_size": 2}
    films = {"do_sample_frames": False, "size": {**size, "longest_edge": 4 * 224 * 224}, **OPTIONS.get(name, {})}
    parts = [image_processor(size=size, **patch), tokenizer]
    parts += [video_processor(**films, **patch)] if video_processor is not None else []
    return model, processor(*parts, chat_template=template_of(tokens))


for _name in NAMES:
    family(_name, _name)(build)


def features(lens: Lens, kind: str, inputs: Mapping[str, Tensor], pixels: Tensor | None = None) -> Tensor:
    """The feature of every token of a kind, in order, each from its own pixels alone."""
    model = lens.adapter.model.model
    tower = next(getattr(model, name) for name in ("visual", "vision_tower", "vision_model") if hasattr(model, name))
    blocks = [
        module for module in tower.modules() if type(module).__name__.endswith(("Block", "EncoderLayer", "VisionLayer"))
    ]
    pixels = inputs[PIXELS[kind]] if pixels is None else pixels
    further = [inputs[name] for name in (f"{kind}_grid_thw", f"{kind}_merge_sizes") if name in inputs]
    with identity(blocks):
        out = torch.cat(list(getattr(model, f"get_{kind}_features")(pixels, *further).pooler_output))
    kept = inputs.get("video_compression_mask") if kind == "video" else None
    return out if kept is None else out[kept]


def by_pixel(lens: Lens) -> bool:
    """Whether a patch is all channels of one pixel, then of the next."""
    return lens.adapter.config.model_type == "cosmos3_edge"


def places(lens: Lens, kind: str, inputs: Mapping[str, Tensor]) -> list[tuple[int, set[int], Pixels]]:
    """For each token, (source, frames, box): the pixels its feature depends on, by its gradient.

    Which pixel each number of `pixel_values` is, the processor's own `patchify` says, of pictures of coordinates.
    """
    grids = enumerate(inputs[f"{kind}_grid_thw"].tolist())
    where = [_coordinates(lens.processor, kind, source, *grid) for source, grid in grids]
    flat = torch.cat(where).flatten(1)
    # of each patch all of one channel, then all of the next, mostly
    split = (lambda t: t.unflatten(1, (-1, 3)).mT) if by_pixel(lens) else (lambda t: t.unflatten(1, (3, -1)))
    y, x, frame = split(flat).unbind(1)  # each [patch, pixel of one channel]

    pixels = inputs[PIXELS[kind]].clone().requires_grad_(True)
    found = []
    for token in features(lens, kind, inputs, pixels):
        (slope,) = torch.autograd.grad(token.square().sum(), pixels, retain_graph=True)
        reached = split(slope.flatten(1)).abs().sum(1) > 0
        xs, ys = x[reached].int().tolist(), y[reached].int().tolist()
        frames = frame[reached].unique().int().tolist()
        box = min(xs), min(ys), max(xs) + 1, max(ys) + 1
        assert len(set(zip(xs, ys, strict=True))) == (box[2] - box[0]) * (box[3] - box[1])
        assert len({f // 100 for f in frames}) == 1
        found.append((frames[0] // 100, {f % 100 for f in frames}, box))
    return found


def _coordinates(processor: ProcessorMixin, kind: str, source: int, t: int, h: int, w: int) -> Tensor:
    """What the processor makes of a film whose colours say where each pixel is: y, x and frame + 100 * source."""
    part = getattr(processor, f"{kind}_processor")
    whole = kind == "video" and hasattr(part, "patchify")  # Ernie's cannot be asked, and takes frames one by one
    together = part.temporal_patch_size if whole else 1
    axes = (torch.arange(float(n)) for n in (together * t, h * part.patch_size, w * part.patch_size))
    frame, y, x = torch.meshgrid(*axes, indexing="ij")
    film = torch.stack([y, x, frame + 100 * source], 1)  # [frame, 3, height, width]
    shape = {"patch_size": part.patch_size, "merge_size": 2}
    if whole:
        return part.patchify(film[None], temporal_patch_size=together, **shape)[0][0]
    repeats = processor.image_processor.temporal_patch_size if kind == "image" else 1
    each = [processor.image_processor.patchify(f.numpy(), temporal_patch_size=repeats, **shape)[0] for f in film]
    return torch.cat([torch.as_tensor(patches.copy()) for patches in each])


def check_bookkeeping(lens: Lens, prompt: Prompt) -> None:
    """Pictures and videos are where the processor says; the masks partition the sequence; spans hold one token once."""
    ids = prompt.inputs["input_ids"]
    by_id = (ids == lens.processor.image_token_id).int() + 2 * (ids == getattr(lens.processor, "video_token_id", -1))
    types = prompt.inputs.get("mm_token_type_ids", by_id)  # the processor's own word on it
    assert torch.equal(prompt.mask("image"), types == 1)
    assert torch.equal(prompt.mask("video"), types == 2)
    for row, spans in enumerate(prompt.spans):
        positions = [position for span in spans for position in span.positions]
        assert len(positions) == len(set(positions))
        assert set(positions) == set((prompt.mask("visual") | prompt.mask("marker"))[row].nonzero().flatten().tolist())
    parts = torch.stack([prompt.mask(name) for name in ("image", "video", "marker", "text", "pad")])
    assert torch.equal(parts.sum(0), torch.ones_like(parts[0], dtype=torch.int))
