"""Where the numbers of each checkpoint were confirmed, in stored copies of public pages and files, on 2026-11-29.

`hf:` is a file of a model on huggingface.co, `gh:` one of a repository on GitHub. A file of the checkpoint itself comes
first where one was found; else a copy of it, a checkpoint trained from it or its kin of another size, so said. The
conversions are those of transformers: `gh: huggingface/transformers src/transformers/models`, `tests` those of vLLM, on
the checkpoint's own files: `gh: vllm-project/vllm tests/models/multimodal/processing`.
"""

SOURCES: dict[str, str | None] = {
    # squares
    "llava-hf/llava-1.5-7b-hf": "hf: mohitsha/llava-1.5-7b-hf preprocessor_config.json, a copy; "
    "gh: haotian-liu/LLaVA scripts/v1_5/finetune.sh, the tower; conversion llava/convert_llava_weights_to_hf.py",
    "llava-hf/vip-llava-7b-hf": "hf: llava-hf/vip-llava-7b-hf preprocessor_config.json; "
    "gh: WisconsinAIVision/ViP-LLaVA llava/model/multimodal_encoder/clip_4layer_encoder.py, the tower",
    "google/paligemma-3b-mix-224": "conversion paligemma/convert_paligemma_weights_to_hf.py, its 3b-224px",
    "google/paligemma2-10b-pt-448": "conversion paligemma/convert_paligemma2_weights_to_hf.py, its 9b-448; "
    "gh: guanyuch/colpali_gc preprocessor_config.json, of a model of the same 448 pixels",
    "google/paligemma2-10b-pt-896": "conversion paligemma/convert_paligemma2_weights_to_hf.py, its 9b-896",
    "google/gemma-3-4b-it": "conversion gemma3/convert_gemma3_weights.py, its gemma3_4b; "
    "hf: solvrays/unsloth_finetune preprocessor_config.json and processor_config.json, trained from a Gemma 3",
    "deepseek-community/deepseek-vl-1.3b-chat": "gh: deepseek-ai/DeepSeek-VL deepseek_vl/models/clip_encoder.py and "
    "processing_vlm.py, defaults of its authors' code",
    "deepseek-community/Janus-Pro-1B": "hf: onnx-community/Janus-Pro-1B-ONNX preprocessor_config.json, a copy; "
    "gh: deepseek-ai/Janus janus/models/processing_vlm.py, the 576 tokens; "
    "conversion janus/convert_janus_weights_to_hf.py",
    # grids
    "llava-hf/llava-v1.6-mistral-7b-hf": "hf: laion/llava-v1.6-mistral-7b_openvino_int8 and Ayush374/quantised_llava "
    "config.json, copies",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": "hf: mgoin/llava-onevision-qwen2-7b-ov-hf-bnb-full-4bit config.json, a "
    "copy; conversion llava_onevision/convert_llava_onevision_weights_to_hf.py; "
    "gh: LLaVA-VL/LLaVA-NeXT scripts/train/finetune_ov.sh, anyres_max_9",
    "Qwen/Qwen2-VL-7B-Instruct": "gh: QwenLM/Qwen2-VL README.md, 4 to 16384 tokens; "
    "hf: Qwen/Qwen2-VL-2B preprocessor_config.json",
    "Qwen/Qwen2.5-VL-7B-Instruct": "gh: remodlai/qwen-2.5-vl-7b-instruct-lexiq preprocessor_config.json, a copy",
    "Qwen/Qwen3-VL-8B-Instruct": "hf: cdreetz/Qwen3-VL-8B-Instruct preprocessor_config.json, a copy; "
    "gh: InternLM/lmdeploy tests/test_lmdeploy/test_vl/test_qwen3vl_processor.py, of its 4B",
    "Qwen/Qwen3.5-27B": "hf: coder3101/Qwen3.5-27B-heretic preprocessor_config.json, trained from it",
    "zai-org/GLM-4.1V-9B-Thinking": "hf: optimum-intel-internal-testing/tiny-random-glm4v preprocessor_config.json, "
    "a copy for tests; hf: FriendliAI/GLM-4.1V-9B-Thinking video_preprocessor_config.json, a copy: "
    "all but the most pixels",
    "zai-org/GLM-4.6V-Flash": "hf: HyzeAI/RE1-GLM preprocessor_config.json, a duplicate",
    "zai-org/GLM-OCR": "hf: MurphyA/GLM-OCR preprocessor_config.json, a duplicate",
    "mistral-community/pixtral-12b": "hf: mlx-community/pixtral-12b-8bit preprocessor_config.json, a copy",
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": "hf: MtTinker/Mistral-Small-3.1-24B-Base-2503 "
    "preprocessor_config.json, a duplicate of its base; tests test_mistral3.py, 448 x 448 are 256 tokens",
    "lightonai/LightOnOCR-2-1B": "hf: ashishscapsitech123/LightOnOCR-2-ft-iam processor_config.json, trained from it",
    # tiles
    "OpenGVLab/InternVL3-8B-hf": "conversion internvl/convert_internvl_weights_to_hf.py; "
    "hf: InternSVG/InternSVG-8B video_preprocessor_config.json, of its kind; "
    "gh: OpenGVLab/InternVL README.md, 12 tiles",
    "HuggingFaceM4/Idefics3-8B-Llama3": "hf: HuggingFaceM4/Idefics3-8B-Llama3 preprocessor_config.json; "
    "tests test_idefics3.py, 169 tokens a tile",
    "HuggingFaceTB/SmolVLM-Instruct": "hf: HuggingFaceTB/SmolVLM-Instruct processor_config.json; "
    "hf: alvarobartt/SmolVLM-Instruct-Handler preprocessor_config.json, a duplicate",
    "HuggingFaceTB/SmolVLM-Instruct-DPO": "hf: HuggingFaceTB/SmolVLM-Instruct-DPO preprocessor_config.json; 81 tokens: "
    "that of SmolVLM-Instruct, which it was trained from",
    "ibm-granite/granite-docling-258M": "hf: adelevett/granite-docling-258M-fixed preprocessor_config.json and "
    "processor_config.json, copies",
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": "hf: HuggingFaceTB/SmolVLM2-2.2B-Instruct processor_config.json; "
    "tests test_smolvlm.py, 1377 tokens of a square at tiles of 384: 4 x 4 and the whole, of 81",
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": "hf: HuggingFaceTB/SmolVLM2-500M-Video-Instruct "
    "processor_config.json; hf: HuggingFaceTB/SmolVLM2-256M-Video-Instruct preprocessor_config.json",
    "CohereLabs/aya-vision-8b": "hf: unsloth/aya-vision-8b preprocessor_config.json and "
    "mlx-community/aya-vision-8b-8bit config.json, copies",
    "CohereLabs/command-a-vision-07-2025": "hf: mlx-community/command-a-vision-07-2025-4bit preprocessor_config.json, "
    "a copy",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": "hf: hf-internal-testing/tiny-processor-llama4 "
    "preprocessor_config.json, a copy for tests; "
    "hf: LlamaFinetuneGGUF/base_v2 processor_config.json, a copy of its base; "
    "gh: meta-llama/llama-models models/llama4/chat_format.py, 16 tiles",
    "thisisiron/Ovis2-8B-hf": "hf: thisisiron/Ovis2-2B-hf preprocessor_config.json and processor_config.json; "
    "conversion ovis2/convert_ovis2_weights_to_hf.py, one for all sizes",
    "LiquidAI/LFM2-VL-1.6B": "hf: LiquidAI/LFM2-VL-1.6B processor_config.json, whose own code had a tolerance of 1.5; "
    "hf: hf-internal-testing/tiny-processor-lfm2_vl preprocessor_config.json, a copy for tests: 2.0",
    "LiquidAI/LFM2-VL-450M": "hf: LiquidAI/LFM2-VL-450M processor_config.json",
    # ways of their own
    "PaddlePaddle/PaddleOCR-VL": "hf: merve/PaddleOCR-VL-hf processor_config.json, a copy",
    "baidu/ERNIE-4.5-VL-28B-A3B-PT": "hf: hf-internal-testing/Ernie-VL-Moe-Small processor_config.json, a copy for "
    "tests; conversion ernie4_5_vl_moe/convert_ernie4_5_vl_moe_to_hf.py, which keeps the defaults",
    "DAMO-NLP-SG/VideoLLaMA3-7B-Image": "hf: DAMO-NLP-SG/VideoLLaMA3-7B-Image preprocessor_config.json, 16 to 16384 "
    "tokens; gh: DAMO-NLP-SG/VideoLLaMA3 inference/transformers_api/image_processing_videollama3.py",
    "tencent/HunyuanOCR": "hf: tencent/HunyuanOCR preprocessor_config.json",
    "facebook/Perception-LM-3B": "gh: facebookresearch/perception_models apps/plm/configs/stage_3/plm_3b.yaml; "
    "hf: Dhruvil03/Perception-LM-1B-Int4bit preprocessor_config.json, a copy of its 1B",
    "allenai/Molmo2-8B": "hf: allenai/Molmo2-4B preprocessor_config.json; "
    "hf: sunjuice/Molmo2-8B processor_config.json, a duplicate",
    "openbmb/MiniCPM-V-4.6": "hf: jma-informatique/MiniCPM-V-4.6 preprocessor_config.json, a duplicate",
    "google/gemma-4-E2B-it": "conversion gemma4/convert_gemma4_weights.py, its gemma-4-e2b; "
    "tests test_gemma4.py, 280 tokens; gh: microsoft/onnxruntime-genai test/models/gemma4/processor_config.json",
    "Granite Docling 2": None,  # no file of it was found: the numbers are the defaults of transformers
}
