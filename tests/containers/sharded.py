"""One of the processes among which the bundled model is sharded: what it finds, as a line of JSON.

Run as a module with a file for the processes to meet at, a rank and their number.
"""

import copy
import json
import sys
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lmm_lens.backends.identity import identity_of
from lmm_lens.bundled import shapes


def found() -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    model = copy.deepcopy(shapes.load()[0])
    for layer in model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    whole = identity_of(model, None)
    weight = model.get_decoder().layers[1].mlp.down_proj.weight
    if distributed.get_rank() == 1:  # in the part of one process alone
        with torch.no_grad():
            weight.to_local()[3, 4] += 1
    edited = identity_of(model, None)
    replicated = identity_of(DistributedDataParallel(copy.deepcopy(shapes.load()[0])), None)
    return {"sharded": whole, "edited": edited, "replicated": replicated}


if __name__ == "__main__":
    meeting, rank, size = sys.argv[1:]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=int(size))
    print(json.dumps(found()))
    distributed.destroy_process_group()
