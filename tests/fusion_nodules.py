"""Nodules and a text tower for the training of the fusion, without images."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.fusion import EMBEDDING, NoduleFacts
from inference.fusion.mechanism import VIEWS
from inference.train.fusion_data import Samples


def words(sentences: Sequence[str]) -> NDArray[np.float32]:
    """Another vector for another sentence."""
    rows = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=EMBEDDING) for text in sentences]
    return np.array(np.reshape(rows, (-1, EMBEDDING)) / 16, np.float32)


def many(count: int) -> Samples:
    """Patients of one nodule each, every third malignant."""
    malignant = np.arange(count) % 3 == 0
    return Samples(
        patient=np.arange(count),
        names=tuple(f"{number:04d}" for number in range(count)),
        malignant=malignant,
        logit=np.zeros(count),
        embedding=np.zeros((count, EMBEDDING), np.float32),
        views=np.zeros((count, VIEWS, EMBEDDING), np.float32),
        ratings=np.full((count, 9), 2, np.float32),
        facts=(NoduleFacts(8.0, 1),) * count,
        patient_malignant=malignant,
        patient_chance=np.linspace(0.1, 0.9, count),
    )


def write_features(path: Path, *, patients: int = 200, seed: int = 0, **changes: Any) -> Path:
    """Features as CADx would give them: good on unseen patients, perfect on TRAIN."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(1, patients + 1):
        split = "test" if number % 10 < 3 else "val" if number % 10 < 5 else "train"
        for nodule in range(2):
            malignant = number % 3 == 0 and nodule == 0
            latent = rng.normal() + 1.5 * malignant
            logit = 8 * (malignant - 0.5) if split == "train" else 1.5 * (latent - 0.75) - 1.6
            embedding = rng.normal(size=EMBEDDING) / 16
            embedding[0] += latent / 8
            views = np.abs(rng.normal(size=(VIEWS, EMBEDDING)))
            views[:, 0] += latent
            ratings = np.full(9, 4.0 if malignant else 2.0)
            name, size = f"P-{number:04d}", 8 + 3 * rng.random()
            row = (name, f"{name}_{nodule:02d}", split, logit, embedding, views, ratings, ratings[-1], size)
            rows.append(row)
    arrays = ("patient", "nodule", "split", "image_logit", "embedding", "views", "ratings", "malignancy")
    found: dict[str, Any] = {
        name: np.array(c) for name, c in zip((*arrays, "diameter_mm"), zip(*rows, strict=True), strict=True)
    }
    np.savez(path, **{**found, **changes})
    return path
