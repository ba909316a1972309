"""Pieces of the report's content tree (PS3.16 TID 1500 and the templates it includes).

Each nodule makes two measurement groups with the same Tracking UID: TID 1411 refers to the segment and
holds every value; TID 1410 marks one point on the key slice. With the first alone OHIF 3.13 throws and
shows nothing (OHIF/Viewers#3390); with both it merges them by Tracking UID.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.sr import CodeContentItem, ContainerContentItem, ContentSequence, NumContentItem
from highdicom.sr import RelationshipTypeValues as Relation
from pydicom import DataElement, Dataset
from pydicom.sr.codedict import codes as standard
from pydicom.sr.coding import Code

from dicom_sr import codes
from dicom_sr.comparison import SincePrior
from dicom_sr.context import ResultContext
from dicom_sr.header import code_item, reference
from dicom_sr.source import readable
from dicom_sr.wording import ENGLISH, Wording
from inference.types import Finding, ModelCard, Volume

_LIBRARY_NUMBERS = (
    ("Rows", 0, standard.DCM.PixelDataRows, Code("{pixels}", "UCUM", "Pixels")),
    ("Columns", 0, standard.DCM.PixelDataColumns, Code("{pixels}", "UCUM", "Pixels")),
    ("PixelSpacing", 1, standard.DCM.HorizontalPixelSpacing, codes.MM),
    ("PixelSpacing", 0, standard.DCM.VerticalPixelSpacing, codes.MM),
    ("SliceThickness", 0, standard.DCM.SliceThickness, codes.MM),
)


def nodule_groups(
    volume: Volume,
    finding: Finding,
    number: int,
    seg: Dataset,
    context: ResultContext,
    *,
    since: SincePrior | None = None,
) -> tuple[ContentSequence, ContentSequence]:
    """The TID 1411 and the TID 1410 group of one nodule.

    Parameters
    ----------
    number
        Segment number in `seg`.
    since
        Its change since a prior examination, where one was compared.
    """
    tracking = {"uid": finding.tracking_uid, "identifier": finding.tracking_id}
    anatomy, side = codes.site_codes(finding.site)
    segment = hd.sr.ReferencedSegment(
        sop_class_uid=seg.SOPClassUID,
        sop_instance_uid=seg.SOPInstanceUID,
        segment_number=number,
        source_series=hd.sr.SourceSeriesForSegmentation(volume.series_uid),
    )
    where = [hd.sr.FindingSite(anatomy, laterality=side)]
    volumetric = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(**tracking),
        referenced_segment=segment,
        finding_type=codes.finding_code(finding),
        finding_sites=where,
        algorithm_id=hd.sr.AlgorithmIdentification(
            name=context.manufacturer_model_name,
            version=context.pipeline_version,
            manufacturer=context.manufacturer,
            family=codes.algorithm_family(context.cards),
            parameters=[*algorithm_parameters(context)] or None,
        ),
        time_point_context=None if since is None else since.time_point,
        measurements=[
            *(_measurement(*row) for row in measurement_rows(finding)),
            *(() if since is None else since.measurements),
        ],
        qualitative_evaluations=[
            *(_evaluation(*row) for row in evaluation_rows(finding)),
            *(() if since is None else [since.change]),
        ],
    )
    volumetric[0].ContentSequence.append(_illustration(volume, finding))
    planar = hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(**tracking),
        referenced_region=_point(volume, finding),
        finding_type=codes.finding_code(finding),
        finding_sites=where,
    )
    # OHIF names the row of its measurement list by it
    planar[0].ContentSequence.append(text(codes.COMMENT, label(finding)))
    return volumetric, planar


def label(finding: Finding) -> str:
    """What a list of measurements shows of a nodule, e.g. ``N1: left lung, 21.3 x 19.3 mm, solid``."""
    size = finding.measurements
    parts = [
        codes.site_words(finding.site),
        f"{size.long_axis_mm:.1f} x {size.short_axis_mm:.1f} mm",
        *([words] if (words := codes.attenuation_words(finding)) else []),
    ]
    return f"{finding.tracking_id}: {', '.join(parts)}"


def algorithm_parameters(context: ResultContext) -> Iterator[str]:
    """Algorithm Parameters (111002) of a group: the weights and the operating point of every model."""
    for card in context.cards:
        parts = [f"weights sha256 {card.weights_sha256}"] if card.weights_sha256 else []
        parts += [operating_point(card)] if card.parameters else []
        if parts:
            yield f"{card.name} version {card.version}: {', '.join(parts)}"


def operating_point(card: ModelCard) -> str:
    """The parameters of a model or algorithm, e.g. ``min_diameter_mm = 4, min_probability = 0.5``."""
    return ", ".join(f"{name} = {value:g}" for name, value in sorted(card.parameters.items()))


def measurement_rows(finding: Finding) -> list[tuple[Code, float, Code, Code | None]]:
    """Concept, value, unit and method of each number of a nodule, rounded to what can be trusted.

    Lengths to 0.1 mm, volume to 0.1 mm3, attenuation to 0.1 HU, probabilities to 0.1 %. The standard concept
    for the probability of cancer always holds the value of the image alone: the one that also reads the
    clinical record has a name of its own behind it. The method of both says what they are: no histology.
    """
    m = finding.measurements
    rows: list[tuple[Code, float, Code, Code | None]] = [
        (codes.LONG_AXIS, m.long_axis_mm, codes.MM, None),
        (codes.SHORT_AXIS, m.short_axis_mm, codes.MM, None),
        (codes.MEAN_DIAMETER, m.mean_diameter_mm, codes.MM, None),
        (codes.MAX_3D_DIAMETER, m.max_3d_diameter_mm, codes.MM, None),
        (codes.VOLUME, m.volume_mm3, codes.MM3, codes.VOXEL_SUM),
        (codes.MEAN_HU, m.mean_hu, codes.HU, None),
        (codes.SD_HU, m.sd_hu, codes.HU, None),
        (codes.MIN_HU, m.min_hu, codes.HU, None),
        (codes.MAX_HU, m.max_hu, codes.HU, None),
        (codes.CERTAINTY_OF_FINDING, 100 * finding.detection_probability, codes.PERCENT, None),
    ]
    if (malignancy := finding.malignancy) is not None:
        method = codes.READERS_SUSPICION
        rows.append((codes.PROBABILITY_OF_CANCER, 100 * malignancy.image_only, codes.PERCENT, method))
        if malignancy.fused is not None:
            rows.append((codes.FUSED_PROBABILITY, 100 * malignancy.fused, codes.PERCENT, method))
    if (distance := descriptor(finding, "distance to the pleura")) is not None:
        rows.append((codes.PLEURAL_DISTANCE, distance, codes.MM, None))
    return [(concept, round(float(value), 1), unit, method) for concept, value, unit, method in rows]


def evaluation_rows(finding: Finding) -> list[tuple[Code, Code, float | None]]:
    """Concept, value and its probability in % of each coded evaluation of a nodule.

    None where the pipeline gives no probability, and where the value isn't certain and so "Undetermined"; no
    row where it has no model for it.
    """
    rows: list[tuple[Code, Code, float | None]] = []
    if finding.attenuation is not None:
        rows.append((codes.ATTENUATION_TYPE, codes.ATTENUATION[finding.attenuation], None))
    elif finding.attenuation_doubt is not None:
        rows.append((codes.ATTENUATION_TYPE, codes.UNDETERMINED, None))
    attachment = descriptor(finding, "pleural attachment")
    if attachment is not None:
        attached = attachment >= 0.5
        value = codes.PRESENT if attached else codes.ABSENT
        rows.append((codes.PLEURAL_ATTACHMENT, value, _percent(attachment if attached else 1 - attachment)))
        if attached:
            rows.append((codes.LOCATION_IN_CHEST, codes.SUBPLEURAL, None))
    rows += [
        (*codes.said_feature_codes(one), _percent(one.probability) if one.is_certain else None)
        for one in finding.features
    ]
    return rows


def descriptor(finding: Finding, name: str) -> float | None:
    """The value of a descriptor of a finding, None where it has none of this name."""
    return next((one.value for one in finding.descriptors if one.name == name), None)


def _percent(probability: float) -> float:
    return round(100 * float(probability), 1)


def _measurement(name: Code, value: float, unit: Code, method: Code | None) -> Any:
    return hd.sr.Measurement(name=name, value=value, unit=unit, method=method)


def _evaluation(name: Code, value: Code, percent: float | None) -> Any:
    """A CODE item; its probability is a property of it, as in the templates of CAD reports (TID 4100)."""
    evaluation = hd.sr.QualitativeEvaluation(name, value)
    if percent is not None:
        certainty = NumContentItem(
            codes.CERTAINTY_OF_FEATURE, percent, codes.PERCENT, relationship_type=Relation.HAS_PROPERTIES
        )
        evaluation[0].ContentSequence = ContentSequence([certainty])
    return evaluation


def _illustration(volume: Volume, finding: Finding) -> Any:
    """The key image of the nodule."""
    frame = volume.frames[finding.key_slice]
    return hd.sr.ImageContentItem(
        name=codes.ILLUSTRATION_OF_ROI,
        referenced_sop_class_uid=frame.sop_class_uid,
        referenced_sop_instance_uid=frame.sop_instance_uid,
        referenced_frame_numbers=None if frame.frame_number is None else [frame.frame_number],
        relationship_type=Relation.CONTAINS,
    )


def _point(volume: Volume, finding: Finding) -> Any:
    """The key point in the source image; image coordinates count from the corner of the first pixel."""
    frame = volume.frames[finding.key_slice]
    y, x = finding.key_point
    image = hd.sr.SourceImageForRegion(
        referenced_sop_class_uid=frame.sop_class_uid,
        referenced_sop_instance_uid=frame.sop_instance_uid,
        referenced_frame_numbers=None if frame.frame_number is None else [frame.frame_number],
    )
    where = np.array([[x + 0.5, y + 0.5]])
    return hd.sr.ImageRegion(hd.sr.GraphicTypeValues.POINT, where, image)


def measurements_container(groups: Sequence[ContentSequence]) -> ContainerContentItem:
    """TID 1500 row 6: nothing but measurement groups."""
    item = ContainerContentItem(codes.IMAGING_MEASUREMENTS, relationship_type=Relation.CONTAINS)
    item.ContentSequence = ContentSequence()
    for group in groups:
        item.ContentSequence.extend(group)
    return item


def text(name: Code, value: str, wording: Wording = ENGLISH) -> Any:
    """A TEXT item contained in its parent; it names its language where that isn't the document's."""
    item = hd.sr.TextContentItem(name, value, Relation.CONTAINS)
    if not wording.is_english:
        item.ContentSequence = ContentSequence(
            [CodeContentItem(codes.LANGUAGE, wording.language, Relation.HAS_CONCEPT_MOD)]
        )
    return item


def image_library(headers: Sequence[Dataset]) -> ContainerContentItem | None:
    """TID 1600 with one group, its common descriptors (TID 1602) and one IMAGE item for each instance.

    Returns
    -------
    ContainerContentItem or None
        None where no header is an image.
    """
    images = [h for h in headers if h.get("Rows") and h.get("SOPClassUID") and h.get("SOPInstanceUID")]
    if not images:
        return None
    group = ContainerContentItem(codes.IMAGE_LIBRARY_GROUP, relationship_type=Relation.CONTAINS)
    name = code_item(codes.SOURCE)
    items = [*_descriptors(images), *(_library_image(header, name) for header in images)]
    # not by attribute: highdicom would check each of some hundred images
    group.add(DataElement("ContentSequence", "SQ", items))
    library = ContainerContentItem(codes.IMAGE_LIBRARY, relationship_type=Relation.CONTAINS)
    library.ContentSequence = ContentSequence([group])
    return library


def _library_image(header: Dataset, name: Dataset) -> Dataset:
    item = Dataset()
    item.add_new(0x0040A010, "CS", Relation.CONTAINS.value)
    item.add_new(0x0040A040, "CS", "IMAGE")
    item.add_new(0x0040A043, "SQ", [name])
    item.add_new(0x00081199, "SQ", [reference(header.SOPClassUID, header.SOPInstanceUID)])
    return item


def _descriptors(images: Sequence[Dataset]) -> list[Any]:
    """What holds for every image of the group."""
    out: list[Any] = []
    modality = _shared(images, "Modality")
    named = {code.value: code for code in standard.cid29.concepts.values()} if modality else {}
    if isinstance(modality, str) and modality in named:
        out.append(CodeContentItem(standard.DCM.Modality, named[modality], Relation.HAS_ACQ_CONTEXT))
    if frame := _shared(images, "FrameOfReferenceUID"):
        concept = standard.DCM.FrameOfReferenceUID
        out.append(hd.sr.UIDRefContentItem(concept, frame, Relation.HAS_ACQ_CONTEXT))
    for keyword, position, concept, unit in _LIBRARY_NUMBERS:
        values = _numbers(_shared(images, keyword))
        if len(values) == (2 if keyword == "PixelSpacing" else 1):
            number = round(values[position], 6)
            out.append(NumContentItem(concept, number, unit, relationship_type=Relation.HAS_ACQ_CONTEXT))
    return out


def _numbers(value: Any) -> list[float]:
    """Finite numbers of an element value; none where it isn't made of such."""
    listed = [value] if isinstance(value, str | int | float) else list(value or ())
    try:
        numbers = [float(one) for one in listed]
    except (ValueError, TypeError):
        return []
    return numbers if all(map(isfinite, numbers)) else []


def _shared(images: Sequence[Dataset], keyword: str) -> Any:
    """The value that all images have in common, None where they differ or have none."""
    elements = [readable(image, keyword) for image in images]
    first = elements[0]
    if first is None or any(e is None or e.value != first.value for e in elements):
        return None
    return first.value
