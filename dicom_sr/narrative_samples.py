"""Made-up results that show what a template makes: none, one and many nodules, and a series not analysed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_LUNG_RADS = (
    ("screening", "yes, procedure code 71271 in ProcedureCodeSequence"),
    ("lung_rads", "4A"),
    ("lung_rads_version", "2022"),
    ("lung_rads_management", "Low-dose CT in 3 months."),
)
_RECORD = (
    ("record_items_used", "age_years (Patient's Age), smoking (record.csv)"),
    ("brock_2b_of_N1", "6.1 % to 22.3 %, by what is not known"),
)


def _finding(number: int, mm: float, kind: str | None, site: str, **more: Any) -> dict[str, Any]:
    return {
        "number": number,
        "tracking_id": f"N{number}",
        "site": {"words": site},
        "attenuation": kind,
        "key_slice": {"index": 40 * number},
        "measurements": {
            "long_axis_mm": 1.1 * mm,
            "short_axis_mm": 0.9 * mm,
            "mean_diameter_mm": mm,
            "max_3d_diameter_mm": 1.2 * mm,
            "volume_mm3": 0.5236 * mm**3,
            "mean_hu": 12.3,
        },
        "detection_probability": 0.91,
        "malignancy": None,
        "features": [],
        "descriptors": [],
        **more,
    }


_FIRST = _finding(
    1,
    9.2,
    "part-solid",
    "right upper lobe",
    malignancy={"image_only": 0.424, "fused": 0.513},
    features=[
        {"name": "margin", "value": 2, "probability": 0.7},
        {"name": "spiculation", "value": 4, "probability": 0.6},
        {"name": "lobular_pattern", "value": 1, "probability": 0.8},
        {"name": "calcification", "value": 6, "probability": 0.98},
    ],
    descriptors=[
        {"name": "solid part, mean diameter", "value": 6.31},
        {"name": "pleural attachment", "value": 0.03},
    ],
)
_SECOND = _finding(2, 5.1, "solid", "left lower lobe", malignancy={"image_only": 0.12, "fused": None})
_THIRD = _finding(3, 34.0, None, "right lung", descriptors=[{"name": "pleural attachment", "value": 0.9}])


def _sample(
    findings: tuple[dict[str, Any], ...],
    observations: tuple[tuple[str, str], ...],
    **more: Any,
) -> dict[str, Any]:
    return {
        "status": "analysed",
        "reason": None,
        "series": {
            "analysed": {
                "shape": [301, 512, 512],
                "spacing_mm": [1.25, 0.703, 0.703],
                "slice_thickness_mm": 1.25,
                "kernel": "B50f",
                "scanner": "Example CT",
            }
        },
        "findings": list(findings),
        "observations": [{"name": name, "value": value} for name, value in observations],
        "warnings": [],
        "provenance": {"algorithm": "pacs-node chest CT nodules", "pipeline_version": "sample"},
        **more,
    }


SAMPLES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "no nodule, first screening": _sample(
            (),
            (
                ("screening", "yes, as the settings or the command say"),
                ("lung_rads", "1"),
                ("lung_rads_version", "2022"),
            ),
        ),
        "one nodule, with a record": _sample((_FIRST,), _LUNG_RADS + _RECORD),
        "three nodules, not screening, compared": _sample(
            (
                {**_FIRST, "comparison": {"sentence": "Since 2025-01-20: growing."}},
                _SECOND,
                _THIRD,
            ),
            (
                ("screening", "no, procedure code 71250 in ProcedureCodeSequence"),
                (
                    "lung_rads_undetermined",
                    "Lung-RADS v2022 cannot be determined: not a screening examination.",
                ),
                ("fleischner_2017", "single solid nodule, below 6 mm, high risk. Optional CT at 12 months"),
                ("motion_blur", "present"),
            ),
            warnings=["Slices are 3 mm thick: small nodules can be missed."],
            comparison={
                "sentences": ["Compared with the examination of 2025-01-20."],
                "impression": ["N1 has grown since 2025-01-20."],
            },
        ),
        "one nodule, nothing known": _sample(
            (_SECOND,),
            (
                ("screening", "not known, no attribute of the images says"),
                (
                    "lung_rads_undetermined",
                    (
                        "Lung-RADS v2022 cannot be determined. Not known: whether this is a screening "
                        "examination."
                    ),
                ),
                ("lung_rads_if", "If this is a first screening examination: 2 (N2)."),
            ),
        ),
        "not analysed": _sample(
            (),
            (),
            status="not_analysed",
            reason={
                "code": "TOO_THICK",
                "sentence": "Its slices are 8 mm thick: only up to 5 mm are analysed.",
            },
            series={"analysed": None},
        ),
    }
)
"""By what they show, as far as `dicom_sr.narrative.compose` reads a result."""
