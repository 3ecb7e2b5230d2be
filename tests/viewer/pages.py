"""A view's page, read back as a browser would, without the viewer's own code."""

import base64
import json
import re
import zlib

import numpy as np


class Shown:
    """What a page holds of one prompt row (a scene of it) and one run.

    Attributes:
        about: the JSON of the row, with that of the run.
        weights: [query, layer, head, key], as the page will show them.
    """

    def __init__(self, html: str, scene: int = 0, side: int = 0) -> None:
        self.about = json.loads(_script(html, f"about-{scene}"))
        self.about |= self.about["sides"][side]
        shape = len(self.about["layers"]), len(self.about["heads"]), len(self.about["positions"])
        steps, rows = self.about["steps"], []
        for query in range(len(self.about["queries"])):
            data = zlib.decompress(base64.b64decode(_script(html, f"weights-{scene}-{side}-{query}")))
            half = len(data) // 2
            levels = (
                [data[i] for i in range(len(data))]
                if steps == 255
                else [256 * data[i] + data[half + i] for i in range(half)]
            )
            largest = np.frombuffer(base64.b64decode(_script(html, f"largest-{scene}-{side}-{query}")), "<f4").reshape(
                *shape[:2], 1
            )
            rows.append(largest * (np.array(levels).reshape(shape) / steps) ** 2)
        self.weights = np.stack(rows)

    def map(self, name: str) -> np.ndarray:
        """One map of heads, [query, layer, head]."""
        index = [each["name"] for each in self.about["maps"]].index(name)
        values = np.frombuffer(base64.b64decode(self.about["values"][index]), "<f4")
        return values.reshape(len(self.about["queries"]), len(self.about["layers"]), len(self.about["heads"]))

    def boxes(self) -> dict[int, list[tuple[float, ...]]]:
        """Every place where a token is drawn, by position."""
        found: dict[int, list[tuple[float, ...]]] = {}
        for panel in self.about["panels"]:
            for grid in panel["grids"] if panel["placed"] else ():
                for i, key in enumerate(grid["keys"]):
                    y, x = divmod(i, len(grid["columns"]))
                    (left, right), (top, bottom) = grid["columns"][x], grid["rows"][y]
                    box = left, top, right, bottom
                    found.setdefault(self.about["positions"][key], []).append(box)
        return found


def _script(html: str, name: str) -> str:
    return re.search(rf'<script type="[^"]*" id="{name}"[^>]*>(.*?)</script>', html, re.S).group(1)
