"""CT series as badly written as real ones are: each is one oddity that results must survive without an error.

The images themselves break the standard, on purpose; what is made of them must not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pydicom import DataElement, Dataset, config
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRBigEndian

from tests.ct_factory import make_ct_series, make_enhanced_ct

Change = Callable[[Dataset], None]


def _without(*keywords: str) -> Change:
    def change(ds: Dataset) -> None:
        for keyword in keywords:
            ds.pop(keyword, None)

    return change


def _with(**values: object) -> Change:
    """Set elements whatever their values are; a Dataset becomes a sequence of one item."""

    def change(ds: Dataset) -> None:
        for keyword, value in values.items():
            setattr(ds, keyword, DicomSequence([value]) if isinstance(value, Dataset) else value)

    return change


def _item(**values: object) -> Dataset:
    out = Dataset()
    with config.disable_value_validation():
        _with(**values)(out)
    return out


def _charset(name: str | list[str], patient: str, study: str = "") -> Change:
    return _with(SpecificCharacterSet=name, PatientName=patient, StudyDescription=study or patient[:20])


def _undeclared(ds: Dataset) -> None:
    """Bytes of one character set under the name of another."""
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName = b"M\xfcller^J\xf6rg"
    ds.StudyDescription = "Sch\xe4del".encode("latin-1")


def _private_and_retired(ds: Dataset) -> None:
    ds.add(DataElement(0x00090010, "LO", "GEMS_IDEN_01"))
    ds.add(DataElement(0x00091001, "LO", "CT_LIGHTSPEED"))
    ds.add(DataElement(0x00431039, "IS", ["1", "2", "3", "4"]))
    ds.add(DataElement(0x00080001, "UL", 1234))  # Length to End
    ds.add(DataElement(0x00101000, "LO", ["OLD-1", "OLD-2"]))  # Other Patient IDs
    ds.add(DataElement(0x00280005, "US", 2))  # Image Dimensions
    ds.add(DataElement(0x00200070, "LO", "retired image geometry"))
    ds.add(DataElement(0x00324000, "LT", "retired study comments"))


_LONG = "CT THORAX HIGH RESOLUTION WITH CONTRAST, LOW DOSE, PRONE, EXPIRATION AND INSPIRATION, REPEATED TWICE"

CHANGES: dict[str, Change] = {
    "nothing optional": _without(
        *("PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "StudyTime"),
        *("ReferringPhysicianName", "StudyDate", "Manufacturer", "ManufacturerModelName", "StudyDescription"),
        *(
            "SeriesNumber",
            "SliceThickness",
            "KVP",
            "AcquisitionNumber",
            "InstanceNumber",
            "SeriesDescription",
        ),
        *(
            "PositionReferenceIndicator",
            "PatientPosition",
            "SpecificCharacterSet",
            "ImageType",
            "RescaleType",
        ),
        *("BodyPartExamined", "ConvolutionKernel", "ContentDate", "ContentTime", "SeriesDate", "SeriesTime"),
    ),
    "no patient ID": _without("PatientID"),
    "latin 1": _charset("ISO_IR 100", "Müller^Jörg", "Thorax nativ, süß"),
    "chinese, GBK": _charset("GBK", "Wang^XiaoDong=王^小东", "胸部CT平扫"),
    "chinese, GB18030": _charset("GB18030", "Wang^XiaoDong=王^小东", "胸部CT平扫"),
    "japanese": _charset(["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう", "胸部"),
    "japanese, half width": _charset(["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
    "korean": _charset(["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "cyrillic": _charset("ISO_IR 144", "Иванова^Мария"),
    "greek": _charset("ISO_IR 126", "Διονυσιος"),
    "arabic": _charset("ISO_IR 127", "قباني^لنزار"),
    "thai": _charset("ISO_IR 166", "สมชาย^ใจดี"),
    "character set nobody knows": _with(SpecificCharacterSet="ISO_IR 999"),
    "long texts": _with(
        StudyDescription=_LONG,
        SeriesDescription=_LONG,
        PatientComments="word " * 3000,
        EthnicGroup="European, North African",
        StudyID="STUDY-2020-01-01-000123",
        AdmissionID="A" * 80,
        Manufacturer="M" * 80,
        InstitutionName="I" * 80,
        StationName="S" * 30,
    ),
    "long name of the referrer": _with(ReferringPhysicianName="C" * 70),
    "texts with control characters": _with(
        StudyDescription="THORAX\r\nNATIVE\tLUNG\x1b",
        PatientComments="first\r\nsecond\x00third",
    ),
    "several values": _with(
        StudyDescription="THORAX\\ABDOMEN",
        StudyID="1\\2",
        PatientAge="045Y\\046Y",
    ),
    "codes in lower case": _with(PatientSex="male", PatientIdentityRemoved="yes", PatientAge="45"),
    "dates with points and dashes": _with(
        StudyDate="2020.01.01",
        StudyTime="12:00:00",
        PatientBirthDate="1950-01-01",
        PatientBirthTime="noon",
        TimezoneOffsetFromUTC="+01:00",
        AcquisitionDateTime="2020-01-01T12:00:00Z",
    ),
    "odd dates": _with(StudyDate="20200231", StudyTime="246060", PatientBirthDate="19000000"),
    "long decimal strings": _with(
        PatientWeight="72.1234567890123456789", PatientSize="1.7312345678901234567", SliceThickness=2.5
    ),
    "private and retired elements": _private_and_retired,
    "sequences left half empty": _with(
        ProcedureCodeSequence=_item(CodeValue="CTTHOR"),
        OtherPatientIDsSequence=_item(PatientID="OLD"),
        ReferencedStudySequence=_item(ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1"),
        DeidentificationMethodCodeSequence=_item(),
        IssuerOfAccessionNumberSequence=_item(),
    ),
    "sequences as they should be": _with(
        ProcedureCodeSequence=_item(
            CodeValue="CTTHOR", CodingSchemeDesignator="99HOSPITAL", CodeMeaning="CT Thorax"
        ),
        OtherPatientIDsSequence=_item(PatientID="OLD", TypeOfPatientID="TEXT"),
        ReferencedStudySequence=_item(
            ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1", ReferencedSOPInstanceUID="1.2.3"
        ),
        IssuerOfAccessionNumberSequence=_item(LocalNamespaceEntityID="HOSPITAL"),
    ),
    "long code value": _with(
        ProcedureCodeSequence=_item(
            CodeValue="X" * 30, CodingSchemeDesignator="99A" + "B" * 20, CodeMeaning="M" * 80
        )
    ),
    "anonymised": _with(
        PatientIdentityRemoved="YES",
        DeidentificationMethod="M" * 80,
        PatientName="Anonymous",
        ClinicalTrialSponsorName="",
        ClinicalTrialProtocolID="P" * 70,
        ClinicalTrialSubjectID="",
    ),
    "identity removed, no method": _with(PatientIdentityRemoved="YES"),
    "lossy": _with(
        LossyImageCompression="01",
        LossyImageCompressionRatio=["10", "5"],
        LossyImageCompressionMethod="ISO_10918_1",
    ),
    "lossy, nothing more": _with(LossyImageCompression="01"),
    "animal": _with(
        PatientSpeciesDescription="Canis lupus",
        PatientSexNeutered="ALTERED",
        PatientBreedDescription="Mongrel",
        ResponsiblePerson="Owner",
    ),
    "long name of the frame of reference": _with(PositionReferenceIndicator="SN" * 40),
    "paired body part": _with(BodyPartExamined="LUNG", Laterality="L"),
    "laterality of its own making": _with(BodyPartExamined="Thorax, both lungs", Laterality="BOTH"),
    "odd values of the scanner": _with(
        SoftwareVersions=["a", "b", "c"], DeviceSerialNumber="", StationName=["one", "two"]
    ),
}
"""What is done to the header of every image, by the name of the case; each can be analysed."""

UNSOUND_IDENTITY: dict[str, Change] = {
    "long identity": _with(
        PatientID="1234567890" * 8,
        PatientName="A" * 40 + "^" + "B" * 40,
        AccessionNumber="RADIOLOGY-2020-000123",
    ),
    "several values in the identity": _with(
        PatientID="P1\\P2", PatientName="One^A\\Two^B", AccessionNumber="A1\\A2"
    ),
    "control characters in the identity": _with(PatientID="ID\x0012", AccessionNumber="A\tB"),
    "undeclared bytes": _undeclared,
}
"""What names the patient breaks the standard; it is passed on as it is, so the results break it there too."""

LEADING_ZEROS = "UIDs with leading zeros"
"""The name of one more case: what names study and images breaks the standard."""


def odd_series(name: str, n_slices: int = 64) -> list[Dataset]:
    """Make the series of a case of `CHANGES`, `UNSOUND_IDENTITY` or `OTHERS`, or `LEADING_ZEROS`."""
    with config.disable_value_validation():
        if name == LEADING_ZEROS:
            return _uids(name, n_slices)
        if name in OTHERS:
            return list(OTHERS[name](name, n_slices))
        series = make_ct_series(n_slices, seed=f"odd {name}")
        for ds in series:
            {**CHANGES, **UNSOUND_IDENTITY}[name](ds)
    return series


def _uids(seed: str, n_slices: int) -> list[Dataset]:
    """UIDs with leading zeros, as some exporters write."""
    series = make_ct_series(n_slices, seed=f"odd {seed}")
    for number, ds in enumerate(series):
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.826.0.01.3680043.0002", "1.2.826.0.01.3680043.0003"
        ds.FrameOfReferenceUID = "1.2.826.0.01.3680043.0004"
        ds.SOPInstanceUID = f"1.2.826.0.01.3680043.0005.{number:04d}"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return series


def _digits(seed: str, n_slices: int) -> list[Dataset]:
    """Positions, cosines and spacings in more digits than a decimal string may have."""
    turn = np.deg2rad(7)
    orientation = (np.cos(turn), np.sin(turn), 0.0, -np.sin(turn), np.cos(turn), 0.0)
    series = make_ct_series(n_slices, seed=f"odd {seed}", spacing_mm=2.5, orientation=orientation)
    for number, ds in enumerate(series):
        place = (-157.51234567890123, -150.12345678901234, -90.0 + 2.4999999999999 * number)
        ds.ImagePositionPatient = [f"{value:.17f}" for value in place]
        ds.ImageOrientationPatient = [f"{value:.17e}" for value in orientation]
        ds.PixelSpacing = ["4.99999999999999999", "5.00000000000000001"]
    return series


OTHERS: dict[str, Callable[[str, int], Sequence[Dataset]]] = {
    "more digits than fit": _digits,
    "multi-frame": lambda seed, n: [make_enhanced_ct(make_ct_series(n, seed=f"odd {seed}"))],
    "multi-frame, legacy": lambda seed, n: [
        make_enhanced_ct(make_ct_series(n, seed=f"odd {seed}"), legacy=True)
    ],
    "big endian": lambda seed, n: make_ct_series(n, seed=f"odd {seed}", transfer_syntax=ExplicitVRBigEndian),
    "descending": lambda seed, n: make_ct_series(n, seed=f"odd {seed}")[::-1],
}
"""Series whose images differ otherwise than by one change of every header."""
