"""Networks small enough to train in a test."""

from __future__ import annotations

from inference.sam2_model import Sam2Size

SMALL_SAM2 = Sam2Size(
    image_size=64,
    width=64,
    embed_dim=16,
    heads=1,
    stages=(1, 1, 2, 1),
    global_blocks=(3,),
    window_spec=(8, 4, 4, 2),
    window_background=(4, 4),
    top_down=(0, 1, 2, 3),
    memory_layers=1,
    memory_feedforward=64,
    text_width=8,
    convolutional_stem=True,
)
