"""Backends: each fetches and stores rows of activations in one framework, and knows nothing else."""
