"""`python -m benchmarks --size 7b`."""

from .size_7b import main

main()
