"""A small mutation fuzzer: repeatable, and there wherever Python is."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_LENGTHS = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xfe\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\x01\0\0\0",
)


def mutations(seeds: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Mutated inputs without end, the same ones for the same `seed`."""
    dice = random.Random(seed)
    while True:
        data = bytearray(dice.choice(seeds))
        for _ in range(dice.choice((1, 1, 2, 4, 16))):
            _mutate(data, dice, seeds)
        yield bytes(data)


def _mutate(data: bytearray, dice: random.Random, seeds: Sequence[bytes]) -> None:
    at = dice.randrange(len(data) + 1)
    kind = dice.randrange(7)
    if kind == 0 and at < len(data):
        data[at] = dice.randrange(256)
    elif kind == 1 and at < len(data):
        data[at] ^= 1 << dice.randrange(8)
    elif kind == 2:
        data[at : at + 4] = dice.choice(_LENGTHS)
    elif kind == 3:
        del data[at : at + dice.choice((1, 2, 8, 100))]
    elif kind == 4:
        data[at:at] = dice.randbytes(dice.choice((1, 2, 8, 100)))
    elif kind == 5:
        other = dice.choice(seeds)
        start = dice.randrange(len(other) + 1)
        data[at:at] = other[start : start + dice.choice((4, 32, 300))]
    else:
        del data[at:]
