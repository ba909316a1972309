"""Networks at their published sizes: parameters, keys and a pass with random weights."""

from __future__ import annotations

import pytest
import torch

from inference import published
from inference.catalogue import checkpoints
from inference.errors import ModelUnavailableError
from inference.weights import layout_of

#: Parameters as the publishers count them (sam2's README; OpenAI's ViT-B/32; the bundle's network).
PARAMETERS = {
    "sam2.1-hiera-tiny": 38_962_498,
    "medsam2": 38_962_498,
    "clip-vit-b-32": 151_277_313,
}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_published_sizes(name: str, count: int) -> None:
    assert sum(item.numel() for item in published.build_network(name).parameters()) == count


def test_every_checkpoint_has_a_network_and_every_network_a_checkpoint() -> None:
    assert {item.network for item in checkpoints()} == set(published.BUILDERS)


def test_an_unknown_network() -> None:
    with pytest.raises(ModelUnavailableError, match="no network 'sam3'"):
        published.build_network("sam3")


def test_medsam2_has_the_keys_of_sam2_tiny_and_works_at_512() -> None:
    assert published.expected_layout("medsam2") == published.expected_layout("sam2.1-hiera-tiny")
    network = published.build_network("medsam2")
    assert network.image_size == 512
    with torch.inference_mode():
        out = network.forward_image(torch.zeros(1, 3, 512, 512))  # type: ignore[operator]  # method of SAM2Base
    assert [tuple(item.shape[1:]) for item in out["backbone_fpn"]] == [
        (32, 128, 128),
        (64, 64, 64),
        (256, 32, 32),
    ]


def test_clip_embeds_pictures_and_text_into_512_dimensions() -> None:
    network = published.build_network("clip-vit-b-32")
    layout = layout_of(network.state_dict())
    assert layout["visual.conv1.weight"] == (768, 3, 32, 32)
    assert layout["token_embedding.weight"] == (49408, 512)
    with torch.inference_mode():
        image = network.encode_image(torch.zeros(1, 3, 224, 224))  # type: ignore[operator]  # method of CLIP
        text = network.encode_text(torch.zeros(1, 77, dtype=torch.long))  # type: ignore[operator]  # method of CLIP
    assert image.shape == text.shape == (1, 512)
