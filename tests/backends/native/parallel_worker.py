"""One process of a tensor-parallel run: what `answers` gives, on this process's share of shapes-llava, into a file.

Run as a script with a file's name, and with RANK and WORLD_SIZE as torchrun sets them.
"""

import sys
from typing import Any

import torch

from lmm_lens import VAR, AblateHeads, Knockout, Lens, PatchHeads, activation_patching, find_sinks, score_heads
from lmm_lens.bundled import shapes
from lmm_lens.errors import LensError
from lmm_lens.patching import attribution_patching

SITES = ("resid_pre", "pattern", "z", "attn_out", "mlp_out", "resid_post")
HEADS = [(1, 1), (2, 6), (4, 3), (4, 4)]  # of both halves of a layer
ANYWHERE = {"sink_dims": "auto", "sink_threshold": "auto", "min_nonsink_ratio": 0.0, "min_visual_mass": 0.05}


def answers(lens: Lens) -> dict[str, Any]:
    pairs = shapes.color_pairs(2)
    clean, corrupt = (lens.prompt([p[i].question for p in pairs], images=[p[i].image for p in pairs]) for i in (0, 1))
    run = lens.run(clean, read=SITES)
    edits = {
        "zeroed": [AblateHeads(HEADS)],
        "even": [AblateHeads(HEADS, mode="uniform", rows="after_image")],
        "moved": [VAR(**ANYWHERE)],
        "blind": [Knockout("image", "last", heads=[0, 7])],
        "patched": [PatchHeads(HEADS, run)],
    }
    found = {f"{site} {layer}": value for (site, layer), value in run.reads.items()}
    found |= {name: lens.run(corrupt, edit).logits for name, edit in edits.items()}
    found["plain"] = lens.run(corrupt).logits
    generated = lens.generate(clean, edits["moved"] + edits["zeroed"], max_new_tokens=3, logits=True)
    found |= {"generated": generated.tokens, "steps": generated.logits}
    found["scores"] = score_heads(lens, clean, metric="nonsink_mass").values
    found["patching"] = activation_patching(lens, clean, corrupt, site="z", by="head", layers=[1, 3]).values
    found["sinks"] = find_sinks(lens, clean).dims
    found["identity"] = lens.identity
    return found


def refusals(model: Any, lens: Lens) -> dict[str, str]:
    pair = shapes.color_pairs(1)[0]
    prompts = [lens.prompt(example.question, images=example.image) for example in pair]
    tried = {
        "gradients": lambda: attribution_patching(lens, *prompts),
        "bridge": lambda: Lens(model, lens.processor, backend="transformer_lens"),
    }
    said = {}
    for name, attempt in tried.items():
        try:
            attempt()
            said[name] = "nothing"
        except LensError as error:
            said[name] = str(error)
    return said


def main(file: str) -> None:
    from transformers import AutoModelForImageTextToText
    from transformers.distributed import DistributedConfig

    torch.set_num_threads(1)
    folder = shapes.checkpoint()
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, distributed_config=DistributedConfig(tp_size=2)
    ).eval()
    lens = Lens(model, shapes.load()[1])
    torch.save({"answers": answers(lens), "refusals": refusals(model, lens)}, file)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
