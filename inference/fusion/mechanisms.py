"""The mechanisms by name: a model card chooses one."""

from __future__ import annotations

from typing import Final

from inference.errors import ModelUnavailableError
from inference.fusion.attention import CrossAttention
from inference.fusion.attributes import Attributes
from inference.fusion.contrast import Contrast
from inference.fusion.distilled import Distilled
from inference.fusion.joint import JointEmbedding
from inference.fusion.mechanism import Mechanism
from inference.fusion.view_attention import ViewAttention

MECHANISMS: Final[dict[str, type[Mechanism]]] = {
    one.name: one for one in (Contrast, JointEmbedding, CrossAttention, Distilled, Attributes, ViewAttention)
}
"""By name, M1 to M6."""


def mechanism_of(name: str | None) -> type[Mechanism]:
    """The mechanism of a name.

    Raises
    ------
    ModelUnavailableError
        There is none of this name.
    """
    if name is None or name not in MECHANISMS:
        raise ModelUnavailableError(
            f"{name or 'nothing'} is no fusion mechanism; the card's mechanism is one of: "
            f"{', '.join(MECHANISMS)}"
        )
    return MECHANISMS[name]
