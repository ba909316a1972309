"""The CADx network and its reader: shapes, meaning of sentences, packing, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dicom_sr.codes import feature_codes
from inference.cadx import (
    CALCIFICATION,
    RANKED,
    Calibration,
    NineViewReader,
    build_reader,
    pack,
    rank_probabilities,
)
from inference.cadx_network import FULL_CADX, REFERENCE_CADX, CadxNetwork
from inference.descriptors import NAMES
from inference.errors import ModelUnavailableError
from inference.lora import add_lora, low_ranks
from inference.prompts import PAIRS, STRUCTURES
from inference.weights import read_weights, write_weights

SPACING = (2.0, 0.7, 0.7)


def _nodule() -> tuple[np.ndarray, np.ndarray]:
    at = np.indices((12, 120, 110)).transpose(1, 2, 3, 0) - np.array([6, 50, 60])
    mask = np.linalg.norm(at * SPACING, axis=-1) <= 6
    noise = np.random.default_rng(0).normal(0, 20, mask.shape)
    return np.where(mask, 20.0, -850.0) + noise, mask


def _calibration() -> Calibration:
    rng = np.random.default_rng(0)
    ranks = {feature: np.array([1.0, 3.0, 1.0, -1.0, -3.0]) for feature in RANKED}
    ranks["internal_structure"] = np.array([-1.0, -2.0, -3.0, -4.0])
    ranks[CALCIFICATION] = np.array([1.0, 0.0, 0.1, 0.1, 0.6, 0.1, 0.1])
    towards = rng.normal(size=(len(NAMES), 2, 256)).astype(np.float32)
    return Calibration((2.0, -1.0), np.zeros(len(NAMES) + 1, np.float32), ranks, towards)


def _state() -> dict[str, Tensor]:
    """A random network under LoRA with adapters that do something."""
    network = CadxNetwork(REFERENCE_CADX)
    add_lora(network.clip.transformer)
    for _, _, item in low_ranks(network):
        torch.nn.init.normal_(item.up)
    return dict(network.state_dict())


def _text_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    plain = {key.replace(".parametrizations", "").removesuffix(".original"): v for key, v in state.items()}
    return {
        key.removeprefix("clip."): value
        for key, value in plain.items()
        if key.startswith("clip.") and not key.startswith(("clip.visual.", "clip.logit_scale"))
        if not key.endswith((".0.down", ".0.up"))
    }


@pytest.fixture(scope="module")
def packed() -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    state = _state()
    text = _text_of(state)
    return state, text, pack([state, state], text, _calibration())


def test_embeddings_have_length_one_for_any_number_of_views() -> None:
    torch.manual_seed(0)
    network = CadxNetwork(REFERENCE_CADX).eval()
    with torch.inference_mode():
        for views in (1, 4, 9):
            embedding = network.embed_views(torch.rand(2, views, 3, 64, 64), torch.zeros(2, len(NAMES)))
            torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
        bare = network.embed_views(torch.rand(2, 9, 3, 64, 64), None)
        sides = network.pair_sentences()
        assert network.pair_logits(bare, *sides).shape == (2, len(PAIRS))
        assert network.suspicion(bare, *sides).shape == (2,)
        assert network.structure_logits(bare, network.structure_sentences()).shape == (2, len(STRUCTURES))


def test_the_order_of_views_does_not_matter_and_the_mask_counts_where_there_is_one() -> None:
    torch.manual_seed(0)
    network = CadxNetwork(REFERENCE_CADX).eval()
    views, numbers = torch.rand(2, 9, 3, 64, 64), torch.randn(2, len(NAMES))
    with torch.inference_mode():
        plain = network.embed_views(views, numbers)
        torch.testing.assert_close(network.embed_views(views.flip(1), numbers), plain, rtol=1e-4, atol=1e-5)
        half = network.embed_views(views, numbers, torch.tensor([True, False]))
        torch.testing.assert_close(half[0], plain[0])
        torch.testing.assert_close(half[1], network.embed_views(views, None)[1])


def test_a_feature_is_present_where_its_positive_sentence_is_nearer() -> None:
    network = CadxNetwork(REFERENCE_CADX).eval()
    with torch.inference_mode():
        positive, negative = network.pair_sentences()
        for index in range(len(PAIRS)):
            logits = network.pair_logits(torch.stack([positive[index], negative[index]]), positive, negative)
            assert logits[0, index] >= logits[1, index]


@pytest.mark.slow
def test_the_full_size_fits_together() -> None:
    network = CadxNetwork(FULL_CADX).eval()
    with torch.inference_mode():
        assert network.embed_views(torch.rand(1, 2, 3, 224, 224), None).shape == (1, 256)
    # 12 blocks of each tower: query, key and value of rank 2
    trained = add_lora(network.clip.visual) + add_lora(network.clip.transformer)
    assert sum(parameter.numel() for parameter in trained) == 12 * 3 * 2 * 2 * (768 + 512)


def test_packing_keeps_everything_but_the_shared_text_tower(
    packed: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]], tmp_path: Path
) -> None:
    state, text, tensors = packed
    path = tmp_path / "cadx.safetensors"
    digest = write_weights(tensors, path, {})
    stored = sum(v.numel() for k, v in tensors.items() if k.startswith("member.0."))
    assert stored == sum(v.numel() for v in state.values()) - sum(v.numel() for v in text.values())
    reader = build_reader(text, read_weights(path, digest))
    hu, mask = _nodule()
    found = reader.read(hu, SPACING, mask)
    assert np.linalg.norm(found.embedding) == pytest.approx(1, abs=1e-5)


def test_a_reading_is_complete_and_its_ranks_have_codes(
    packed: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]],
) -> None:
    _, text, tensors = packed
    found = build_reader(text, tensors).read(*_args())
    assert {feature.name for feature in found.features} == set(RANKED)
    for feature in found.features:
        feature_codes(feature)
        assert 0 < feature.probability <= 1
    assert set(found.pair_probabilities) == set(RANKED)
    assert sum(found.structure_similarity.values()) == pytest.approx(1, abs=1e-5)
    assert set(found.radiomic_similarity) == set(NAMES)
    assert found.malignancy == pytest.approx(1 / (1 + np.exp(1 - 2 * found.logit)))
    shifted = build_reader(text, tensors, malignancy_shift=0.4).read(*_args())
    assert shifted.logit == found.logit
    assert shifted.malignancy == pytest.approx(1 / (1 + np.exp(0.6 - 2 * found.logit)))


def _args() -> tuple[np.ndarray, tuple[float, float, float], np.ndarray]:
    hu, mask = _nodule()
    return hu, SPACING, mask


def test_the_adapters_are_read_and_a_cropped_mask_reads_as_a_full_one(
    packed: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]],
) -> None:
    _, text, tensors = packed
    hu, _, mask = _args()
    reader = build_reader(text, tensors)
    whole = reader.read(hu, SPACING, mask)
    box = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    z, y, x = (int(b[0]) for b in box)
    cut = mask[tuple(slice(int(b[0]), int(b[-1]) + 1) for b in box)]
    cropped = reader.read(hu, SPACING, cut, (z, y, x))
    assert cropped.malignancy == whole.malignancy
    np.testing.assert_array_equal(cropped.embedding, whole.embedding)
    plain = {key: v * 0 if key.endswith(".up") else v for key, v in tensors.items()}
    other = build_reader(text, plain).read(hu, SPACING, mask)
    assert other.pair_probabilities != whole.pair_probabilities
    np.testing.assert_array_equal(other.embedding, whole.embedding)


def test_only_the_nodules_own_slices_and_surroundings_count(
    packed: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]],
) -> None:
    _, text, tensors = packed
    hu, _, mask = _args()
    reader = build_reader(text, tensors)
    changed = hu.copy()
    changed[~mask.any((1, 2))] = 700
    np.testing.assert_array_equal(
        reader.read(hu, SPACING, mask).embedding, reader.read(changed, SPACING, mask).embedding
    )
    denser = np.where(mask, hu + 400, hu)
    assert reader.read(denser, SPACING, mask).logit != reader.read(hu, SPACING, mask).logit


def test_ranks_are_a_distribution_that_follows_the_pair() -> None:
    ranks = np.array([1.0, 3.0, 1.0, -1.0, -3.0])
    for logit in (-6.0, 0.0, 6.0):
        assert rank_probabilities("margin", logit, ranks).sum() == pytest.approx(1)
    means = [rank_probabilities("margin", x, ranks) @ np.arange(1, 6) for x in (-6.0, 0.0, 6.0)]
    assert means == sorted(means)
    assert means[1] == pytest.approx(3)
    calcified = np.array([1.0, 0.0, 0.1, 0.1, 0.6, 0.1, 0.1])
    assert rank_probabilities(CALCIFICATION, -4.0, calcified).argmax() + 1 == 6  # absent
    assert rank_probabilities(CALCIFICATION, 4.0, calcified).argmax() + 1 == 3
    assert rank_probabilities(CALCIFICATION, 0.3, calcified).sum() == pytest.approx(1)


def test_wrong_masks_are_refused(
    packed: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]],
) -> None:
    _, text, tensors = packed
    hu, _, mask = _args()
    reader = build_reader(text, tensors)
    with pytest.raises(ValueError, match="empty mask"):
        reader.read(hu, SPACING, np.zeros_like(mask))
    with pytest.raises(ValueError, match="outside"):
        reader.read(hu, SPACING, mask, (1, 0, 0))
    with pytest.raises(ValueError, match="no network"):
        NineViewReader([], _calibration())


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("member.1.malignancy.weight", "member 1 don't fit"),
        ("calibration.prototypes", "lack their calibration"),
        ("calibration.ranks.margin", "lack their calibration"),
    ],
)
def test_missing_weights_are_refused(
    packed: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]], lost: str, words: str
) -> None:
    _, text, tensors = packed
    with pytest.raises(ModelUnavailableError, match=words):
        build_reader(text, {key: value for key, value in tensors.items() if key != lost})
    with pytest.raises(ModelUnavailableError, match="hold no network"):
        build_reader(text, {})
    with pytest.raises(ModelUnavailableError, match="don't fit"):
        build_reader({key: v for key, v in text.items() if key != "positional_embedding"}, tensors)
