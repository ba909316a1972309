"""The result for programs (``result.json``) and for people (``report.html``).

Both come from one dictionary, so they can't disagree. Its layout is `SCHEMA_VERSION`; a field is never
renamed or given another meaning without a new major number.

::

    schema_version   "1.5"
    notice           research-use sentence
    status           "analysed" | "not_analysed"
    reason           null | {code, sentence}
    patient          {id, name, birth_date, sex}                   "" where unknown
    study            {study_uid, date, description, accession_number}
    series           {analysed: null | {...}, refused: [{series_uid, modality, description, code, sentence}]}
    findings         [{number, tracking_uid, tracking_id, site, attenuation,
                       attenuation_doubt: null | {read, probability, measured, words},
                       key_slice, point_lps_mm,
                       long_axis_lps_mm, short_axis_lps_mm, measurements, detection_probability,
                       malignancy, features, descriptors: [{name, value, unit, source}], key_image,
                       stack: null | {file, rows, columns, pixel_mm, windows, key, slices},
                       comparison: null | {sentence}}]
    comparison       null | what became of it since a prior examination: `dicom_sr.compared`
    sentence_pairs   [{feature, positive: [text], negative: [text]}]  that a nodule was compared with
    observations     [{name, title, value, probability}]
    narrative        {notice, language, template, sections: [{name, heading, paragraphs: [text]}]}: a draft
    models           [{name, version, task, weights_sha256, parameters, performance, limits, ...}]
    warnings         [sentence]
    provenance       {software_version, pipeline_version, input_digest, created_at, device_uid, ...}
    outputs          [{kind, encoding, file, sop_class_uid, sop_instance_uid, series_uid, sha256}]
    recipients       [{destination, profile, files: [name]}]       what is to be sent to whom
    timings_s        {stage: seconds}

Numbers are in the unit of their name's suffix; probabilities are 0..1; LPS is the DICOM patient system.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from pydicom import Dataset
from pydicom.multival import MultiValue

from dicom_sr.codes import feature_codes, site_words
from dicom_sr.compared import comparison_json, finding_comparison
from dicom_sr.conclusion import no_nodule_sentence
from dicom_sr.context import NOT_REVIEWED, RESEARCH_USE, OtherSeries, ResultContext
from dicom_sr.evaluations import observation_title
from dicom_sr.keyimages import KeyImage
from dicom_sr.narrative import compose
from dicom_sr.pairimages import PairImages
from dicom_sr.source import readable
from dicom_sr.stacks import SliceStack
from dicom_sr.wording import said_meaning
from inference.certainty import NOT_CERTAIN, SUSPICION, SUSPICIOUS, percent
from inference.errors import ReasonCode
from inference.types import AttenuationDoubt, Finding, ModelCard, Result, Volume

SCHEMA_VERSION = "1.5"


@dataclass(frozen=True, slots=True)
class Output:
    """One written object: kind (SEG, SR, SC, PDF), file name, identity and the sha256 of its bytes.

    Parameters
    ----------
    encoding
        What differs from the standard form, as in `dicom_sr.profiles`; empty for that form.
    """

    kind: str
    file: str
    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    sha256: str
    encoding: str = ""

    @classmethod
    def of(cls, dataset: Dataset, path: Path, sha256: str) -> Output:
        """Describe `dataset` as it was written to `path`."""
        return cls(
            str(dataset.Modality),
            path.name,
            str(dataset.SOPClassUID),
            str(dataset.SOPInstanceUID),
            str(dataset.SeriesInstanceUID),
            sha256,
        )


class SentencePair(NamedTuple):
    """Sentences that exclude each other; the image's likeness to them says which holds."""

    feature: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


class Recipient(NamedTuple):
    """A destination, its profile and the names of the files that are to be sent there."""

    destination: str
    profile: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeliveryLine:
    """One line of the delivery table: where to, which object, its state, and when or why."""

    destination: str
    kind: str
    state: str
    detail: str = ""


def result_json(
    volume: Volume,
    result: Result,
    headers: Sequence[Dataset],
    context: ResultContext,
    *,
    outputs: Sequence[Output] = (),
    recipients: Sequence[Recipient] = (),
    key_images: Sequence[KeyImage] = (),
    stacks: Sequence[SliceStack] = (),
    sentence_pairs: Sequence[SentencePair] = (),
    pairs: Sequence[PairImages] = (),
    timings_s: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Describe an analysed series; see the module for the layout.

    Parameters
    ----------
    key_images, stacks
        In the order of the findings, or none.
    pairs
        Pictures of the comparison, in the order of its pairs, or none.
    sentence_pairs
        Of the model that read the features, if one did.
    timings_s
        Seconds by stage.
    """
    pictures = {image.tracking_id: image.path.name for image in key_images}
    scrolled = {stack.tracking_id: stack.describe() for stack in stacks}
    out = _base("analysed", headers, context, outputs, recipients=recipients, timings_s=timings_s)
    out["series"]["analysed"] = _analysed(volume, headers[0])
    out["findings"] = [
        _finding(volume, finding, number, pictures.get(finding.tracking_id))
        | {"stack": scrolled.get(finding.tracking_id), "comparison": finding_comparison(result, finding)}
        for number, finding in enumerate(result.findings, start=1)
    ]
    out["observations"] = [
        {**asdict(observation), "title": observation_title(observation.name)}
        for observation in result.observations
    ]
    out["comparison"] = comparison_json(result, pairs)
    out["narrative"] = compose(out, context.template).describe()
    out["warnings"] = list(result.warnings)
    out["sentence_pairs"] = [
        {"feature": row.feature, "positive": list(row.positive), "negative": list(row.negative)}
        for row in sentence_pairs
    ]
    return out


def not_analysed_json(
    headers: Sequence[Dataset],
    reason_code: ReasonCode | str,
    sentence: str,
    context: ResultContext,
    *,
    outputs: Sequence[Output] = (),
    recipients: Sequence[Recipient] = (),
    timings_s: Mapping[str, float] | None = None,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Describe a series that was not analysed; the same layout, with a reason and no findings."""
    code = str(ReasonCode(reason_code))
    out = _base("not_analysed", headers, context, outputs, recipients=recipients, timings_s=timings_s)
    out["reason"] = {"code": code, "sentence": sentence}
    out["warnings"] = list(warnings)
    header = headers[0]
    refused = OtherSeries(_text(header, "SeriesInstanceUID"), _text(header, "Modality"), code, sentence)
    if refused.series_uid not in {other.series_uid for other in context.other_series}:
        row = {**refused._asdict(), "description": _text(header, "SeriesDescription")}
        out["series"]["refused"].insert(0, row)
    out["narrative"] = compose(out, context.template).describe()
    return out


def report_html(
    summary: Mapping[str, Any],
    *,
    key_images: Sequence[KeyImage] = (),
    overview: Path | None = None,
    stacks: Sequence[SliceStack] = (),
    pairs: Sequence[PairImages] = (),
    deliveries: Sequence[DeliveryLine] = (),
) -> str:
    """Render the report page: one file that asks nothing of the network.

    Every text that came from DICOM is escaped. Pictures are embedded.

    Parameters
    ----------
    summary
        From `result_json` or `not_analysed_json`.
    stacks
        The slices of the findings, shown with their outlines.
    pairs
        Pictures of the comparison, in the order of its pairs, or none.
    """
    environment = Environment(
        loader=PackageLoader("dicom_sr"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "said": said_meaning}
    return environment.get_template("report.html").render(
        s=summary,
        suspicious=SUSPICIOUS,
        suspicion=SUSPICION,
        not_certain=NOT_CERTAIN,
        not_reviewed=NOT_REVIEWED,
        none_found=no_nodule_sentence([ModelCard(**_card(model)) for model in summary["models"]]),
        pictures=[(image, _data_uri(image.path)) for image in key_images],
        overview=_data_uri(overview) if overview else None,
        changes=[(images.caption, _data_uri(images.picture)) for images in pairs],
        slices={stack.tracking_id: (stack, _data_uri(stack.path)) for stack in stacks},
        deliveries=deliveries,
    )


def _base(
    status: str,
    headers: Sequence[Dataset],
    context: ResultContext,
    outputs: Sequence[Output],
    *,
    recipients: Sequence[Recipient],
    timings_s: Mapping[str, float] | None,
) -> dict[str, Any]:
    header = headers[0]
    return {
        "schema_version": SCHEMA_VERSION,
        "notice": RESEARCH_USE,
        "status": status,
        "reason": None,
        "patient": {
            "id": _text(header, "PatientID"),
            "name": _text(header, "PatientName"),
            "birth_date": _date(header, "PatientBirthDate"),
            "sex": _text(header, "PatientSex"),
        },
        "study": {
            "study_uid": _text(header, "StudyInstanceUID"),
            "date": _date(header, "StudyDate"),
            "description": _text(header, "StudyDescription"),
            "accession_number": _text(header, "AccessionNumber"),
        },
        "series": {
            "analysed": None,
            "refused": [{**other._asdict(), "description": ""} for other in context.other_series],
        },
        "findings": [],
        "comparison": None,
        "narrative": None,
        "observations": [],
        "sentence_pairs": [],
        "models": [{**asdict(card), "performance": list(card.performance)} for card in context.cards],
        "warnings": [],
        "provenance": {
            "manufacturer": context.manufacturer,
            "algorithm": context.manufacturer_model_name,
            "software_version": context.software_version,
            "pipeline_version": context.pipeline_version,
            "device_uid": context.device_uid,
            "input_digest": context.input_digest,
            "created_at": context.created_at.isoformat(timespec="seconds"),
            "institution": context.institution or "",
            "replaces": [p.sop_instance_uid for p in context.predecessors],
        },
        "outputs": [asdict(output) for output in outputs],
        "recipients": [{**row._asdict(), "files": list(row.files)} for row in recipients],
        "timings_s": {stage: round(seconds, 2) for stage, seconds in (timings_s or {}).items()},
    }


def _analysed(volume: Volume, header: Dataset) -> dict[str, Any]:
    slices, rows, columns = volume.array.shape
    return {
        "series_uid": volume.series_uid,
        "modality": _text(header, "Modality"),
        "number": _text(header, "SeriesNumber"),
        "description": _text(header, "SeriesDescription"),
        "scanner": " ".join(
            filter(None, (_text(header, k) for k in ("Manufacturer", "ManufacturerModelName")))
        ),
        "kernel": _text(header, "ConvolutionKernel"),
        "frame_of_reference_uid": volume.frame_of_reference_uid,
        "shape": [slices, rows, columns],
        "spacing_mm": [round(v, 4) for v in volume.spacing_mm],
        "slice_thickness_mm": volume.slice_thickness_mm,
    }


def _finding(volume: Volume, finding: Finding, number: int, picture: str | None) -> dict[str, Any]:
    frame = volume.frames[finding.key_slice]
    features = [
        {
            "name": feature.name,
            "value": feature.value,
            "meaning": feature_codes(feature)[1].meaning,
            "probability": round(feature.probability, 4),
        }
        for feature in finding.features
    ]
    return {
        "number": number,
        "tracking_uid": finding.tracking_uid,
        "tracking_id": finding.tracking_id,
        "site": {
            "words": site_words(finding.site),
            "laterality": finding.site.laterality and str(finding.site.laterality),
            "lobe": finding.site.lobe and str(finding.site.lobe),
        },
        "attenuation": finding.attenuation and str(finding.attenuation),
        "attenuation_doubt": _doubt(finding.attenuation_doubt),
        "key_slice": {
            "index": finding.key_slice,
            "sop_instance_uid": frame.sop_instance_uid,
            "frame_number": frame.frame_number,
        },
        "point_lps_mm": _lps(volume, finding.key_slice, finding.key_point),
        "long_axis_lps_mm": [_lps(volume, finding.key_slice, end) for end in finding.long_axis],
        "short_axis_lps_mm": [_lps(volume, finding.key_slice, end) for end in finding.short_axis],
        "measurements": {name: round(value, 3) for name, value in asdict(finding.measurements).items()},
        "detection_probability": round(finding.detection_probability, 4),
        "malignancy": finding.malignancy and asdict(finding.malignancy),
        "features": features,
        "descriptors": [
            {**asdict(descriptor), "value": round(descriptor.value, 5)} for descriptor in finding.descriptors
        ],
        "key_image": picture,
    }


def _doubt(doubt: AttenuationDoubt | None) -> dict[str, Any] | None:
    if doubt is None:
        return None
    return {
        "read": str(doubt.read),
        "probability": round(doubt.probability, 4),
        "measured": str(doubt.measured),
        "words": doubt.words,
    }


def _lps(volume: Volume, z: int, at: tuple[float, float]) -> list[float]:
    return [round(float(v), 2) for v in volume.index_to_lps((z, *at))]


def _text(header: Dataset, keyword: str) -> str:
    element = readable(header, keyword)
    if element is None:
        return ""
    return " ".join(map(str, element.value)) if isinstance(element.value, MultiValue) else str(element.value)


def _date(header: Dataset, keyword: str) -> str:
    """``20200131`` as ``2020-01-31``; anything else as it is."""
    text = _text(header, keyword)
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdigit() else text


def _card(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's fields as they were, also after a way through JSON."""
    return {**model, "performance": tuple(model["performance"])}


def _data_uri(path: Path) -> str:
    kind = "webp" if path.suffix == ".webp" else "png"
    return f"data:image/{kind};base64," + base64.b64encode(path.read_bytes()).decode("ascii")
