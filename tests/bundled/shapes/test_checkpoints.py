import hashlib
import json
import pathlib
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from lmm_lens.bundled import shapes
from training.shapes_llava import train
from training.shapes_llava.evaluate import accuracy, answers, prompt, visual_mean
from training.shapes_llava.planting import sink_mask

ALL_KINDS = shapes.VISUAL_KINDS + shapes.TEXT_KINDS
FOLDER = shapes.checkpoint().parent
PLANTED = (5, 77)


def phi(hidden, dims):
    """|x[d]| / rms(x), largest over dims. hidden [..., d_model]."""
    rms = hidden.float().square().mean(-1, keepdim=True).add(1e-6).sqrt()
    return (hidden.float().abs() / rms)[..., list(dims)].amax(-1)


def residuals(model, processor, asked):
    """Every layer's input, of prompts of one length: [layer, batch, position, d_model]."""
    inputs = processor(images=[e.image for e in asked], text=[prompt(processor, e) for e in asked], return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    return torch.stack(hidden[:-1])  # the last one is after the final norm


def test_every_file_is_the_one_that_was_measured():
    lines = (FOLDER / "SHA256SUMS").read_text().splitlines()
    listed = dict(reversed(line.split()) for line in lines)
    present = {str(p.relative_to(FOLDER)) for v in shapes.VARIANTS for p in (FOLDER / v).iterdir()}
    assert set(listed) == present
    for name, digest in listed.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_a_checkpoint_is_small_and_names_no_machine(variant):
    files = list((FOLDER / variant).iterdir())
    assert sum(file.stat().st_size for file in files) <= 3_000_000
    for file in files:
        if file.suffix != ".safetensors":
            text = file.read_text()
            assert not any(path in text for path in ("/work", "/tmp", "/home", "/root", "_name_or_path")), file


def test_the_auto_classes_load_a_checkpoint(variant):
    model = AutoModelForImageTextToText.from_pretrained(FOLDER / variant)
    processor = AutoProcessor.from_pretrained(FOLDER / variant)
    assert type(model) is LlavaForConditionalGeneration
    assert type(processor) is LlavaProcessor
    assert model.dtype == torch.float16
    assert processor.tokenizer.padding_side == "left"


def test_the_config_says_what_was_planted(loaded, variant):
    said = loaded[variant][0].config.lmm_lens
    assert said["name"] == "shapes-llava"
    assert said["variant"] == variant
    assert said["sink_dims"] == (list(PLANTED) if variant == "sinks" else [])


def test_load_gives_fp32_in_eval_mode_unless_told(loaded):
    model, _ = loaded["sinks"]
    assert model.dtype == torch.float32
    assert not model.training
    assert shapes.load("plain", torch.bfloat16)[0].dtype == torch.bfloat16


def test_an_unknown_variant_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="variants 'sinks', 'plain'; got 'sink'"):
        shapes.load("sink")


def test_a_missing_checkpoint_says_where_it_should_be(monkeypatch, tmp_path):
    monkeypatch.setattr(shapes, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match=r"expected model\.safetensors in .*checkpoints.*plain"):
        shapes.load("plain")


def test_importing_shapes_imports_no_torch():
    code = "import sys, lmm_lens.bundled.shapes as s; s.examples(7); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_it_answers_unseen_pictures(loaded, variant):
    by_kind = accuracy(*loaded[variant], shapes.examples(40 * len(ALL_KINDS), ALL_KINDS, seed=31))
    assert visual_mean(by_kind) >= 0.97, by_kind
    assert min(by_kind.values()) >= 0.9, by_kind


def test_without_the_picture_it_is_near_chance(loaded, variant):
    asked = shapes.examples(30 * 7, seed=31, condition="blank")
    by_kind = accuracy(*loaded[variant], asked)
    assert by_kind["color"] < 0.4, by_kind  # chance 1/6
    assert by_kind["shape"] < 0.45, by_kind  # chance 1/5
    assert by_kind["where"] < 0.35, by_kind  # chance 1/9
    assert by_kind["exist"] < 0.7, by_kind  # chance 1/2
    assert by_kind["list"] < 0.05, by_kind


def test_capital_letters_make_no_difference(loaded):
    asked = shapes.examples(1, ["color"], seed=3)[0]
    capital = shapes.Example(asked.image, asked.question.capitalize(), asked.answer, "color", asked.scene)
    assert answers(*loaded["sinks"], [asked, capital]) == [asked.answer] * 2


def test_a_batch_says_what_single_prompts_say(loaded, variant):
    asked = shapes.examples(22, ALL_KINDS, seed=32)
    model, processor = loaded[variant]
    assert answers(model, processor, asked) == answers(model, processor, asked, batch_size=1)


def test_half_precision_says_the_same_but_for_a_near_tie(variant, loaded):
    asked = shapes.examples(28, seed=33)
    half = shapes.load(variant, torch.float16)
    pairs = zip(answers(*half, asked), answers(*loaded[variant], asked), strict=True)
    assert sum(low == full for low, full in pairs) >= 27


def test_sinks_stand_out_on_bos_and_planted_patches_and_nowhere_else(loaded):
    model, processor = loaded["sinks"]
    threshold = model.config.lmm_lens["sink_threshold"]
    asked = shapes.examples(48, ["color"], seed=34)
    score = phi(residuals(model, processor, asked), PLANTED)  # [layer, batch, position]
    planted = sink_mask([e.scene for e in asked])
    visual = score[:, :, 2:38]
    assert (score[:, :, 0] >= threshold).all()
    assert (visual[:, planted] >= threshold).float().mean() > 0.99
    assert (visual[:, ~planted] < threshold).float().mean() > 0.998
    assert (score[:, :, 38:] < threshold).all()


def test_the_plain_checkpoint_has_no_sink_on_any_dimension(loaded):
    model, processor = loaded["plain"]
    asked = shapes.examples(48, ["color"], seed=34)
    score = phi(residuals(model, processor, asked), range(128))
    assert score[:, :, 2:].max() < model.config.lmm_lens["sink_threshold"]


def test_the_seeds_file_records_the_choice_by_its_rule():
    seeds = json.loads((pathlib.Path(train.__file__).with_name("seeds.json")).read_text())
    tried = seeds["results"]["tasks"]
    best = max(tried, key=lambda run: (run["minimum"], run["mean"]))
    assert best["seed"] == seeds["tasks"]["chosen"]
    assert [run["seed"] for run in tried] == seeds["tasks"]["tried"]
    assert best["minimum"] == min(best["validation"].values())
    weights = (FOLDER / "plain" / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == best["weights_sha256"]
