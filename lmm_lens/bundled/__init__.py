"""The models in the box, offline."""
