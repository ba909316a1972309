"""The node's results in OHIF, in headless Chromium: the short form of ``make conformance-viewer``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from conformance.viewer.__main__ import inspect_broken, served
from conformance.viewer.broken import BREAKAGES
from conformance.viewer.browser import chromium
from conformance.viewer.build import RegistryUnreachableError, ohif_build
from conformance.viewer.checks import Checker
from conformance.viewer.ohif import Viewer
from conformance.viewer.source import Source, analyse_phantom, compare_with_drawing, viewer_phantom
from conformance.viewer.study import Study
from tests.peers import Orthanc

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.peer("orthanc", "orthanc-dicomweb", "chromium", "npm"),
]

PATIENCE_S = 120.0


@dataclass(frozen=True)
class Bench:
    """A study in an archive, with the viewer before it."""

    source: Source
    study: Study
    archive: Orthanc
    viewer: Viewer

    @property
    def checker(self) -> Checker:
        return Checker(self.viewer, self.study, lambda name, picture: None, limit=1)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    try:
        ohif_build()
    except RegistryUnreachableError as error:
        pytest.skip(f"OHIF's build is not here and can't be fetched: {error}")
    directory = tmp_path_factory.mktemp("viewer")
    phantom = viewer_phantom()
    source = analyse_phantom(phantom, directory, options=("--profile", "classical"))
    study = source.read()
    assert compare_with_drawing(study, phantom) >= 3
    with (
        served(source, directory / "orthanc") as (archive, address),
        chromium(directory, patience_s=PATIENCE_S) as page,
    ):
        yield Bench(source, study, archive, Viewer(page, address))


def test_the_results_are_shown(bench: Bench) -> None:
    assert bench.checker.check_list() == "CT, SEG and SR are listed"
    assert "1 seen in their place" in bench.checker.check_segmentation()
    assert "1 marked on their slice" in bench.checker.check_report()


def test_a_broken_result_is_noticed(bench: Bench) -> None:
    mirrored = next(breakage for breakage in BREAKAGES if breakage.name == "mirrored mask")
    noticed, words = inspect_broken(bench.checker, bench.source, bench.archive, mirrored)
    assert noticed, words
