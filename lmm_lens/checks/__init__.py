"""Checks that a user runs on a model or an adapter before trusting numbers."""
