"""Low-rank adaptation against its formula."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import nn

from inference.lora import ALPHA, RANK, LowRank, add_lora, low_ranks, merge, remove_lora, unmerge
from inference.openclip_model import REFERENCE, build_clip, tokenize


def _randomise(module: nn.Module) -> None:
    for _, _, item in low_ranks(module):
        nn.init.normal_(item.up)


def test_the_weight_is_changed_by_the_formula() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2)
    before = layer.in_proj_weight.detach().clone()
    add_lora(layer)
    _randomise(layer)
    ((_, name, item),) = low_ranks(layer)
    assert name == "in_proj_weight"
    layer.eval()
    for part in range(3):  # query, key, value each have factors of their own
        delta = ALPHA / math.sqrt(RANK) * item.up[part] @ item.down[part]
        rows = slice(8 * part, 8 * part + 8)
        torch.testing.assert_close(layer.in_proj_weight[rows], before[rows] + delta)
    assert torch.linalg.matrix_rank(layer.in_proj_weight[:8] - before[:8], atol=1e-5) == RANK


def test_untrained_adapters_change_nothing() -> None:
    clip = build_clip(REFERENCE).eval()
    tokens = tokenize(["lung nodule"], REFERENCE.context_length)
    before = clip.encode_text(tokens)
    trained = add_lora(clip.transformer)
    torch.testing.assert_close(clip.encode_text(tokens), before)
    # four blocks, three projections each, two factors of 2 x 128
    assert sum(parameter.numel() for parameter in trained) == 4 * 3 * 2 * RANK * 128
    assert {id(p) for p in clip.transformer.parameters() if p.requires_grad} == {id(p) for p in trained}


@pytest.mark.parametrize("kind", ["text", "pool"])
def test_merged_unmerged_and_removed_compute_the_same(kind: str) -> None:
    torch.manual_seed(1)
    module: nn.Module
    if kind == "text":
        clip = build_clip(REFERENCE)
        module, given = clip.transformer, torch.randn(2, 5, REFERENCE.text_width)
    else:
        module, given = AttentionPool2d(2, 32, 4, 16), torch.randn(3, 32, 2, 2)
    plain = copy.deepcopy(module).eval()(given)
    layout = sorted(module.state_dict())
    add_lora(module)
    _randomise(module)
    module.eval()
    adapted = module(given)
    assert (adapted - plain).abs().max() > 1e-3
    merge(module)
    torch.testing.assert_close(module(given), adapted, rtol=1e-4, atol=1e-5)
    merge(module)  # twice is once
    torch.testing.assert_close(module(given), adapted, rtol=1e-4, atol=1e-5)
    unmerge(module)
    torch.testing.assert_close(module(given), adapted, rtol=1e-4, atol=1e-5)
    remove_lora(module)
    torch.testing.assert_close(module(given), adapted, rtol=1e-4, atol=1e-5)
    assert sorted(module.state_dict()) == layout
    assert list(low_ranks(module)) == []


def test_the_dropout_acts_in_training_only() -> None:
    torch.manual_seed(2)
    item = LowRank(6, 40, dropout=0.25)
    nn.init.normal_(item.up)
    weight = torch.zeros(6, 40)
    item.train()
    first, second = item(weight), item(weight)
    assert not torch.equal(first, second)
    assert (first == 0).all(0).any()
    item.eval()
    torch.testing.assert_close(item(weight), item.delta())


def test_only_the_adapters_learn() -> None:
    clip = build_clip(REFERENCE)
    trained = add_lora(clip.transformer)
    clip.transformer(torch.randn(1, 4, REFERENCE.text_width)).square().sum().backward()
    ups = [parameter for parameter in trained if parameter.shape[-1] == RANK]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in ups)
    assert all(
        p.grad is None for p in clip.transformer.parameters() if not any(p is other for other in trained)
    )


def test_a_module_without_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="no attention"):
        add_lora(nn.Linear(2, 2))
