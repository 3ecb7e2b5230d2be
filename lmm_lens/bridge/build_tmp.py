import copy
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
def bridge_of(m, tokenizer=None):
    memo={id(t):t for t in [*m.parameters(),*m.buffers()]}
    twin=copy.deepcopy(m,memo)
    return build_bridge_from_module(twin,type(twin).__name__,hf_config=twin.config,tokenizer=tokenizer)
