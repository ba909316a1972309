"""Independent validators on every kind of object that the node writes.

What is waived, and why, stands in `WAIVED_BY_DCIODVFY`, `WAIVED_BY_DCENTVFY` and `WAIVED_BY_PIXELMED`;
any other complaint fails.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import MRImageStorage

from dicom_sr.codes import FEATURES
from dicom_sr.context import OtherSeries, Predecessor
from dicom_sr.part10 import save
from dicom_sr.report import build_not_analysed_report, build_report
from dicom_sr.seg import build_seg
from inference.types import Descriptor, Finding, Malignancy, Observation, SemanticFeature
from tests.conftest import find_peer
from tests.ct_factory import make_ct_series, make_enhanced_ct, write_series
from tests.finding_factory import (
    TRAINED,
    UNTRAINED,
    make_context,
    make_findings,
    make_result,
    make_volume,
    without_pixels,
)

WAIVED_BY_DCIODVFY = (
    # IHE AIR 6.5.3.1 asks for Device UID in Contributing Equipment; the tool's dictionary is older.
    r"Attribute is not present in standard DICOM IOD - \(0x0018,0x1002\) UI Device UID",
    r"Dicom dataset contains attributes not present in standard DICOM IOD - this is a Standard Extended SOP",
    # Private schemes; they are declared in Coding Scheme Identification Sequence.
    r"Unrecognized defined term <99(CTNODULE|LIDCQIICR)> for value 1 of attribute <Coding Scheme Designator>",
)
WAIVED_BY_DCENTVFY = (
    # Study-level in both, but the tool reads it at series level in SR.
    r"Accession ?Number",
)
WAIVED_BY_PIXELMED = (
    # TID 4019 in a group, evaluations and conclusion: the templates are extensible.
    r"^Warning: .*Content Item not in template$",
    # highdicom capitalises as PS3.16 does today.
    r'^Warning: .*Code \(121232,DCM,"Source Series for Segmentation"\) has different code meaning',
)
WAIVED_BY_PIXELMED_FOR_ONE_NODULE = (
    # With exactly one Image Region in the document its stylesheet applies TID 1410 to all groups, the
    # TID 1411 ones too (count(...) = 1 in DicomSRDescriptionsCompiled.xsl); with none or several to none.
    r"^Error: Template 1410 PlanarROIMeasurements/.*/\[Row 5\] SCOORD .*Missing conditional content item$",
    r"^Error: Template 1410 PlanarROIMeasurements/.*/\[Row 7\] IMAGE .*Missing conditional content item$",
)
NOISE = (r"^Found ", r"^Root Template Validation Complete", r"^IOD validation complete")
KINDS = ("several", "one", "none", "not_analysed", "not_analysed_mr", "enhanced", "rich", "all_frames")


def rich_findings(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Everything that a trained profile says of a nodule; the first one is a mass."""
    features = tuple(SemanticFeature(name, 4, 0.7) for name in FEATURES)
    pleura = (
        Descriptor("pleural attachment", 0.8, "1", "pleura"),
        Descriptor("distance to the pleura", 0.4, "mm", "pleura"),
    )
    full = [
        replace(f, malignancy=Malignancy(0.3, 0.4), features=features, descriptors=pleura) for f in findings
    ]
    return (replace(full[0], measurements=replace(full[0].measurements, long_axis_mm=33.0)), *full[1:])


def write_kind(kind: str, directory: Path) -> None:
    """Write the source and the objects of one kind of outcome into `directory`."""
    series = make_ct_series(16)
    context = make_context()
    if kind == "enhanced":
        series = [make_enhanced_ct(series)]
    if kind == "not_analysed_mr":
        for ds in series:
            ds.SOPClassUID, ds.Modality = MRImageStorage, "MR"
    elif kind != "enhanced":  # the synthetic enhanced CT is valid only as far as geometry needs it
        write_series(series, directory / "ct")
    headers = without_pixels(series)
    if kind.startswith("not_analysed"):
        report = build_not_analysed_report(headers, "TOO_THICK", "The slices are 8 mm thick.", context)
        save(report, directory / "sr.dcm")
        return
    volume = make_volume(series)
    findings = make_findings(volume, {"none": 0, "one": 1}.get(kind, 3))
    observations: tuple[Observation, ...] = ()
    if kind == "rich":
        findings = rich_findings(findings)
        observations = (
            *(Observation("emphysema", "present", 0.8), Observation("motion_blur", "present")),
            *(Observation("lung_rads", "4A"), Observation("lung_rads", "S")),
            Observation("lung_rads_version", "2022"),
        )
        context = make_context(
            cards=(UNTRAINED, TRAINED),
            institution="Somewhere",
            predecessors=(Predecessor(volume.study_uid, "1.2.3", "1.2.840.10008.5.1.4.1.1.88.34", "1.2.4"),),
            other_series=(OtherSeries("1.2.5", "CT", "TOO_THICK", "Slices are 8 mm thick."),),
        )
    seg: Dataset | None = None
    if findings:
        seg = build_seg(volume, findings, headers, context, omit_empty_frames=kind != "all_frames")
        save(seg, directory / "seg.dcm")
    result = make_result(volume, findings, context, observations=observations, warnings=("Thick slices.",))
    save(build_report(volume, result, seg, headers, context), directory / "sr.dcm")


@pytest.fixture(scope="session")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``outcome("several")`` is a folder with ct/, seg.dcm and sr.dcm; made once per session."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            write_kind(kind, made[kind])
        return made[kind]

    return make


def complaints(output: str, waived: tuple[str, ...]) -> list[str]:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return [line for line in lines if not any(re.search(pattern, line) for pattern in waived)]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.peer("dciodvfy")
@pytest.mark.parametrize("kind", KINDS)
def test_dciodvfy(kind: str, outcome: Callable[[str], Path]) -> None:
    for path in sorted(outcome(kind).glob("*.dcm")):
        done = run("dciodvfy", path)
        said = complaints(
            done.stdout + done.stderr, (*WAIVED_BY_DCIODVFY, r"^(Segmentation|Comprehensive3DSR)$")
        )
        assert said == [], path.name
        assert done.returncode == 0


@pytest.mark.peer("dciodvfy")
def test_dciodvfy_would_notice(outcome: Callable[[str], Path], tmp_path: Path) -> None:
    content = (outcome("several") / "seg.dcm").read_bytes()
    assert content.count(b"BINARY") == 1
    (tmp_path / "bad.dcm").write_bytes(content.replace(b"BINARY", b"BIMARY"))
    done = run("dciodvfy", tmp_path / "bad.dcm")
    assert any(line.startswith("Error") for line in complaints(done.stdout + done.stderr, WAIVED_BY_DCIODVFY))


@pytest.mark.peer("dcentvfy")
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "not_analysed_mr"])
def test_dcentvfy(kind: str, outcome: Callable[[str], Path]) -> None:
    done = run("dcentvfy", *sorted(outcome(kind).rglob("*.dcm")))
    assert complaints(done.stdout + done.stderr, WAIVED_BY_DCENTVFY) == []


@pytest.mark.peer("dcentvfy")
def test_dcentvfy_would_notice(outcome: Callable[[str], Path], tmp_path: Path) -> None:
    report = dcmread(outcome("several") / "sr.dcm")
    report.PatientBirthDate = "19510101"
    report.save_as(tmp_path / "sr.dcm")
    done = run("dcentvfy", tmp_path / "sr.dcm", outcome("several") / "seg.dcm")
    assert "Birth" in "".join(complaints(done.stdout + done.stderr, WAIVED_BY_DCENTVFY))


@pytest.mark.peer("dsrdump")
@pytest.mark.parametrize("kind", KINDS)
def test_dsrdump(kind: str, outcome: Callable[[str], Path]) -> None:
    done = run("dsrdump", outcome(kind) / "sr.dcm")
    assert done.returncode == 0, done.stderr
    # dsrdump has no checker for UTF-8 text and says so.
    assert (
        complaints(done.stderr, (r"VR checker does not support this Specific Character Set: ISO_IR 192",))
        == []
    )
    assert "Imaging Measurement Report" in done.stdout


def pixelmed(path: Path) -> list[str]:
    jar = find_peer("pixelmed")
    assert jar is not None
    # Without these properties Java 17 refuses the validator's own stylesheet (JAXP0801003).
    limits = [f"-Djdk.xml.xpath{name}Limit=0" for name in ("ExprOp", "TotalOp", "ExprGrp")]
    done = run("java", *limits, "-cp", jar, "com.pixelmed.validate.DicomSRValidator", path)
    assert "Root Template Validation Complete" in done.stdout + done.stderr
    return complaints(done.stdout + done.stderr, (*NOISE, *WAIVED_BY_PIXELMED))


@pytest.mark.slow
@pytest.mark.peer("pixelmed")
def test_pixelmed_on_one_nodule_says_only_what_its_own_flaw_explains(outcome: Callable[[str], Path]) -> None:
    said = pixelmed(outcome("one") / "sr.dcm")
    assert complaints("\n".join(said), WAIVED_BY_PIXELMED_FOR_ONE_NODULE) == []


@pytest.mark.slow
@pytest.mark.peer("pixelmed")
@pytest.mark.parametrize("kind", ["rich", "none", "not_analysed", "enhanced"])
def test_pixelmed_finds_the_templates_kept(kind: str, outcome: Callable[[str], Path]) -> None:
    assert pixelmed(outcome(kind) / "sr.dcm") == []
