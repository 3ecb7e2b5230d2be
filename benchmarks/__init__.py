"""Benchmarks: each prints its table and writes it to `benchmarks/results`."""
