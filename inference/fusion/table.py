"""The clinical record as numbers, with the range of Brock's model over what isn't known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.record import ClinicalRecord, Sex, Smoking
from inference.risk import RiskEstimate, bounds, brock_2b
from inference.types import Attenuation, Finding, Lobe

FLAGS: Final = ("family_history_lung_cancer", "cancer_history", "emphysema")
TABLE: Final = (
    *("age", "sex", "never", "former", "current", "pack_years", "years_quit", *FLAGS),
    *("age known", "sex known", "smoking known", "pack_years known", "years_quit known"),
    *(f"{flag} known" for flag in FLAGS),
    *("brock middle", "brock half width", "brock known"),
)
"""Columns of the table, in the order of `encode_table`."""

ITEM_COLUMNS: Final = {
    "age": ("age", "age known"),
    "sex": ("sex", "sex known"),
    "smoking": ("never", "former", "current", "smoking known"),
    "pack_years": ("pack_years", "pack_years known"),
    "years_quit": ("years_quit", "years_quit known"),
    **{flag: (flag, f"{flag} known") for flag in FLAGS},
    "brock": ("brock middle", "brock half width", "brock known"),
}
"""Columns of each item, the last one says whether it is known."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class NoduleFacts:
    """What Brock's model asks of the image; None where the pipeline can't tell.

    Parameters
    ----------
    diameter_mm
        Longest diameter.
    count
        Nodules of the scan.
    """

    diameter_mm: float
    count: int
    attenuation: Attenuation | None = None
    upper_lobe: bool | None = None
    spiculated: bool | None = None


def brock_range(record: ClinicalRecord, nodule: NoduleFacts) -> tuple[RiskEstimate, RiskEstimate] | None:
    """Lowest and highest estimate of Brock 2b over what isn't known; None without an age."""
    if record.age_years is None:
        return None
    return bounds(
        brock_2b,
        {
            "age_years": record.age_years,
            "female": None if record.sex is None else record.sex is Sex.FEMALE,
            "family_history_lung_cancer": record.family_history_lung_cancer,
            "emphysema": record.emphysema,
            "diameter_mm": nodule.diameter_mm,
            "attenuation": nodule.attenuation,
            "upper_lobe": nodule.upper_lobe,
            "spiculated": nodule.spiculated,
            "nodule_count": nodule.count,
        },
    )


def encode_table(record: ClinicalRecord, nodule: NoduleFacts | None) -> Floats:
    """The record as numbers.

    Returns
    -------
    ndarray
        float32, shape (len(`TABLE`),): values near 1 in size, 0 where not known, then a 1 for each item
        that is known.
    """
    smoking = [float(record.smoking is status) for status in (Smoking.NEVER, Smoking.FORMER, Smoking.CURRENT)]
    if record.smoking is Smoking.NOT_CURRENT:
        smoking = [0.5, 0.5, 0.0]
    sex = {Sex.FEMALE: 1.0, Sex.MALE: -1.0, None: 0.0}[record.sex]
    flags = [getattr(record, flag) for flag in FLAGS]
    asked = (record.age_years, record.sex, record.smoking, record.pack_years, record.years_quit, *flags)
    brock = None if nodule is None else brock_range(record, nodule)
    middle, half = (0.0, 0.0) if brock is None else _middle(*brock)
    return np.array(
        [
            0.0 if record.age_years is None else (record.age_years - 62) / 10,
            sex,
            *smoking,
            (record.pack_years or 0.0) / 20,
            (record.years_quit or 0.0) / 10,
            *(0.0 if flag is None else 2.0 * flag - 1 for flag in flags),
            *(float(value is not None) for value in asked),
            middle / 3,
            half,
            float(brock is not None),
        ],
        dtype=np.float32,
    )


def _middle(low: RiskEstimate, high: RiskEstimate) -> tuple[float, float]:
    return (low.logit + high.logit) / 2, (high.logit - low.logit) / 2


def table_rows(records: Sequence[ClinicalRecord], nodules: Sequence[NoduleFacts | None]) -> Floats:
    """`encode_table` of many records, float32, shape (n, len(`TABLE`))."""
    return np.stack([encode_table(*pair) for pair in zip(records, nodules, strict=True)])


def nodule_facts(finding: Finding, count: int) -> NoduleFacts:
    """What Brock's model asks, as far as a finding answers it."""
    lobe = finding.site.lobe
    return NoduleFacts(
        finding.measurements.long_axis_mm,
        count,
        finding.attenuation,
        None if lobe is None else lobe is Lobe.UPPER,
    )
