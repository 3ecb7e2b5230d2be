"""The API's own gunicorn configuration, in a server that also takes requests above 1 MiB.

nnsight puts `.save` on every object, and anyio's sockets can't be imported after that; Starlette needs them to spool an
upload above 1 MiB to a disk. ndif 0.1.2 answers those with 400 "There was an error parsing the body".
"""

import anyio._backends._asyncio  # noqa: F401  (before nnsight, which the workers import)
from ndif.services.api.gunicorn_conf import *  # noqa: F403
