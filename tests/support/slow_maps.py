"""What is computed of maps of attention, cell by cell: components, spatial entropy, smoothing, the elbow of a curve."""

import math
from itertools import product


def flood_fill(mask: list[list[bool]]) -> list[set[tuple[int, int]]]:
    """The 8-connected components as sets of cells, one cell after another."""
    left = {(i, j) for i, row in enumerate(mask) for j, inside in enumerate(row) if inside}
    found = []
    while left:
        to_visit, component = [min(left)], set()
        while to_visit:
            cell = to_visit.pop()
            if cell in left:
                left.remove(cell)
                component.add(cell)
                to_visit += [(cell[0] + i, cell[1] + j) for i, j in product((-1, 0, 1), repeat=2)]
        found.append(component)
    return found


def slow_entropy(weights: list[list[float]], threshold: float = 0.001, cut: tuple[tuple[int, int], ...] = ()) -> float:
    """Spatial entropy straight from the definition, some cells cut out of the map."""
    cells = {(i, j): w for i, row in enumerate(weights) for j, w in enumerate(row) if (i, j) not in cut}
    mean = sum(cells.values()) / len(cells)
    above = {cell: max(w - mean, 0.0) for cell, w in cells.items()}
    blobs = flood_fill([[above.get((i, j), 0) > threshold for j in range(len(row))] for i, row in enumerate(weights)])
    shares = [sum(above[cell] for cell in blob) / sum(above.values()) for blob in blobs]
    return -sum(p * math.log(p) for p in shares) if blobs else math.inf


def slow_blur(row: list[float], sigma: float) -> list[float]:
    """Gaussian weights out to four sigma, the row mirrored at its ends as often as needed."""
    n, reach = len(row), int(4 * sigma + 0.5)
    weights = {offset: math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-reach, reach + 1)}
    mirrored = [*row, *reversed(row)]
    return [sum(w * mirrored[(i + o) % (2 * n)] for o, w in weights.items()) / sum(weights.values()) for i in range(n)]


def farthest_from_the_chord(values: list[float]) -> float:
    """By the distance from each point of the sorted curve to the line through its ends."""
    curve = sorted(values)
    rise, run = curve[-1] - curve[0], len(curve) - 1
    away = [abs(rise * i - run * (y - curve[0])) / math.hypot(rise, run) for i, y in enumerate(curve)]
    return curve[away.index(max(away))]
