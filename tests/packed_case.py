"""Results in any form without a model: the packing of `pacs_node.case` over findings made here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dicom_sr.profiles import PROFILES, union
from inference.load import LoadedSeries
from inference.registry import Pipeline
from inference.types import Result
from pacs_node import case
from pacs_node.reader import OpenReader
from pacs_node.request import CaseOutcome, CaseRequest, Receiver
from tests.ct_factory import make_ct_series
from tests.finding_factory import make_findings, make_volume, without_pixels

SERIES = make_ct_series(16, matrix=64)
VOLUME, HEADERS = make_volume(SERIES), without_pixels(SERIES)
FORMS = union(profile.forms for profile in PROFILES.values())
RECEIVERS = tuple(Receiver(f"to-{name}", name, profile.forms) for name, profile in PROFILES.items())

Pack = Callable[..., CaseOutcome]


@contextmanager
def packing(directory: Path) -> Iterator[Pack]:
    """Give ``pack(forms, findings=2, **changes_of_the_request)``; each call has a folder of its own."""
    calls, found = 0, 2

    def analyse(_volume: Any, pipeline: Pipeline, **_given: Any) -> Result:
        return Result(VOLUME.series_uid, make_findings(VOLUME, found), pipeline.cards, pipeline.version)

    def pack(forms: tuple[str, ...], *, findings: int = 2, **changes: Any) -> CaseOutcome:
        nonlocal calls, found
        calls, found = calls + 1, findings
        request = CaseRequest(
            files=tuple(Path(str(number)) for number in range(len(HEADERS))),
            out_dir=directory / str(calls),
            profile="classical",
            device="cpu",
            input_digest="d1" * 32,
            created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            identity={"SeriesInstanceUID": VOLUME.series_uid},
            forms=forms,
        )
        return case.run_case(replace(request, **changes))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenReader, "load", lambda _self, _files: LoadedSeries(VOLUME, tuple(HEADERS)))
        patch.setattr(case, "analyse", analyse)
        patch.setattr(OpenReader, "readable", lambda _self, files: list(files))
        patch.setattr(case, "read_header", lambda path: HEADERS[int(path.name)])
        yield pack
