"""peft, torchao, bitsandbytes and quanto, which `make containers` installs beside everything else.

They warn and print as soon as they are there, of each other and of torch, so nothing else is tested beside them.
"""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import bitsandbytes
    import optimum.quanto
    import peft
    import torchao  # noqa: F401
