"""The comparison of a case with an earlier examination: load that, know what was on it, compare.

Whatever goes wrong here ends as a sentence in the result: the study is analysed all the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread

from dicom_sr.earlier import read_findings
from inference.analyse import analyse, second_look
from inference.decode import MALFORMED_FILE
from inference.errors import UnsuitableSeriesError
from inference.headers import examination_day
from inference.load import LoadedSeries
from inference.priors import Look, PriorExamination, compare, keep_tracking
from inference.registry import Pipeline
from inference.same_patient import Identity, differing
from inference.types import Comparison, Finding, Result, Volume
from pacs_node.errors import NodeError
from pacs_node.reader import Reader
from pacs_node.request import CaseRequest, KeptResult, PriorFiles

logger = logging.getLogger(__name__)

Stage = Callable[[str], AbstractContextManager[None]]

#: what numerical code, a library or a file of ours may raise here
_FAILURES = (*MALFORMED_FILE, ArithmeticError, MemoryError, NodeError, OSError, RuntimeError)


class _Refused(Exception):  # noqa: N818 - no error: the examination is left out
    """The examination can't be used; the text is a clause for the reader."""


class Kept(NamedTuple):
    """What was found on an earlier examination then, and by which pipeline."""

    findings: tuple[Finding, ...]
    pipeline_version: str


@dataclass(frozen=True, slots=True)
class Compared:
    """A result after its comparison.

    Parameters
    ----------
    result
        With the comparison, the tracking UIDs that findings had before, and warnings.
    prior
        Voxels of the examination that it was compared with; None where there is none.
    """

    result: Result
    prior: Volume | None = None


def compared(
    request: CaseRequest,
    loaded: LoadedSeries,
    result: Result,
    pipeline: Pipeline,
    *,
    reader: Reader,
    stage: Stage,
) -> Compared:
    """Compare with the first of the request's earlier examinations that can be compared.

    Parameters
    ----------
    loaded, result
        The examination, and what was found on it.
    stage
        Measures and tells each step by its name.
    """
    notes, last = [], Compared(result)
    for files in request.priors:
        try:
            prior = _examination(request, files, loaded, pipeline, reader=reader, stage=stage)
            with stage("compare with prior"):
                found = _compared(loaded, result, prior, look=second_look(pipeline, device=request.device))
        except _Refused as error:
            notes.append(_note(files, str(error)))
        except UnsuitableSeriesError as error:
            notes.append(_note(files, error.sentence.rstrip(".")))
        except _FAILURES as error:
            logger.exception("the comparison with an earlier examination failed")
            notes.append(_note(files, f"the comparison failed ({type(error).__name__})"))
        else:
            last = found if last.prior is None else last
            if found.result.comparison is not None and found.result.comparison.reason is None:
                last = found
                break
    return replace(last, result=replace(last.result, warnings=(*last.result.warnings, *notes)))


def _note(files: PriorFiles, clause: str) -> str:
    return f"The CT of {files.examined_on.isoformat()} ({files.source}) was not compared: {clause}."


def _examination(
    request: CaseRequest,
    files: PriorFiles,
    loaded: LoadedSeries,
    pipeline: Pipeline,
    *,
    reader: Reader,
    stage: Stage,
) -> PriorExamination:
    """Load it, and know what is on it: as was found then, else as the same pipeline finds now."""
    with stage("load prior"):
        then = reader.load(files.files)
    if clause := differing(Identity.of(loaded.headers[0]), Identity.of(then.headers[0])):
        raise _Refused(f"it has {clause}")
    kept = None
    if files.result is not None:
        with stage("read prior result"):
            kept = _kept(then.volume, files.result)
    if kept is not None and kept.pipeline_version == pipeline.version:
        findings = kept.findings
    else:
        with stage("analyse prior"):
            found = analyse(
                then.volume, pipeline, input_digest=files.input_digest, device=request.device
            ).findings
        findings = found if kept is None else tracked_as_before(found, kept.findings)
    return PriorExamination(
        then.volume.study_uid, then.volume.series_uid, files.examined_on, then.volume, findings
    )


def _kept(volume: Volume, files: KeptResult) -> Kept | None:
    """Read the node's own result again; None where it can't be used, so that the images speak."""
    try:
        summary = json.loads(files.summary.read_text(encoding="utf-8"))
        seg = None if files.seg is None else dcmread(files.seg)
        return Kept(read_findings(volume, summary, seg), str(summary["provenance"]["pipeline_version"]))
    except _FAILURES:
        logger.warning("an earlier result can't be read again", exc_info=True)
        return None


def tracked_as_before(found: Sequence[Finding], before: Sequence[Finding]) -> tuple[Finding, ...]:
    """Give findings the tracking UIDs of those that another pipeline marked at the same voxels.

    Sizes of two pipelines can't be compared, so an examination that another one has read is measured anew;
    the lesions stay the same ones. Each UID is given once, to the largest overlap.
    """
    shared = sorted(
        (
            (count, new, old)
            for new, one in enumerate(found)
            for old, other in enumerate(before)
            if (count := _shared_voxels(one, other))
        ),
        key=lambda row: (-row[0], row[1], row[2]),
    )
    taken: dict[int, int] = {}
    for _, new, old in shared:
        if new not in taken and old not in taken.values():
            taken[new] = old
    return tuple(
        replace(one, tracking_uid=before[taken[number]].tracking_uid) if number in taken else one
        for number, one in enumerate(found)
    )


def _shared_voxels(one: Finding, other: Finding) -> int:
    first = np.maximum(one.origin, other.origin)
    last = np.minimum(np.add(one.origin, one.mask.shape), np.add(other.origin, other.mask.shape))
    if (last <= first).any():
        return 0

    def inside(finding: Finding) -> NDArray[np.bool_]:
        corner = zip(first - finding.origin, last - finding.origin, strict=True)
        return np.asarray(finding.mask[tuple(slice(a, b) for a, b in corner)])

    return int((inside(one) & inside(other)).sum())


def _compared(loaded: LoadedSeries, result: Result, prior: PriorExamination, look: Look) -> Compared:
    day = examination_day(loaded.headers[0])
    if day is None:
        raise _Refused("these images have no study date")
    comparison: Comparison = compare(loaded.volume, result.findings, day, prior, look=look)
    findings = keep_tracking(result.findings, comparison)
    return Compared(replace(result, findings=findings, comparison=comparison), prior.volume)
