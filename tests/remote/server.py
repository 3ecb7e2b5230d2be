"""Start a service that speaks nnsight's remote protocol, in a process that cannot import lmm_lens.

    python -I -S server.py --packages SITE_PACKAGES --model FOLDER --repo ORG/NAME [--port 0] [--trusted] [--text-only]

What travels to NDIF must not need our package there. A test inside one process cannot show that: the package is
already imported. So this runs with -S, where the .pth file of an editable install is not read, and refuses to start
if lmm_lens can be found all the same. The first line on stdout is JSON: {"url": ..., "port": ..., "pid": ...}.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", required=True, help="the folder torch, nnsight and fastapi are installed in")
    parser.add_argument("--model", required=True, help="a folder saved with save_pretrained, model and processor")
    parser.add_argument("--repo", required=True, help="the id the model is served under")
    parser.add_argument("--task", default="image-text-to-text")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--trusted", action="store_true", help="let blocks reach weights and nested sources")
    parser.add_argument("--text-only", action="store_true", help="serve no vision-language model, list a text model")
    parser.add_argument("--inline-limit", type=int, default=1 << 20, help="bytes; a larger result is fetched by URL")
    parser.add_argument("--parent", type=int, help="the process id of who started this: end with it")
    return parser.parse_args()


def isolate(packages: str) -> None:
    """Make the installed packages importable, and nothing of this repository but the folder beside this file."""
    sys.path.append(packages)
    if importlib.util.find_spec("lmm_lens") is not None:
        sys.exit("lmm_lens can be imported here: the service would not notice what fails on NDIF")
    sys.path.insert(0, str(Path(__file__).parent))


if __name__ == "__main__":
    options = arguments()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    isolate(options.packages)
    from serving.app import serve

    del sys.path[0]  # a client's module must not be found here by chance
    serve(options)
