"""Scripts that fit what the model cards hold."""
