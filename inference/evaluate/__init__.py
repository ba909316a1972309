"""Scripts that measure the figures of the model cards."""
