"""Prompts: text and pictures in, tensors with every token's role annotated out."""
