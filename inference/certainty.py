"""How what a model is more or less sure of is said: one rule for every output.

A percentage is rounded once, from the value itself, and never to 0 or 100: no model is always right.
"""

from __future__ import annotations

import re
from typing import Final, Self

CERTAIN: Final = 0.5
"""From this probability on a value is said as one that holds: it is likelier than all others together."""
NOT_CERTAIN: Final = "not certain"
"""Said in place of any other value."""
SUSPICIOUS: Final = "Suspicious rather than benign"
"""What the probability of malignancy is called wherever a person reads it."""
SUSPICION: Final = "readers' suspicion, not histology"
"""What it is: how radiologists would rate the nodule, if not in the middle of their scale."""

_PLACES = re.compile(r"\.(\d)f")


class Percent(float):
    """A probability in percent that a sentence can be filled with.

    ``f"{Percent(0.99485)} %"`` is ``>99 %``; whole percents, or the places of a format: with ``.1f`` it is
    ``99.5 %``.

    Parameters
    ----------
    probability
        0..1.
    """

    __slots__ = ()

    def __new__(cls, probability: float) -> Self:
        """Take a probability of 0..1."""
        return super().__new__(cls, 100 * float(probability))

    def __format__(self, spec: str) -> str:
        places = int(found[1]) if (found := _PLACES.fullmatch(spec)) else 0
        least, value = 10.0**-places, float(self)
        if value < least:
            return f"<{least:.{places}f}"
        if value > 100 - least:
            return f">{100 - least:.{places}f}"
        return f"{value:.{places}f}"


def percent(probability: float) -> str:
    """Return a probability of 0..1 in words, such as ``87 %``, ``>99 %`` or ``<1 %``."""
    return f"{Percent(probability)} %"
