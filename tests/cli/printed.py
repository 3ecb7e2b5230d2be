"""What the command line prints, read back."""

import re


def heads_in(text: str) -> list[tuple[str, *tuple[float, ...]]]:
    """The rows `L2H3 | 0.852 | 0.845 to 0.859` of the tables in a text; of one prompt they have no interval."""
    rows = re.findall(r"(L\d+H\d+)\W+([\d.]+)(?:\W+([\d.]+) to ([\d.]+))?", text)
    return [(head, *(float(number) for number in numbers if number)) for head, *numbers in rows]
