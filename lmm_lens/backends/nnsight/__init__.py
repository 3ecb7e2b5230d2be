"""The nnsight backend: the same taps inside nnsight traces, here or on a server.

`wrap` finds the envoys of a model's layers, `job` is what runs inside a session, `backend` offers it to the lens. For
servers, `travel` says what may go there, `remote` sends it and brings the answer or a clear error back, and
`local_simulation` does the same without a server.
"""

from .backend import NNsightBackend as NNsightBackend
