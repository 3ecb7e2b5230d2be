"""Long runs: a stream of items of any length, a folder that loses nothing, and many workers if there are."""

from .folder import RunFolder
from .part import RunPart
from .ray_cluster import RayCluster, RayLike
from .store import Memory, Store
from .stream import stream

__all__ = ["Memory", "RayCluster", "RayLike", "RunFolder", "RunPart", "Store", "stream"]
