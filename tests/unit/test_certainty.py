"""Probabilities in words: rounded once, and never to 0 or 100."""

from __future__ import annotations

import pytest

from inference.certainty import CERTAIN, Percent, percent
from inference.types import SemanticFeature


@pytest.mark.parametrize(
    ("probability", "words"),
    [
        (0.0, "<1 %"),
        (0.00999, "<1 %"),
        (0.01, "1 %"),
        (0.4249, "42 %"),
        (0.8751, "88 %"),
        (0.9899, "99 %"),
        (0.99485, ">99 %"),
        (1.0, ">99 %"),
    ],
)
def test_whole_percents_never_claim_certainty(probability: float, words: str) -> None:
    assert percent(probability) == words
    assert f"{Percent(probability):.0f} %" == words


def test_a_template_may_ask_for_places() -> None:
    assert f"{Percent(0.99485):.1f}" == "99.5"
    assert f"{Percent(0.0004):.1f} {Percent(0.9999):.1f} {Percent(0.31249):.2f}" == "<0.1 >99.9 31.25"
    assert float(Percent(0.25)) == 25.0


def test_a_value_is_certain_where_it_is_likelier_than_all_others() -> None:
    assert SemanticFeature("margin", 5, CERTAIN).is_certain
    assert not SemanticFeature("margin", 5, 0.4999).is_certain
