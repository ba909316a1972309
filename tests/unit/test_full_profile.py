"""The profile `full`: a published detector from a models folder, the rest from the package.

The published weights can't be fetched here, so random ones stand in for them: the path is tested, not what is
found.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from inference import retinanet
from inference.catalogue import find
from inference.convert import card_text
from inference.errors import ModelUnavailableError
from inference.full_detector import PublishedDetector
from inference.lungs import Lungs
from inference.pull import Trust
from inference.registry import CLASSIFICATION, DETECTION, load_pipeline, profiles
from inference.stack import load_stack
from inference.types import SourceFrame, Volume
from inference.weights import write_weights

NAME = "lung-nodule-ct-detection"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder as ``pacs-node models convert`` leaves it, with random weights."""
    made = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    weights = made / f"{NAME}.safetensors"
    write_weights(retinanet.build_network().state_dict(), weights, {})
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (made / f"{NAME}.toml").write_text(card_text(find(NAME), digest, "0" * 64, Trust.CATALOGUE))
    return made


def test_the_published_detector_takes_the_place_of_ours(folder: Path) -> None:
    pipeline, reference = load_pipeline("full", models=folder), load_pipeline("reference")
    assert pipeline.version.startswith("full-")
    assert pipeline.card(DETECTION).network == "monai-retinanet"
    assert pipeline.weights(DETECTION)[0] == folder / f"{NAME}.safetensors"
    assert pipeline.card(CLASSIFICATION) == reference.card(CLASSIFICATION)
    assert {card.task for card in pipeline.cards} == {card.task for card in reference.cards}
    assert "full" in profiles()


def test_its_boxes_become_marks(folder: Path) -> None:
    detector = load_stack(load_pipeline("full", models=folder)).detector
    assert isinstance(detector, PublishedDetector)
    array = np.random.default_rng(1).normal(-500, 400, (16, 40, 40)).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, 0.8], [0, 0.8, 0], [2.0, 0, 0]]
    frames = tuple(SourceFrame("1.2", f"1.2.{n}") for n in range(16))
    volume = Volume(array, affine, "1.3", "1.4", "1.5", frames)
    lungs = Lungs(np.ones(array.shape, np.uint8), (1.0, 1.0))
    boxes = retinanet.detect(detector.network, volume)
    found = detector.detect(volume, lungs)
    assert len(found) == len(boxes.scores)
    assert len(found) > 0
    nowhere = Lungs(np.zeros(array.shape, np.uint8), (1.0, 1.0))
    assert detector.detect(volume, nowhere) == ()
    assert [one.probability for one in found] == sorted((one.probability for one in found), reverse=True)
    np.testing.assert_allclose(volume.index_to_lps(found[0].index), found[0].centre_lps, atol=1e-6)
    assert found[0].diameter_mm == pytest.approx(boxes.sizes_mm[0].mean())


def test_without_models_nothing_else_runs_in_their_place(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="needs a folder of published models"):
        load_pipeline("full", models=tmp_path / "none")
    with pytest.raises(ModelUnavailableError, match="needs a folder of published models"):
        load_pipeline("full")
    with pytest.raises(ModelUnavailableError, match="no model card names"):
        load_pipeline("full", models=tmp_path)
