"""Figures of fusion mechanisms on the TEST patients, with intervals by patient.

Every figure is a mean over `TEST_DRAWS` draws of records (and over training seeds, where there are several);
the interval resamples patients and takes the mean over the draws each time. Differences to the image alone
are of the same patients in the same resample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.evaluate.metrics import Estimate, PatientBootstrap, brier, calibration_error
from inference.fusion import Mechanism, TextTower
from inference.train.fusion_data import Draw, Drawer, Samples
from inference.train.fusion_learn import corrections, prior_of
from inference.train.records import Dependence, RecordSource

TEST_DRAWS = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trial:
    """The records on which mechanisms are compared, the same for all.

    Parameters
    ----------
    full, half, none
        All items of the records, half of them, no item.
    plain
        All items, without Brock's estimate, which knows the size of the nodule: for the record alone.
    blind
        Records that know nothing of the patient.
    """

    samples: Samples
    prior: float
    full: list[Draw]
    half: list[Draw]
    none: list[Draw]
    plain: list[Draw]
    blind: list[Draw]

    @classmethod
    def drawn(
        cls,
        parts: Mapping[str, Samples],
        source: RecordSource,
        tower: TextTower | None,
        *,
        seed: int,
        dependence: Dependence = Dependence.OUTCOME,
    ) -> Trial:
        """Draw the records of the TEST patients."""
        test, drawer = parts["test"], Drawer(source, tower, seed + 2, dependence)
        full = [drawer.draw(test, 0.0) for _ in range(TEST_DRAWS)]
        half = [drawer.draw(test, 0.5) for _ in range(TEST_DRAWS)]
        plain = [drawer.draw(test, 0.0, brock=False) for _ in range(TEST_DRAWS)]
        blind = [drawer.draw(test, 0.0, blind=True) for _ in range(TEST_DRAWS)]
        none = [drawer.draw(test, 1.0)]
        return cls(test, prior_of(parts["train"]), full, half, none, plain, blind)

    def fused(
        self, network: Mechanism, draws: Sequence[Draw], parts: str = "image text table"
    ) -> list[Floats]:
        """Fused logits of each draw."""
        scale, offset = float(network.scale), float(network.offset)
        found = []
        for draw in draws:
            correction = scale * corrections(network, self.samples, draw, parts=parts) + offset
            found.append(self.samples.logit + np.where(draw.has_record.numpy(), correction, 0.0))
        return found

    def alone(self, network: Mechanism) -> list[Floats]:
        """Logits of each draw from the record and the share of malignant nodules."""
        scale, offset = float(network.scale), float(network.offset)
        return [
            self.prior + scale * corrections(network, self.samples, draw, parts="text table") + offset
            for draw in self.plain
        ]

    @property
    def exact(self) -> list[Floats]:
        """Image and the exact log likelihood ratio of the whole record for the hidden state."""
        return [self.samples.logit + draw.log_ratio for draw in self.full]

    @property
    def exact_alone(self) -> list[Floats]:
        """The exact log likelihood ratio: no reader of these records can rank better."""
        return [draw.log_ratio for draw in self.plain]


class Figures:
    """Turns logits into figures of the same patients and the same resamples."""

    def __init__(self, samples: Samples, *, seed: int, resamples: int) -> None:
        self._truth = samples.malignant
        patients = [samples.names[row] for row in samples.patient]
        self._bootstrap = PatientBootstrap(patients, resamples=resamples, seed=seed)
        self._image = self._above([samples.logit])

    def of(self, logits: Sequence[Floats]) -> dict[str, Any]:
        """AUROC and its difference to the image alone with 95 % intervals, calibration error, Brier score."""
        chances = [1 / (1 + np.exp(-logit)) for logit in logits]
        above = self._above(logits)
        area = self._bootstrap.estimate(lambda weights: self._area(above, weights))
        gain = self._bootstrap.estimate(lambda weights: self._area(above - self._image, weights))
        return {
            **_told("auroc", area),
            **_told("gain", gain),
            "calibration_error": float(np.mean([calibration_error(self._truth, p) for p in chances])),
            "brier": float(np.mean([brier(self._truth, p) for p in chances])),
        }

    def area(self, logits: Sequence[Floats]) -> float:
        """AUROC alone."""
        return self._area(self._above(logits), np.ones(len(self._truth)))

    def _above(self, logits: Sequence[Floats]) -> Floats:
        """Share of the draws in which each malignant nodule lies above each benign one; ties count half."""
        sick, well = self._truth, ~self._truth
        signs = [np.sign(one[sick][:, None] - one[well][None]) for one in logits]
        return np.asarray((np.mean(signs, axis=0) + 1) / 2)

    def _area(self, above: Floats, weights: Floats) -> float:
        sick, well = weights[self._truth], weights[~self._truth]
        total = sick.sum() * well.sum()
        return float(sick @ above @ well / total) if total else float("nan")


def _told(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
