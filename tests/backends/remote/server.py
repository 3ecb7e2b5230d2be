"""Start a service that speaks nnsight's remote protocol, in a process that cannot import lmm_lens.

    python -I -S server.py --packages SITE_PACKAGES --model FOLDER --repo ORG/NAME [--port 0] [--trusted] [--text-only]
    python -I -S server.py --packages SITE_PACKAGES --nursery

What travels to NDIF must not need our package there. A test inside one process cannot show that: the package is
already imported. So this runs with -S, where the .pth file of an editable install is not read, and refuses to start
if lmm_lens can be found all the same. The first line on stdout is JSON: {"url": ..., "port": ..., "pid": ...}.

A nursery imports everything once, and forks a service whenever a line on stdin asks for one, as in {"start": [option,
...], "stderr": path}; {"poll": pid} is answered with {"status": null or the exit status}. It ends with its stdin.
"""

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", required=True, help="the folder torch, nnsight and fastapi are installed in")
    parser.add_argument("--nursery", action="store_true", help="fork services on demand; takes no other option")
    parser.add_argument("--model", help="a folder saved with save_pretrained, model and processor")
    parser.add_argument("--repo", help="the id the model is served under")
    parser.add_argument("--task", default="image-text-to-text")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--trusted", action="store_true", help="let blocks reach weights and nested sources")
    parser.add_argument("--text-only", action="store_true", help="serve no vision-language model, list a text model")
    parser.add_argument("--strict", action="store_true", help="with import lists, see serving/sandbox.py")
    parser.add_argument("--inline-limit", type=int, help="bytes; a larger result is fetched by URL")
    parser.add_argument("--parent", type=int, help="the process id of who started this: end with it")
    return parser.parse_args(given)


def isolate(packages: str) -> None:
    """Make the installed packages importable, and nothing of this repository but the folder beside this file."""
    sys.path.append(packages)
    if importlib.util.find_spec("lmm_lens") is not None:
        sys.exit("lmm_lens can be imported here: the service would not notice what fails on NDIF")
    sys.path.insert(0, str(Path(__file__).parent))


def fork(given: list[str], stderr: str) -> None:
    """In the child, serve; the parent has nothing to do."""
    if os.fork():
        return
    log = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    os.close(0)  # the commands are the parent's
    try:
        serve(arguments(given))
    finally:
        os._exit(1)


def status(pid: int) -> int | None:
    ended, code = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(code) if ended else None


if __name__ == "__main__":
    options = arguments()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    isolate(options.packages)
    from serving.app import serve

    del sys.path[0]  # a client's module must not be found here by chance
    if not options.nursery:
        serve(options)
    while line := sys.stdin.readline():
        command = json.loads(line)
        if "start" in command:
            fork(command["start"], command["stderr"])
        else:
            print(json.dumps({"status": status(command["poll"])}), flush=True)
