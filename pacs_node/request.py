"""What a worker asks of an engine and what it gets; light, so that only the engine's process loads torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import NamedTuple, cast

from dicom_sr.context import OtherSeries, Predecessor
from dicom_sr.profiles import STANDARD
from inference.errors import ReasonCode
from inference.record import RecordReading
from inference.record_person import SourcedRecord


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the series is not to be analysed: only the report that says so is made."""

    code: ReasonCode
    sentence: str


class Receiver(NamedTuple):
    """A destination, its profile and the forms of a result that it gets; see `dicom_sr.profiles`.

    `told_why` is false where it gets no report if the study isn't analysed.
    """

    name: str
    profile: str
    forms: tuple[str, ...]
    told_why: bool = True


@dataclass(frozen=True, slots=True)
class KeptResult:
    """What the node found on an earlier examination, from its own files.

    Parameters
    ----------
    summary, seg
        ``result.json``, and the SEG with the masks; None where nothing was found, or none was made.
    """

    summary: Path
    seg: Path | None


@dataclass(frozen=True, slots=True)
class PriorFiles:
    """An earlier examination to compare with.

    Parameters
    ----------
    files
        The instances of its series.
    examined_on
        Its day, before that of the images that are analysed.
    source
        Whence it is, for a reader: ``this node``, the name of the archive, or a folder.
    input_digest
        Identifies the instances as it would if they were analysed themselves, so that findings made now have
        the tracking UIDs that they would have had then.
    result
        What the node found on it then, None where nothing is kept: then it is analysed now.
    """

    files: tuple[Path, ...]
    study_uid: str
    series_uid: str
    examined_on: date
    source: str
    input_digest: str
    result: KeptResult | None = None


@dataclass(frozen=True, slots=True)
class CaseRequest:
    """What to analyse and what the result must say about it.

    Parameters
    ----------
    files
        The instances of the series.
    out_dir
        Where results go; made if absent.
    input_digest
        Identifies the instances.
    created_at
        The time in all results, so that a repeated attempt makes the same bytes.
    refusal
        Make only the "not analysed" report.
    last_resort
        False: if the pixels turn out unsuitable another series will be tried, so make no report.
    identity
        Keyword -> value of what the node knows of the series, for the report of files that can't be read.
    record
        The clinical record from a file, None without one. What the images' headers say fills its gaps.
    told
        What other systems told of the patient, in the order in which they count; used only where it is of the
        patient of the images.
    forms
        Objects to make, each in its encoding.
    receivers
        Whom they are for; the result names them.
    priors
        Earlier examinations of the patient, the one to compare with first; the next ones where it can't be
        compared.
    no_prior
        What was asked for earlier examinations and has none of this patient; empty where nobody could say so.
    baseline
        Whether an examination of which no earlier one is known counts as the first screening examination.
    confined
        Whether the files are opened in a child of their own; see `pacs_node.reader`.
    notes
        Sentences for a result that is made: what else its reader must know of the images.
    screening
        Whether it is a screening examination by the site's word; None to decide by the images' headers.
    wording
        Table of the report's sentences in another language, None for English.
    report_template
        The site's template of the draft narrative, None for the built-in one.
    """

    files: tuple[Path, ...]
    out_dir: Path
    profile: str
    device: str
    input_digest: str
    created_at: datetime
    identity: dict[str, str]
    refusal: Refusal | None = None
    last_resort: bool = True
    #: part of the UIDs where a repetition isn't the same result
    uid_salt: str = ""
    predecessors: tuple[Predecessor, ...] = ()
    other_series: tuple[OtherSeries, ...] = ()
    record: RecordReading | None = None
    told: tuple[SourcedRecord, ...] = ()
    priors: tuple[PriorFiles, ...] = ()
    no_prior: str = ""
    #: folder of ``pacs-node models``, for the profile ``full``
    models: Path | None = None
    forms: tuple[str, ...] = STANDARD
    receivers: tuple[Receiver, ...] = ()
    notes: tuple[str, ...] = ()
    wording: Path | None = None
    report_template: Path | None = None
    confined: bool = False
    screening: bool | None = None
    baseline: bool = False

    def with_refusal(self, refusal: Refusal) -> CaseRequest:
        """Return the same request, but for the report only."""
        return replace(self, refusal=refusal)


@dataclass(frozen=True, slots=True)
class CaseFile:
    """A file of the result; kind is seg, sr, sc, pdf, json, html or png."""

    kind: str
    path: Path
    sha256: str
    sop_instance_uid: str | None = None
    sop_class_uid: str | None = None
    series_uid: str | None = None
    #: what differs from the standard form of an object; empty for that one
    encoding: str = ""


@dataclass(frozen=True, slots=True)
class CaseOutcome:
    """What came of a request; `status` is ``analysed`` or ``not_analysed``."""

    status: str
    files: tuple[CaseFile, ...]
    reason_code: str | None = None
    reason: str | None = None
    n_findings: int = 0


def run_case(request: CaseRequest) -> CaseOutcome:
    """Run `pacs_node.case.run_case`; it is imported where this is called, in the engine's process."""
    return cast(CaseOutcome, importlib.import_module("pacs_node.case").run_case(request))
