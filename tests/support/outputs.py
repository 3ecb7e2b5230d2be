"""What code prints, compared with what a page says it prints."""

import re

NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]\d+)?")


def same(printed: str, shown: str, tolerance: float = 0.011) -> bool:
    """Whether two outputs are the same up to spaces at line ends and, in decimal numbers, the last digits."""
    one, two = (["".join(NUMBER.sub("#", line).split()) for line in x.strip().splitlines()] for x in (printed, shown))
    ours, theirs = ([float(x) for x in NUMBER.findall(text)] for text in (printed, shown))
    return one == two and all(abs(a - b) <= tolerance + 0.01 * abs(b) for a, b in zip(ours, theirs, strict=True))
