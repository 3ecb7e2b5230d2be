"""The real NDIF server on this machine, without a GPU, and what lmm-lens asks of it: `make ndif`."""
