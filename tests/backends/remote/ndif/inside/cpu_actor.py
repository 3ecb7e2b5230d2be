"""NDIF's model actor on a machine without a GPU, with every request in its sandbox. Runs in the server's environment.

ndif 0.1.2 places models on GPUs alone: its actors call torch.cuda without asking whether there is one, and refuse
weights that are not on "cuda". Only that is replaced; requests, sandbox and results are NDIF's own. Without a key
database its API trusts each request that does not say otherwise, and nnsight's client never says: these are untrusted,
as those with a key that has no tag are on NDIF.
"""

import ray
import torch
from ndif.services.ray.sandbox.model import SandboxModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel

if not torch.cuda.is_available():
    torch.cuda.synchronize = lambda *device: None  # raises without a driver; called after every request


class OnCpu(SandboxModelDeployment):
    CACHEABLE = False  # there is no HOT and WARM where both are the same memory

    def load_from_disk(self):
        self.gpu_mem_bytes_by_id = {}  # nothing to limit, nothing to measure
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu", **self.kwargs
        )
        model._module.requires_grad_(False)
        return model

    async def run(self, request):
        request.trusted = False
        return await super().run(request)


Actor = ray.remote(num_cpus=1, max_restarts=-1)(OnCpu)
