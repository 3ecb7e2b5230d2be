"""What became of the classes that transformers maps as image-text-to-text and that no file here is about.

Each was looked at: its source read, and a tiny model of it run. `tests/adapters/test_every_class.py` fails where a
release of transformers maps a class that stands neither here nor in a family's `model_types`.
"""

from __future__ import annotations

ENCODER_DECODER = (
    "an encoder-decoder: pictures and question go through an encoder, and a decoder reads them by cross-attention"
)

GENERIC: dict[str, str] = {
    "aria": "a fixed number of learned queries looks at the whole of each picture",
    "deepseek_ocr2": "learned queries stand behind the patches of each crop, and none of them lies anywhere",
    "fuyu": "patches go into the decoder without a tower; rows end in a newline token, which is text here",
    "inkling_mm_model": "patches in a row, whose rows and columns neither text nor tensors tell",
}
"""`model_type` -> why the generic adapter serves it: spans, scores and edits are exact, pixels are not mapped."""

REFUSED: dict[str, str] = {
    "blip": "a text decoder that reads the picture by cross-attention; no token of its sequence is visual",
    "diffusion_gemma": "no decoder that goes from left to right: it denoises blocks of text, which look both ways",
    "evolla": "a model of proteins, which takes no picture",
    "florence2": ENCODER_DECODER,
    "git": "a decoder that puts the picture before the text in its own forward, so that no token id stands for it",
    "idefics": "a decoder that reads pictures by gated cross-attention; no token of its sequence is visual",
    "instructblipvideo": "a model whose visual tokens are of videos alone; it takes no picture",
    "kosmos-2": "a decoder whose visual tokens are told by image_embeds_position_mask and have no token id",
    "kosmos-2.5": "a decoder whose visual tokens are told by image_embeds_position_mask and have no token id",
    "mistral4": "a language model alone, which takes no picture",
    "pi0": "a robot's policy: it returns actions and no logits",
    "pix2struct": ENCODER_DECODER,
    "pp_formulanet": ENCODER_DECODER,
    "t5gemma2": ENCODER_DECODER,
    "udop": ENCODER_DECODER,
    "vision-encoder-decoder": ENCODER_DECODER,
}
"""`model_type` -> what it is instead of a decoder whose sequence holds visual tokens."""
