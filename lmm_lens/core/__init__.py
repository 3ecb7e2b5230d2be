"""Everything that runs where the model is: cutting rows out of activations, the mathematics, putting them back.

All backends share it, and the nnsight backend sends it to servers that have never heard of this library. It goes there
by source, so code in here

1. uses torch, collections and the errors of this library, and nothing else,
2. is made of functions and plain classes; what dataclasses and named tuples generate has no source to send,
3. takes tensors, numbers, strings, tuples and dicts.
"""
