"""``pacs-node demo`` and ``pacs-node analyze`` as a newcomer runs them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage

from inference.phantom import write_phantom
from pacs_node.cli import main
from tests.acceptance.node import small_phantom
from tests.ct_factory import make_ct_series, write_series
from tests.nbia import Nbia, offer
from tests.serving import serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_phantom(small_phantom(7), tmp_path_factory.mktemp("phantom"))


@pytest.fixture
def nbia(files: list[Path]) -> Iterator[Nbia]:
    with serving(Nbia()) as server:
        offer(server, [path.read_bytes() for path in files])
        yield server


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pacs_node.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def invoke(*arguments: str) -> Result:
    """The same in this process, for what is over at once."""
    return CliRunner().invoke(main, list(arguments))


def check_results(out: Path) -> None:
    assert dcmread(out / "seg.dcm").SOPClassUID == SegmentationStorage
    assert dcmread(out / "sr.dcm").SOPClassUID == Comprehensive3DSRStorage
    summary = json.loads((out / "result.json").read_text())
    assert summary["status"] == "analysed"
    assert summary["findings"]
    assert "not for primary diagnosis" in summary["notice"]
    page = (out / "report.html").read_text()
    assert "SYNTHETIC" in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert list(out.glob("nodule-*.png"))


def test_demo_with_a_series_of_tcia(nbia: Nbia, files: list[Path], tmp_path: Path) -> None:
    uid = str(dcmread(files[0], stop_before_pixels=True).SeriesInstanceUID)
    out = tmp_path / "out"
    done = run("demo", "--ct", f"tcia:{uid}", "--tcia-url", nbia.url, "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    check_results(out)
    assert "Came back to the peer" in done.stdout
    assert "not for primary diagnosis" in done.stdout
    again = invoke("demo", "--ct", "tcia:1.2.3", "--tcia-url", nbia.url, "--out", str(out))
    assert (again.exit_code, again.exc_info[0] if again.exc_info else None) == (5, SystemExit)


def test_demo_with_an_unsuitable_folder(tmp_path: Path) -> None:
    write_series(make_ct_series(5), tmp_path / "ct")
    out = tmp_path / "out"
    done = run("demo", "--ct", str(tmp_path / "ct"), "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TOO_FEW_SLICES" in done.stdout
    assert not (out / "seg.dcm").exists()
    assert dcmread(out / "sr.dcm").SOPClassUID == Comprehensive3DSRStorage


def test_a_killed_demo_leaves_no_node_behind(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pacs_node.cli", "demo", "--ct", str(files[0].parent), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as demo:
        until(lambda: _is_served(out), "its node runs")
        demo.kill()
    until(lambda: not _is_served(out), "its node is gone")


def _is_served(out: Path) -> bool:
    lock = out / "node" / "pacs-node-data" / "serve.lock"
    if not lock.exists():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_demo_refuses_a_folder_with_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert invoke("demo", "--out", str(tmp_path)).exit_code == 5
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_analyze(files: list[Path], tmp_path: Path) -> None:
    done = run("analyze", str(files[0].parent), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    check_results(tmp_path / "out")
    outputs = json.loads((tmp_path / "out" / "result.json").read_text())["outputs"]
    for output in outputs:
        content = (tmp_path / "out" / output["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == output["sha256"]


def test_analyze_takes_the_next_series_when_the_pixels_of_the_best_are_no_chest(
    files: list[Path], tmp_path: Path
) -> None:
    chest = [dcmread(path) for path in files]
    # air and water in slabs: passes every look at the headers and at the values, and has no lungs
    slices, rows = len(files), int(chest[0].Rows)
    slab = make_ct_series(
        4 * slices,
        matrix=rows,
        hu=_slabs(4 * slices, rows),
        pixel_spacing_mm=(2.2, 2.2),
        spacing_mm=1.0,
        study_uid=str(chest[0].StudyInstanceUID),
        patient_id=str(chest[0].PatientID),
    )
    write_series(chest, tmp_path / "ct" / "chest")
    write_series(slab, tmp_path / "ct" / "slab")
    done = invoke("analyze", str(tmp_path / "ct"), "--out", str(tmp_path / "out"), "--profile", "classical")
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "out" / "result.json").read_text())
    assert summary["series"]["analysed"]["series_uid"] == str(chest[0].SeriesInstanceUID)
    (refused,) = summary["series"]["refused"]
    assert refused["code"] == "NOT_CHEST"


def _slabs(slices: int, rows: int) -> NDArray[np.int16]:
    hu = np.full((slices, rows, rows), -1000, dtype=np.int16)
    hu[:, rows // 2 :] = 40
    return hu


def test_analyze_says_why_not(tmp_path: Path) -> None:
    write_series(make_ct_series(60, spacing_mm=8.0, thickness_mm=8.0), tmp_path / "ct")
    done = invoke("analyze", str(tmp_path / "ct"), "--out", str(tmp_path / "out"))
    assert done.exit_code == 3, done.output
    assert "TOO_THICK" in done.stdout
    summary = json.loads((tmp_path / "out" / "result.json").read_text())
    assert summary["reason"]["code"] == "TOO_THICK"
    assert dcmread(tmp_path / "out" / "sr.dcm").SOPClassUID == Comprehensive3DSRStorage


def test_analyze_without_dicom(tmp_path: Path) -> None:
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "notes.txt").write_text("no image")
    assert invoke("analyze", str(tmp_path / "ct"), "--out", str(tmp_path / "out")).exit_code == 4
    assert invoke("analyze", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")).exit_code == 2
