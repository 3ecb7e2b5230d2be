"""The making of shapes-llava: train, plant sinks, measure. `make model` does it all, from the seeds."""
