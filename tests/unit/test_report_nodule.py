"""What the report says of one nodule: measurements, site, features, probabilities."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydicom import Dataset

from dicom_sr import codes
from dicom_sr.seg import build_seg
from inference.types import Attenuation, AttenuationDoubt, Descriptor, Malignancy, SemanticFeature
from tests.finding_factory import make_finding, make_findings
from tests.report_reading import CONTEXT, HEADERS, VOLUME, coded, conclusion, named, numbers, report_on


@pytest.fixture(scope="module")
def report() -> Dataset:
    return report_on(make_findings(VOLUME, 3))


def test_measurements_are_rounded_and_have_units(report: Dataset) -> None:
    (container,) = named(report, "126010")
    assert numbers(container.ContentSequence[0]) == {
        "Long Axis": ("8.0", "mm"),
        "Short Axis": ("6.2", "mm"),
        "average diameter": ("7.1", "mm"),
        "Maximum 3D Diameter of a Mesh": ("8.4", "mm"),
        "Volume": ("1500.0", "mm3"),
        "Mean Attenuation Coefficient": ("-12.3", "[hnsf'U]"),
        "Standard Deviation of Attenuation Coefficient": ("40.0", "[hnsf'U]"),
        "Minimum Attenuation Coefficient": ("-200.0", "[hnsf'U]"),
        "Maximum Attenuation Coefficient": ("90.0", "[hnsf'U]"),
        "Certainty of Finding": ("87.6", "%"),
    }


def test_site_and_attenuation(report: Dataset) -> None:
    (container,) = named(report, "126010")
    volumetric = container.ContentSequence[::2]
    assert [coded(g, "363698007") for g in volumetric] == [["45653009"], ["90572001"], ["72481006"]]
    assert [coded(g, "272741003") for g in volumetric] == [["24028007"], ["7771000"], []]
    assert [coded(g, "NN-2") for g in volumetric] == [["RID50151"], ["RID50153"], ["RID50152"]]


def test_unknown_attenuation_is_not_made_up() -> None:
    report = report_on((make_finding(VOLUME, attenuation=None),))
    assert named(report, "NN-2") == []
    assert "Nodule 1 is a nodule in the right upper lobe." in conclusion(report)


def test_no_malignancy_and_no_features_unless_the_pipeline_has_them(report: Dataset) -> None:
    assert named(report, "111047") == []
    assert named(report, "C28749") == []
    assert "Not assessed: malignancy and semantic features." in conclusion(report)


def test_malignancy_from_the_image_alone() -> None:
    report = report_on((make_finding(VOLUME, malignancy=Malignancy(0.3125)),))
    (container,) = named(report, "126010")
    values = numbers(container.ContentSequence[0])
    assert values["Probability of cancer"] == ("31.2", "%")
    assert codes.FUSED_PROBABILITY.meaning not in values
    (number,) = named(report, "111047")
    assert coded(number, "370129005") == ["NN-17"]
    assert "Not assessed: semantic features." in conclusion(report)


def test_fused_malignancy_keeps_the_image_only_value() -> None:
    report = report_on((make_finding(VOLUME, malignancy=Malignancy(0.3125, 0.456)),))
    (container,) = named(report, "126010")
    values = numbers(container.ContentSequence[0])
    assert values["Probability of cancer"] == ("31.2", "%")
    assert values[codes.FUSED_PROBABILITY.meaning] == ("45.6", "%")
    names = list(values)
    assert names.index("Probability of cancer") < names.index(codes.FUSED_PROBABILITY.meaning)
    assert all(coded(named(report, code)[0], "370129005") == ["NN-17"] for code in ("111047", "NN-10"))
    words = "(readers' suspicion, not histology), from the image alone: 31 %, with the clinical record: 46 %"
    assert f"Suspicious rather than benign {words}" in conclusion(report)


def test_semantic_features() -> None:
    features = (
        SemanticFeature("spiculation", 4, 0.71),
        SemanticFeature("calcification", 6, 0.9),
        SemanticFeature("malignancy", 5, 0.6),
    )
    report = report_on((make_finding(VOLUME, features=features),))
    assert coded(report, "C28749") == ["004"]
    assert coded(report, "C3672") == ["RID28473"]
    assert coded(report, "RID36042") == ["905"]
    assert [certainty(report, c) for c in ("C28749", "C3672", "RID36042")] == ["71.0", "90.0", "60.0"]
    assert "Spiculation: 4 out of 5 (probability 71 %)" in conclusion(report)
    schemes = [i.CodingSchemeDesignator for i in report.CodingSchemeIdentificationSequence]
    assert schemes == ["99CTNODULE", "99LIDCQIICR"]


def test_what_is_not_certain_has_no_value() -> None:
    unsure = (SemanticFeature("spiculation", 1, 0.499), SemanticFeature("margin", 5, 0.5))
    doubt = AttenuationDoubt(Attenuation.SOLID, 0.56, Attenuation.PART_SOLID)
    finding = make_finding(VOLUME, features=unsure, attenuation=None, attenuation_doubt=doubt)
    report = report_on((finding,))
    (group, point) = named(report, "126010")[0].ContentSequence
    assert coded(group, "C28749") == coded(group, "NN-2") == [codes.UNDETERMINED.value]
    assert "ContentSequence" not in named(group, "C28749")[0]
    assert coded(group, "C25563") == ["RID5707"]
    assert "Spiculation: not certain (probability 50 %)" in conclusion(report)
    words = "type not certain (network: solid, 56 %; HU: part-solid)"
    assert named(point, "121106")[0].TextValue.endswith(words)
    assert named(report, "701") == []


def test_pleural_attachment_is_coded_with_its_certainty() -> None:
    def groups(probability: float, distance: float) -> Dataset:
        pleura = [
            Descriptor("pleural attachment", probability, "1", "pleura"),
            Descriptor("distance to the pleura", distance, "mm", "pleura"),
        ]
        report = report_on((make_finding(VOLUME, descriptors=tuple(pleura)),))
        group: Dataset = named(report, "126010")[0].ContentSequence[0]
        return group

    near, far = groups(0.83, 0.0), groups(0.1, 7.26)
    assert (coded(near, "NN-3"), coded(far, "NN-3")) == (["52101004"], ["272519000"])
    assert (certainty(near, "NN-3"), certainty(far, "NN-3")) == ("83.0", "90.0")
    assert (coded(near, "112013"), coded(far, "112013")) == (["68599007"], [])
    assert numbers(far)["Distance to the pleura"] == ("7.3", "mm")
    assert numbers(near)["Distance to the pleura"] == ("0.0", "mm")


def certainty(group: Dataset, concept: str) -> str:
    (item,) = named(group, concept)
    (number,) = item.ContentSequence
    assert number.RelationshipType == "HAS PROPERTIES"
    assert number.ConceptNameCodeSequence[0].CodeValue == "111011"
    return str(number.MeasuredValueSequence[0].NumericValue)


def test_above_30_mm_it_is_a_mass_in_seg_and_report() -> None:
    finding = make_finding(VOLUME)
    large = replace(finding, measurements=replace(finding.measurements, long_axis_mm=30.1))
    limit = replace(finding, measurements=replace(finding.measurements, long_axis_mm=30.0))
    assert coded(report_on((large,)), "121071") == ["4147007"] * 2
    assert coded(report_on((limit,)), "121071") == ["27925004"] * 2
    (segment,) = build_seg(VOLUME, (large,), HEADERS, CONTEXT).SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "4147007"
    assert "Nodule 1 is a solid mass in the right upper lobe." in conclusion(report_on((large,)))


def test_each_group_shows_its_key_image_and_its_algorithms(report: Dataset) -> None:
    (container,) = named(report, "126010")
    for group, finding in zip(container.ContentSequence[::2], make_findings(VOLUME, 3), strict=True):
        (image,) = named(group, "121200")
        uid = image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        assert uid == HEADERS[finding.key_slice].SOPInstanceUID
        assert [i.TextValue for i in named(group, "111002")] == [
            "blob-detector version 1: min_diameter_mm = 4"
        ]
        assert coded(group, "111000") == ["123106"]
