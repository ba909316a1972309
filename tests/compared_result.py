"""A result with four findings that is compared with a prior examination, as both sides of a report get it."""

from __future__ import annotations

from tests.ct_factory import make_ct_series
from tests.finding_factory import (
    make_comparison,
    make_context,
    make_findings,
    make_result,
    make_volume,
    without_pixels,
)

SERIES = make_ct_series(16)
HEADERS = without_pixels(SERIES)
VOLUME = make_volume(SERIES)
CONTEXT = make_context()
FINDINGS = make_findings(VOLUME, 4)
COMPARISON = make_comparison(VOLUME, FINDINGS)
RESULT = make_result(VOLUME, FINDINGS, CONTEXT, comparison=COMPARISON)
