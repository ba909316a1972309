"""How long SEG and report take, and how much memory: ``python -m tests.benchmarks.results``.

A synthetic CT of 300 slices of 512 x 512 with ten nodules of 14 mm that trained models have read. Ours beside
a plain highdicom call on the whole series, in turns in one process: medians of wall clock and of CPU time.
Memory is the peak of a fresh process for each, with Python and its libraries but without the voxels of the CT
(zero pages), which either way are there before the results are built.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from rich.console import Console
from rich.table import Table

from dicom_sr.codes import FEATURES, MORPHOLOGICALLY_ABNORMAL, NODULE, algorithm_family
from dicom_sr.context import ResultContext
from dicom_sr.part10 import encode
from dicom_sr.report import build_report
from dicom_sr.seg import build_seg
from inference.types import Descriptor, Finding, Malignancy, Result, SemanticFeature, SourceFrame, Volume
from tests.ct_factory import make_ct_series
from tests.finding_factory import TRAINED, UNTRAINED, make_context, make_finding, make_result, without_pixels

SLICES, MATRIX, NODULES = 300, 512, 10
SPACING_MM = (1.0, 0.7, 0.7)
RADIUS_MM = 7.0
LIMIT_S, LIMIT_MB = 1.0, 300


@dataclass(frozen=True)
class Job:
    """What is built, and of what."""

    volume: Volume
    headers: list[Dataset]
    context: ResultContext
    result: Result


def make_job() -> Job:
    """The CT's headers, its findings and their context; deterministic."""
    headers = without_pixels(
        make_ct_series(SLICES, matrix=8, pixel_spacing_mm=SPACING_MM[1:], spacing_mm=SPACING_MM[0])
    )
    for header in headers:
        header.Rows = header.Columns = MATRIX
    first = headers[0]
    affine = np.diag([*SPACING_MM, 1.0])[[2, 1, 0, 3]]
    affine[:3, 3] = [float(v) for v in first.ImagePositionPatient]
    volume = Volume(
        np.zeros((SLICES, MATRIX, MATRIX), np.int16),
        affine,
        str(first.FrameOfReferenceUID),
        str(first.StudyInstanceUID),
        str(first.SeriesInstanceUID),
        tuple(SourceFrame(str(h.SOPClassUID), str(h.SOPInstanceUID)) for h in headers),
        SPACING_MM[0],
    )
    context = make_context(cards=(UNTRAINED, TRAINED))
    findings = tuple(_nodule(volume, number) for number in range(NODULES))
    return Job(volume, headers, context, make_result(volume, findings, context))


def _nodule(volume: Volume, number: int) -> Finding:
    reach = [int(RADIUS_MM / step) + 1 for step in SPACING_MM]
    index = np.indices([2 * n + 1 for n in reach]) - np.array(reach)[:, None, None, None]
    ball = sum((axis * step) ** 2 for axis, step in zip(index, SPACING_MM, strict=True)) <= RADIUS_MM**2
    origin = (15 + 27 * number, 90 + 25 * number, 150 + 20 * number)
    middle = tuple(float(start + n) for start, n in zip(origin, reach, strict=True))
    return replace(
        make_finding(volume, origin, name=f"N{number + 1}", mask=np.asarray(ball)),
        key_slice=int(middle[0]),
        key_point=(middle[1], middle[2]),
        malignancy=Malignancy(0.3, 0.4),
        features=tuple(SemanticFeature(name, 3, 0.7) for name in FEATURES),
        descriptors=(
            Descriptor("pleural attachment", 0.2, "1", "pleura"),
            Descriptor("distance to the pleura", 7.3, "mm", "pleura"),
        ),
    )


def ours(job: Job) -> dict[str, Callable[[], object]]:
    """The steps of a result in their order."""
    made: dict[str, Dataset] = {}

    def seg() -> None:
        made["seg"] = build_seg(job.volume, job.result.findings, job.headers, job.context)

    def report() -> None:
        made["sr"] = build_report(job.volume, job.result, made["seg"], job.headers, job.context)

    def encoded() -> None:
        for one in made.values():
            encode(one)

    return {"SEG": seg, "report": report, "both to bytes": encoded}


def plain_highdicom(job: Job) -> None:
    """One call with all source images and a label map of the whole series."""
    labels: NDArray[np.uint8] = np.zeros(job.volume.array.shape, np.uint8)
    for number, finding in enumerate(job.result.findings, start=1):
        labels[finding.slices()][finding.mask] = number
    algorithm = hd.AlgorithmIdentificationSequence(
        name=job.context.manufacturer_model_name,
        family=algorithm_family(job.context.cards),
        version=job.context.pipeline_version,
    )
    hd.seg.Segmentation(
        source_images=job.headers,
        pixel_array=labels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=finding.tracking_id,
                segmented_property_category=MORPHOLOGICALLY_ABNORMAL,
                segmented_property_type=NODULE,
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                tracking_uid=finding.tracking_uid,
                tracking_id=finding.tracking_id,
            )
            for number, finding in enumerate(job.result.findings, start=1)
        ],
        series_instance_uid=hd.UID(),
        series_number=1001,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=job.context.manufacturer,
        manufacturer_model_name=job.context.manufacturer_model_name,
        software_versions=job.context.software_version,
        device_serial_number="1",
    )


Times = dict[str, tuple[float, float]]


def measure(rounds: int) -> Times:
    """Median seconds of wall clock and CPU by step, all in turns, after one round that isn't measured."""
    job = make_job()
    steps: dict[str, Callable[[], object]] = {
        **ours(job),
        "plain highdicom, SEG": lambda: plain_highdicom(job),
    }
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            if number:
                seen[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: (median(w for w, _ in s), median(c for _, c in s)) for name, s in seen.items()}


def peak_mb(what: str) -> float:
    """Peak resident memory of this process after one run, MB of 2**20 bytes (Linux only).

    Not by ``getrusage``: that begins with the peak of the process that started this one.
    """
    job = make_job()
    if what == "ours":
        for step in ours(job).values():
            step()
    elif what == "highdicom":
        plain_highdicom(job)
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))


def peak_in_fresh_process(what: str) -> float:
    """`peak_mb` of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.results", "--peak", what],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    return float(done.stdout)


def main() -> int:
    """Print the table; 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description="Time and memory of building SEG and report.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", choices=("nothing", "ours", "highdicom"), help="one process's peak only")
    arguments = parser.parse_args()
    if arguments.peak:
        sys.stdout.write(f"{peak_mb(arguments.peak):.1f}\n")
        return 0
    console = Console()
    times = measure(arguments.rounds)
    table = Table(
        title=f"{SLICES} slices of {MATRIX} x {MATRIX}, {NODULES} nodules, median of {arguments.rounds}"
    )
    for column in ("", "wall s", "CPU s"):
        table.add_column(column, justify="left" if not column else "right")
    built = [times[name] for name in ("SEG", "report")]
    total = tuple(sum(values) for values in zip(*built, strict=True))
    rows = {
        **{name: times[name] for name in ("SEG", "report")},
        "SEG and report built": total,
        "both to bytes": times["both to bytes"],
        "plain highdicom, SEG": times["plain highdicom, SEG"],
    }
    for name, (wall, cpu) in rows.items():
        table.add_row(name, f"{wall:.2f}", f"{cpu:.2f}")
    console.print(table)
    peaks = {what: peak_in_fresh_process(what) for what in ("nothing", "ours", "highdicom")}
    console.print(
        f"Peak memory: {peaks['ours']:.0f} MB ours, {peaks['highdicom']:.0f} MB plain highdicom, "
        f"{peaks['nothing']:.0f} MB with nothing built."
    )
    load = os.getloadavg()[0]
    console.print(f"{os.cpu_count()} cores, load {load:.1f} (others' work makes the wall clock longer).")
    return int(total[0] >= LIMIT_S or peaks["ours"] >= LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
