"""The structured report of a result: TID 1500 (PS3.16 A) in Comprehensive 3D SR (PS3.3 A.35.13).

A series that could not be analysed gets a report too, with the reason as code and as text: a reader must
never take silence for "nothing found".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum

import highdicom as hd
from highdicom.sr import CodeContentItem, ContainerContentItem, ContentSequence
from highdicom.sr import RelationshipTypeValues as Relation
from pydicom import Dataset
from pydicom.uid import UID, Comprehensive3DSRStorage, EnhancedSRStorage

from dicom_sr import codes, content, evaluations
from dicom_sr.comparison import compared, since_prior, study_items
from dicom_sr.conclusion import (
    card_sentences,
    no_nodule_sentence,
    not_analysed_sentence,
    not_analysed_sentences,
    opening,
    result_sentences,
)
from dicom_sr.context import ResultContext
from dicom_sr.header import (
    coding_schemes,
    contributing_equipment,
    finish,
    hierarchical_references,
    instance_ids,
    nodule_segments,
    stamp,
)
from dicom_sr.narrative import Narrative
from dicom_sr.narrative_sr import section_items
from dicom_sr.part10 import save
from dicom_sr.source import patient_and_study
from dicom_sr.template import BUILT_IN
from dicom_sr.wording import ENGLISH, ENGLISH_CODE
from inference.errors import ReasonCode
from inference.types import Result, Volume

__all__ = ["build_not_analysed_report", "build_report", "save"]

DESCRIPTION = "Automatic lung nodule report (research use only)"
NOT_ANALYSED_DESCRIPTION = "Not analysed (research use only)"
_STRUCTURED_REPORT_CLASSES = "1.2.840.10008.5.1.4.1.1.88."


class ReportClass(StrEnum):
    """SOP class of the report; the content is the same, as nothing in it needs more than Enhanced SR."""

    COMPREHENSIVE_3D = "comprehensive-3d"
    ENHANCED = "enhanced"

    @property
    def uid(self) -> UID:
        """Its SOP Class UID."""
        return EnhancedSRStorage if self is ReportClass.ENHANCED else Comprehensive3DSRStorage


def build_report(
    volume: Volume,
    result: Result,
    seg: Dataset | None,
    headers: Sequence[Dataset],
    context: ResultContext,
    *,
    report_class: ReportClass = ReportClass.COMPREHENSIVE_3D,
    narrative: Narrative | None = None,
) -> Dataset:
    """Build the report of an analysed series.

    Parameters
    ----------
    seg
        The SEG of the same findings in the same order; None exactly where there are none.
    headers
        The source images without pixel data.
    report_class
        Another one is another document, with UIDs of its own, as is a report on another form of the SEG.
    narrative
        The draft of this result, made with the template of the context.

    Returns
    -------
    Dataset
        SR, COMPLETE and UNVERIFIED, with file meta information.

    Raises
    ------
    ValueError
        SEG and findings don't belong together, or result and context differ in series, version or models.
    """
    _check(volume, result, seg, context)
    root = _root(headers, context)
    if seg is not None:
        groups = [
            group
            for number, finding in enumerate(result.findings, start=1)
            for group in content.nodule_groups(
                volume, finding, number, seg, context, since=since_prior(compared(result), finding)
            )
        ]
        root.ContentSequence.append(content.measurements_container(groups))
    root.ContentSequence.append(_study_level(volume, result, context))
    root.ContentSequence.extend(section_items(narrative) if narrative is not None else ())
    root.ContentSequence.append(_conclusion(result_sentences(result, context), context))
    evidence = [*headers] if seg is None else [*headers, seg]
    role = _role(volume, seg, context)
    return _document(root, evidence, context, report_class, role=role, description=DESCRIPTION, complete=True)


def build_not_analysed_report(
    headers: Sequence[Dataset],
    reason_code: ReasonCode | str,
    sentence: str,
    context: ResultContext,
    *,
    report_class: ReportClass = ReportClass.COMPREHENSIVE_3D,
    narrative: Narrative | None = None,
) -> Dataset:
    """Build the report that says why a series was not analysed.

    Parameters
    ----------
    headers
        Headers of the series, of any modality and SOP class; at least one. Missing patient attributes
        stay empty.
    reason_code, sentence
        Why; the sentence is for a person and ends with a full stop.
    narrative
        The draft that says so.

    Returns
    -------
    Dataset
        SR, PARTIAL and UNVERIFIED, with file meta information.

    Raises
    ------
    ValueError
        No header, an unknown reason code, or no Study or Series Instance UID.
    """
    if not headers:
        raise ValueError("a report needs at least one header of the series")
    if not headers[0].get("SeriesInstanceUID"):
        raise ValueError("the source has no Series Instance UID")
    reason = ReasonCode(reason_code)
    root = _root(headers, context)
    rows = [*evaluations.not_analysed_rows(reason), *evaluations.provenance_rows(context)]
    comments = [
        opening("automatic_message", context.wording),
        not_analysed_sentence(reason, sentence, context.wording),
    ]
    root.ContentSequence.append(evaluations.container(rows, comments, context.wording))
    root.ContentSequence.extend(section_items(narrative) if narrative is not None else ())
    root.ContentSequence.append(_conclusion(not_analysed_sentences(reason, sentence, context), context))
    return _document(
        root,
        headers,
        context,
        report_class,
        # another sentence is another document
        role=f"sr-not-analysed-{reason}-{sentence}",
        description=NOT_ANALYSED_DESCRIPTION,
        complete=False,
    )


def _role(volume: Volume, seg: Dataset | None, context: ResultContext) -> str:
    """A report that refers to another form of the SEG is another document."""
    usual = context.uid(volume.series_uid, "seg")
    return "sr" if seg is None or usual == seg.SOPInstanceUID else f"sr-of-{seg.SOPInstanceUID}"


def _check(volume: Volume, result: Result, seg: Dataset | None, context: ResultContext) -> None:
    if result.series_uid != volume.series_uid:
        raise ValueError("result and volume are of different series")
    if (result.pipeline_version, result.cards) != (context.pipeline_version, context.cards):
        raise ValueError("result and context name different pipeline versions or models")
    if (seg is None) != (not result.findings):
        raise ValueError("a SEG belongs to a result with findings, and only to one")
    if seg is not None and [s.TrackingUID for s in nodule_segments(seg)] != [
        f.tracking_uid for f in result.findings
    ]:
        raise ValueError("the segments aren't the findings of the result in their order")


def _root(headers: Sequence[Dataset], context: ResultContext) -> ContainerContentItem:
    """TID 1500 up to the image library: language, observer, procedure, images."""
    root = ContainerContentItem(codes.REPORT_TITLE, template_id="1500")
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=context.device_uid,
        name=context.manufacturer_model_name,
        manufacturer_name=context.manufacturer,
        model_name=context.manufacturer_model_name,
        serial_number=context.device_serial_number,
    )
    observer = hd.sr.ObserverContext(
        observer_type=hd.sr.CodedConcept("121007", "DCM", "Device"), observer_identifying_attributes=device
    )
    procedure = codes.PROCEDURES.get(str(headers[0].get("Modality") or ""), codes.IMAGING_PROCEDURE)
    root.ContentSequence = ContentSequence()
    root.ContentSequence.extend(
        hd.sr.LanguageOfContentItemAndDescendants(hd.sr.CodedConcept.from_code(ENGLISH_CODE))
    )
    root.ContentSequence.extend(hd.sr.ObservationContext(observer_device_context=observer))
    root.ContentSequence.append(
        CodeContentItem(
            hd.sr.CodedConcept("121058", "DCM", "Procedure reported"), procedure, Relation.HAS_CONCEPT_MOD
        )
    )
    if (library := content.image_library(headers)) is not None:
        root.ContentSequence.append(library)
    return root


def _study_level(volume: Volume, result: Result, context: ResultContext) -> ContainerContentItem:
    wording = context.wording
    rows = [
        *evaluations.study_rows(volume, result, wording),
        *evaluations.provenance_rows(context),
    ]
    comments = [opening("automatic_result", wording)]
    comments += [] if result.findings else [no_nodule_sentence(result.cards, wording)]
    comments += [wording.say("warning", text=warning) for warning in result.warnings]
    said = [*comments, *card_sentences(result.cards)]
    return evaluations.container(rows, said, wording, study_items(result.comparison))


def _conclusion(sentences: Sequence[str], context: ResultContext) -> Dataset:
    item: Dataset = content.text(codes.CONCLUSION, "\r\n".join(sentences), context.wording)
    return item


def _differences(context: ResultContext, report_class: ReportClass) -> Iterator[str]:
    """What makes it another document than the usual one, and so must change its UIDs."""
    if report_class is not ReportClass.COMPREHENSIVE_3D:
        yield str(report_class)
    if context.wording != ENGLISH:
        yield context.wording.digest
    if context.template != BUILT_IN:
        yield context.template.digest
    if not context.preliminary:
        yield "final"


def _document(
    root: ContainerContentItem,
    evidence: Sequence[Dataset],
    context: ResultContext,
    report_class: ReportClass,
    *,
    role: str,
    description: str,
    complete: bool,
) -> Dataset:
    """Put the content tree into an SR document about the series of ``evidence[0]``."""
    source = evidence[0]
    series_uid = str(source.SeriesInstanceUID)
    role = "-".join([role, *_differences(context, report_class)])
    out = Dataset()
    out.SOPClassUID = report_class.uid
    out.SOPInstanceUID = context.uid(series_uid, role)
    out.SeriesInstanceUID = context.uid(series_uid, f"{role}-series")
    out.SeriesNumber = context.series_numbers.sr
    out.InstanceNumber = 1
    out.Modality = "SR"
    out.SeriesDescription = description
    out.update(patient_and_study(source))
    stamp(out, context)
    out.ContributingEquipmentSequence = contributing_equipment(source, context)
    out.CompletionFlag = "COMPLETE" if complete else "PARTIAL"
    out.VerificationFlag = "UNVERIFIED"
    out.PreliminaryFlag = "PRELIMINARY" if context.preliminary else "FINAL"
    out.PerformedProcedureCodeSequence = []
    out.ReferencedPerformedProcedureStepSequence = []
    current = [i for i in instance_ids(evidence) if i[0] == out.StudyInstanceUID]
    other = [i for i in instance_ids(evidence) if i[0] != out.StudyInstanceUID]
    out.CurrentRequestedProcedureEvidenceSequence = hierarchical_references(current)
    if other:
        out.PertinentOtherEvidenceSequence = hierarchical_references(other)
    earlier = [p for p in context.predecessors if p.sop_class_uid.startswith(_STRUCTURED_REPORT_CLASSES)]
    if earlier:
        out.PredecessorDocumentsSequence = hierarchical_references(earlier)
    out.update({element.tag: element for element in root})
    if schemes := coding_schemes(out):
        out.CodingSchemeIdentificationSequence = schemes
    finish(out, source)
    return out
