"""What tells a model that was touched from one that was not."""

import copy


def implementations(model):
    return {
        name: module.config._attn_implementation for name, module in model.named_modules() if hasattr(module, "config")
    }


def state(model):
    """What tells a touched model from an untouched one, but for its weights."""
    return {
        "modules": [(name, type(module)) for name, module in model.named_modules()],
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "forward": [getattr(module.forward, "__func__", module.forward) for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "attention": implementations(model),
        "config": copy.deepcopy(model.config.to_dict()),
        "generation": copy.deepcopy(model.generation_config.to_dict()),
        "training": [module.training for module in model.modules()],
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
        "parameters": {name: parameter.data_ptr() for name, parameter in model.named_parameters()},
    }
