"""Of `vlmeval/config`: the table of models."""

supported_VLM = {}  # noqa: N816 its own name
