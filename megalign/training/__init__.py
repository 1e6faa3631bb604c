"""The training loop and its stages, the order of the data, metrics."""
