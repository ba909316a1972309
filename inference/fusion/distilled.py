"""M4, missing parts: items left out in training, and a teacher that saw the whole record.

As van Sonsbeek's distillation of what is there in training only. In use it is the network of M2 with learned
absent tokens; what differs is how it learnt (`inference.train.fusion_losses`). It has a student of the image
alone too, which is measured but never used: without a record the result is the image-only one.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from inference.fusion.joint import JointEmbedding
from inference.fusion.mechanism import EMBEDDING, WIDTH, ImageParts


class Distilled(JointEmbedding):
    """The joint embedding, taught with whole records to do with parts of them."""

    name: ClassVar[str] = "distilled"
    number: ClassVar[str] = "M4"

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(EMBEDDING, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1)
        )

    def image_only(self, image: ImageParts) -> Tensor:
        """What the teacher's correction would be, guessed from the image alone, shape (n,). Measured only."""
        answer: Tensor = self.student(self.standard(image)).squeeze(1)
        return answer
