"""The text-prompted SAM 2: published layout, the prompt's way into the mask, the memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from inference.published import expected_layout
from inference.sam2_model import PUBLISHED, REFERENCE, Features, Prompt, TextPromptedSam2
from inference.weights import layout_of
from tests.small_networks import SMALL_SAM2 as SMALL


@pytest.fixture(scope="module")
def model() -> TextPromptedSam2:
    torch.manual_seed(0)
    built: TextPromptedSam2 = TextPromptedSam2(SMALL).eval()
    return built


def _images(number: int) -> torch.Tensor:
    return torch.rand(number, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def _text(number: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(number, 5, 8, generator=torch.Generator().manual_seed(seed))


def test_the_published_size_has_the_published_layout() -> None:
    name = "sam2.1-hiera-tiny"
    mine = layout_of(TextPromptedSam2(PUBLISHED[name]).state_dict())
    added = {key for key in mine if key.startswith("text_projection.")}
    assert added == {"text_projection.weight", "text_projection.bias"}
    assert {key: shape for key, shape in mine.items() if key not in added} == expected_layout(name)


def test_the_reference_size_is_small() -> None:
    number = sum(one.numel() for one in TextPromptedSam2(REFERENCE).parameters())
    assert 2 * number < 20e6  # bytes as float16


@torch.inference_mode()
def test_the_sentence_decides_the_mask(model: TextPromptedSam2) -> None:
    features = model.encode(_images(1).expand(2, -1, -1, -1))
    same = model.sequence([features], Prompt(_text(1).expand(2, -1, -1)))[0]
    torch.testing.assert_close(same.logits[0], same.logits[1])
    other = model.sequence([features], Prompt(_text(2)))[0]
    assert (other.logits[0] - other.logits[1]).abs().max() > 1e-3
    assert same.logits.shape == (2, 64, 64)
    assert same.iou.shape == same.presence.shape == (2,)


@torch.inference_mode()
def test_a_box_is_used_and_none_is_the_same_as_not_a_number(model: TextPromptedSam2) -> None:
    features, text = model.encode(_images(1)), _text(1)
    without = model.sequence([features], Prompt(text))[0].logits
    nothing = model.sequence([features], Prompt(text, torch.full((1, 4), torch.nan)))[0].logits
    boxed = model.sequence([features], Prompt(text, torch.tensor([[8.0, 8.0, 40.0, 30.0]])))[0].logits
    torch.testing.assert_close(without, nothing)
    assert (without - boxed).abs().max() > 1e-3


def test_points_are_corners_in_x_and_y() -> None:
    boxes = torch.tensor([[1.0, 2.0, 3.0, 4.0], [torch.nan] * 4])
    points, labels = Prompt(torch.zeros(2, 5, 8), boxes).points()
    assert points[0].tolist() == [[1, 2], [3, 4]]
    assert labels.tolist() == [[2, 3], [-1, -1]]


@torch.inference_mode()
def test_the_memory_reaches_the_next_slice(model: TextPromptedSam2) -> None:
    first, second = model.encode(_images(1)), model.encode(_images(1).flip(3))
    alone = model.sequence([second], Prompt(_text(1)))[0].logits
    after = model.sequence([first, second], Prompt(_text(1)), length=2)[1].logits
    assert (alone - after).abs().max() > 1e-3


@torch.inference_mode()
def test_the_walk_asks_for_no_slice_beyond_its_stop(model: TextPromptedSam2) -> None:
    asked = []

    def slices() -> Iterator[Features]:
        for index in range(5):
            asked.append(index)
            yield model.encode(_images(1))

    frames = model.sequence(slices(), Prompt(_text(1)), length=5, stop=lambda _: len(asked) == 2)
    assert asked == [0, 1]
    assert len(frames) == 2


def test_every_part_learns_from_a_walk() -> None:
    torch.manual_seed(0)
    model = TextPromptedSam2(SMALL).train()
    features = model.encode(_images(3))
    frames = [features.take(slice(index, index + 1)) for index in range(3)]
    answers = model.sequence(frames, Prompt(_text(1), torch.tensor([[8.0, 8.0, 40.0, 30.0]])), length=3)
    total = torch.stack([one.logits.mean() + one.presence.mean() + one.iou.mean() for one in answers]).sum()
    torch.autograd.backward(total)
    learnt = {
        name.split(".")[0]
        for name, one in model.named_parameters()
        if one.grad is not None and one.grad.abs().max() > 0
    }
    assert learnt >= {
        "image_encoder",
        "memory_attention",
        "memory_encoder",
        "sam_mask_decoder",
        "sam_prompt_encoder",
        "text_projection",
    }


def test_without_a_sentence_there_is_no_mask(model: TextPromptedSam2) -> None:
    with pytest.raises(ValueError, match="takes a sentence"):
        model._forward_sam_heads(torch.zeros(1, 64, 4, 4))
