"""Benchmarks: each prints its table and writes it to `benchmarks/results`."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
