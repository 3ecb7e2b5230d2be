"""Of `vlmeval/dataset`: a name that the base class imports."""

DATASET_TYPE = None
