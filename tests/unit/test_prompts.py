"""Sentences: pairs by the LIDC-IDRI mapping, captions from ratings, nothing unseen is trained on."""

from __future__ import annotations

import numpy as np
import pytest

from inference.prompts import (
    FRAMES,
    PAIRS,
    PLACES,
    SIZES,
    STRUCTURES,
    UNSEEN_STRUCTURES,
    caption,
    pair,
    structure_sentence,
)


@pytest.mark.parametrize(
    ("feature", "rating", "holds"),
    [
        ("margin", 3.0, True),
        ("margin", 2.5, False),
        ("texture", 4.0, False),
        ("texture", 4.5, True),
        ("spiculation", 3.0, True),
        ("lobular_pattern", 2.5, False),
        ("sphericity", 3.0, False),
        ("calcification", 6.0, False),
        ("calcification", 3.0, True),
        ("malignancy", 3.0, False),
        ("internal_structure", 1.0, True),
    ],
)
def test_pairs_follow_the_mapping_of_the_paper(feature: str, rating: float, holds: bool) -> None:
    assert pair(feature).holds(rating) is holds


def test_unseen_wordings_are_never_drawn() -> None:
    trained = {text for item in PAIRS for text in item.positive + item.negative}
    trained |= {text for table in (STRUCTURES, SIZES, PLACES) for texts in table.values() for text in texts}
    unseen = {text for item in PAIRS for text in item.unseen} | {
        text for texts in UNSEEN_STRUCTURES.values() for text in texts
    }
    assert not trained & unseen
    assert not {frame.format(text) for frame in FRAMES for text in trained} & unseen


def test_a_caption_says_what_the_ratings_say() -> None:
    ratings = {"spiculation": 5.0}
    texts = {caption(ratings, np.random.default_rng(seed)) for seed in range(20)}
    assert texts <= set(pair("spiculation").positive)
    assert len(texts) > 1


def test_a_caption_can_leave_the_suspicion_out() -> None:
    ratings = {"malignancy": 5.0, "margin": 5.0}
    words = set(pair("malignancy").positive)
    texts = [caption(ratings, np.random.default_rng(seed), with_malignancy=False) for seed in range(30)]
    assert not any(word in text for text in texts for word in words)
    assert any(word in caption(ratings, np.random.default_rng(seed)) for seed in range(30) for word in words)


def test_without_ratings_there_is_still_a_sentence() -> None:
    assert caption({}, np.random.default_rng(0)) == "The nodule."


def test_structures_are_named_in_their_own_words() -> None:
    rng = np.random.default_rng(3)
    for name, wordings in STRUCTURES.items():
        assert any(wording in structure_sentence(name, rng) for wording in wordings)
    with pytest.raises(KeyError):
        structure_sentence("heart", rng)
    with pytest.raises(KeyError):
        pair("colour")
