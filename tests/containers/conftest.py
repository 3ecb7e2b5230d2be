"""peft, torchao, bitsandbytes and quanto, which `make containers` installs beside everything else.

They warn and print as soon as they are there, of each other and of torch, so nothing else is tested beside them.
"""

import importlib
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for package in ("bitsandbytes", "optimum.quanto", "peft", "torchao"):
        importlib.import_module(package)
