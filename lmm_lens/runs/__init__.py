"""Long runs: a stream of items of any length, a folder that loses nothing, and many workers if there are."""

from .folder import RunFolder
from .part import Part
from .ray_cluster import RayCluster, RayLike
from .store import Memory, Store
from .stream import stream

__all__ = ["Memory", "Part", "RayCluster", "RayLike", "RunFolder", "Store", "stream"]
