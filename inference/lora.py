"""Low-rank adaptation of attention: query, key and value projections (Hu et al., arXiv 2106.09685).

As in CLIP-LoRA (Zanella and Ben Ayed, arXiv 2405.18541): rank 2, alpha 1, scale alpha / sqrt(rank). The
dropout falls on the input features of the low-rank path, the same ones for a whole batch, since the
projections of `torch.nn.MultiheadAttention` are one stacked weight and not layers of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

RANK: Final = 2
ALPHA: Final = 1.0
DROPOUT: Final = 0.25

_STACKED: Final = "in_proj_weight"


class LowRank(nn.Module):
    """Adds ``scale * up @ down`` to a weight, for each of its stacked projections.

    Parameters
    ----------
    rows, columns
        Shape of the weight.
    stacked
        How many projections are stacked along the rows: 3 for query, key and value in one weight.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        stacked: int = 1,
        rank: int = RANK,
        alpha: float = ALPHA,
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__()
        self.scale = alpha / math.sqrt(rank)
        self.down = nn.Parameter(torch.empty(stacked, rank, columns))
        self.up = nn.Parameter(torch.zeros(stacked, rows // stacked, rank))
        for one in self.down:
            nn.init.kaiming_uniform_(one, a=math.sqrt(5))
        self.dropout = nn.Dropout(dropout)
        self.is_merged = False

    def delta(self) -> Tensor:
        """What is added, shape (rows, columns)."""
        stacked = self.up @ self.down
        return torch.mul(stacked.flatten(0, 1), self.scale)

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight; the weight itself where it was merged."""
        if self.is_merged:
            return weight
        columns: Tensor = self.dropout(torch.ones_like(self.down[0, 0]))
        return weight + (self.delta() * columns).to(weight.dtype)


def add_lora(
    module: nn.Module, *, rank: int = RANK, alpha: float = ALPHA, dropout: float = DROPOUT
) -> list[nn.Parameter]:
    """Freeze a tower and adapt the query, key and value projections of its attention.

    Parameters
    ----------
    module
        Changed in place: each `torch.nn.MultiheadAttention` in it, and each open_clip ``AttentionPool2d``.

    Returns
    -------
    list of torch.nn.Parameter
        What is to be trained.

    Raises
    ------
    ValueError
        The module has no attention of these kinds.
    """
    targets: list[tuple[nn.Module, str, int]] = [
        (layer, _STACKED, 3)
        for layer in module.modules()
        if isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None
    ]
    targets += [(layer, "weight", 1) for layer in _pool_layers(module)]
    if not targets:
        raise ValueError("there is no attention to adapt")
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for layer, name, stacked in targets:
        rows, columns = getattr(layer, name).shape
        low_rank = LowRank(rows, columns, stacked=stacked, rank=rank, alpha=alpha, dropout=dropout)
        parametrize.register_parametrization(layer, name, low_rank)
        trained += [low_rank.down, low_rank.up]
    return trained


def _pool_layers(module: nn.Module) -> Iterator[nn.Module]:
    for layer in module.modules():
        if type(layer).__name__ == "AttentionPool2d":
            yield from (layer.get_submodule(name) for name in ("q_proj", "k_proj", "v_proj"))


def low_ranks(module: nn.Module) -> Iterator[tuple[nn.Module, str, LowRank]]:
    """Each adapted layer, the name of its weight, and its adapter."""
    for layer in list(module.modules()):
        if not parametrize.is_parametrized(layer):
            continue
        for name, chain in layer.parametrizations.items():  # type: ignore[operator,union-attr]  # a ModuleDict
            yield from ((layer, name, item) for item in chain if isinstance(item, LowRank))


@torch.no_grad()
def merge(module: nn.Module) -> None:
    """Put the adapters into the weights, so that they cost nothing; `unmerge` takes them out again."""
    for layer, name, item in low_ranks(module):
        if not item.is_merged:
            layer.parametrizations[name].original += item.delta()  # type: ignore[index,union-attr]  # a ModuleDict
            item.is_merged = True


@torch.no_grad()
def unmerge(module: nn.Module) -> None:
    """Undo `merge`."""
    for layer, name, item in low_ranks(module):
        if item.is_merged:
            layer.parametrizations[name].original -= item.delta()  # type: ignore[index,union-attr]  # a ModuleDict
            item.is_merged = False


def remove_lora(module: nn.Module) -> None:
    """Merge for good: afterwards the module has its own layout again and no adapters."""
    merge(module)
    for layer, name, _ in list(low_ranks(module)):
        parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
