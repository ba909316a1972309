"""Coded concepts of the SEG and the report, and the maps from the project's types to them.

Code meanings are written as the viewers compare them: cornerstone looks for "Long Axis" and "Short Axis"
literally. The nodule features use the codes of the public LIDC-IDRI conversion (QIICR/lidc2dicom), with
the scheme designator spelled ``RADLEX`` (PS3.16 section 8). Private codes exist only where PS3.16 has none.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.sr.coding import Code

from inference.change import Change
from inference.errors import ReasonCode
from inference.types import Attenuation, Finding, Laterality, Lobe, ModelCard, SemanticFeature, Site

PRIVATE_SCHEME = "99CTNODULE"
LIDC_SCHEME = "99LIDCQIICR"

SCHEME_NAMES = {
    PRIVATE_SCHEME: ("pacs-node chest CT nodule codes", "pacs-node project"),
    LIDC_SCHEME: ("LIDC-IDRI nodule characteristics", "Quantitative Image Informatics for Cancer Research"),
}
"""Name and responsible organisation of each private scheme, for (0008,0110)."""

# Document
REPORT_TITLE = Code("126000", "DCM", "Imaging Measurement Report")
# "CT Chest" (24627-2) isn't in the extensible CID 100, and PixelMed calls that an error.
CT_PROCEDURE = Code("25045-6", "LN", "CT unspecified body region")
IMAGING_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")
PROCEDURES = {
    "CT": CT_PROCEDURE,
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
    "PT": Code("44136-0", "LN", "PET unspecified body region"),
    "NM": Code("49118-3", "LN", "NM unspecified body region"),
    "CR": Code("43468-8", "LN", "XR unspecified body region"),
    "DX": Code("43468-8", "LN", "XR unspecified body region"),
}
"""Procedure reported by modality (CID 100); `IMAGING_PROCEDURE` for every other one."""
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
IMAGE_LIBRARY = Code("111028", "DCM", "Image Library")
IMAGE_LIBRARY_GROUP = Code("126200", "DCM", "Image Library Group")
SOURCE = Code("260753009", "SCT", "Source")
CONCLUSION = Code("121077", "DCM", "Conclusion")
COMMENT = Code("121106", "DCM", "Comment")
IMAGE_REGION = Code("111030", "DCM", "Image Region")
REFERENCED_SEGMENT = Code("121191", "DCM", "Referenced Segment")
TRACKING_IDENTIFIER = Code("112039", "DCM", "Tracking Identifier")
TRACKING_UID = Code("112040", "DCM", "Tracking Unique Identifier")
IMAGING_MEASUREMENTS = Code("126010", "DCM", "Imaging Measurements")
MEASUREMENT_GROUP = Code("125007", "DCM", "Measurement Group")
ILLUSTRATION_OF_ROI = Code("121200", "DCM", "Illustration of ROI")
LANGUAGE = Code("121049", "DCM", "Language of Content Item and Descendants")

# Equipment
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")
ACQUISITION_EQUIPMENT = Code("109101", "DCM", "Acquisition Equipment")
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
MULTI_SCALE_FILTERING = Code("123106", "DCM", "Multi-Scale/Resolution Filtering")

# Finding
MORPHOLOGICALLY_ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
FINDING = Code("121071", "DCM", "Finding")
NODULE = Code("27925004", "SCT", "Nodule")
MASS = Code("4147007", "SCT", "Mass")
LUNG = Code("39607008", "SCT", "Lung")
RIGHT = Code("24028007", "SCT", "Right")
LEFT = Code("7771000", "SCT", "Left")
UPPER_LOBE = Code("45653009", "SCT", "Upper lobe of lung")
MIDDLE_LOBE = Code("72481006", "SCT", "Middle lobe of right lung")
LOWER_LOBE = Code("90572001", "SCT", "Lower lobe of lung")
FINDING_SITE = Code("363698007", "SCT", "Finding Site")
LATERALITY = Code("272741003", "SCT", "Laterality")
LOCATION_IN_CHEST = Code("112013", "DCM", "Location in Chest")
SUBPLEURAL = Code("68599007", "SCT", "Subpleural")
PRESENT = Code("52101004", "SCT", "Present")
ABSENT = Code("272519000", "SCT", "Absent")

# Measurements
LONG_AXIS = Code("103339001", "SCT", "Long Axis")
SHORT_AXIS = Code("103340004", "SCT", "Short Axis")
# Not Diameter + Derivation "Mean": OHIF shows a number that has only modifiers below it without its name.
MEAN_DIAMETER = Code("RID50155", "RADLEX", "average diameter")
MAX_3D_DIAMETER = Code("L0JK", "IBSI", "Maximum 3D Diameter of a Mesh")
VOLUME = Code("118565006", "SCT", "Volume")
VOXEL_SUM = Code("126030", "DCM", "Sum of segmented voxel method for volume")
MEAN_HU = Code("112181", "DCM", "Mean Attenuation Coefficient")
SD_HU = Code("112183", "DCM", "Standard Deviation of Attenuation Coefficient")
MIN_HU = Code("112179", "DCM", "Minimum Attenuation Coefficient")
MAX_HU = Code("112180", "DCM", "Maximum Attenuation Coefficient")
CERTAINTY_OF_FINDING = Code("111012", "DCM", "Certainty of Finding")
CERTAINTY_OF_FEATURE = Code("111011", "DCM", "Certainty of Feature")
PROBABILITY_OF_CANCER = Code("111047", "DCM", "Probability of cancer")

MM = Code("mm", "UCUM", "mm")
MM3 = Code("mm3", "UCUM", "cubic millimeter")
HU = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
PERCENT = Code("%", "UCUM", "Percent")
DAY = Code("d", "UCUM", "day")

# Earlier examination
COMPARED = Code("122140", "DCM", "Comparison with Prior Study Done")
YES = Code("373066001", "SCT", "Yes")
NO = Code("373067005", "SCT", "No")
UNDETERMINED = Code("373068000", "SCT", "Undetermined")
STUDY_DATE = Code("111060", "DCM", "Study Date")
STUDY_UID = Code("110180", "DCM", "Study Instance UID")
SERIES_UID = Code("112002", "DCM", "Series Instance UID")
TEMPORAL_OFFSET = Code("128740", "DCM", "Longitudinal Temporal Offset from Event")
TEMPORAL_EVENT = Code("128741", "DCM", "Longitudinal Temporal Event Type")
TIME_POINT = Code("C2348792", "UMLS", "Time Point")
NEW_FINDING = Code("129721008", "SCT", "New finding")
LARGER = Code("15454001", "SCT", "Increase in size")
SMALLER = Code("19776001", "SCT", "Decrease in size")
UNCHANGED = Code("129723006", "SCT", "No significant changes in the finding")
RESOLVED = Code("413322009", "SCT", "Problem resolved")

# Outcome of the run
RUN_OUTCOME = Code("111017", "DCM", "CAD Processing and Findings Summary")
SUCCEEDED_WITH_FINDINGS = Code("111242", "DCM", "All algorithms succeeded; with findings")
SUCCEEDED_WITHOUT_FINDINGS = Code("111241", "DCM", "All algorithms succeeded; without findings")
NONE_SUCCEEDED = Code("111245", "DCM", "No algorithms succeeded; without findings")
QUALITY_FINDING = Code("111052", "DCM", "Quality Finding")
NO_IMAGE = Code("111213", "DCM", "No image")
SOFTWARE_FAILURE = Code("111218", "DCM", "Software failure")
INAPPROPRIATE_PROCESSING = Code("111219", "DCM", "Inappropriate image processing")
OTHER_FAILURE = Code("111220", "DCM", "Other failure")
LIMITED_QUALITY = Code("RID13", "RADLEX", "Limited quality")
OPERATING_POINT = Code("111081", "DCM", "CAD Operating Point Description")

QUALITY_OBSERVATIONS = {
    "motion_blur": Code("111210", "DCM", "Motion blur"),
    "beam_hardening": Code("RID11327", "RADLEX", "Beam-hardening artifact"),
    "other_artifact": Code("111215", "DCM", "Artifact(s) other than grid or detector artifact"),
}
"""Quality findings (CID 6135) by the name of an `Observation` whose value is ``present``."""

# Private, because PS3.16 has nothing for them
LUNG_RADS_VERSION = Code("NN-1", PRIVATE_SCHEME, "Lung-RADS version")
ATTENUATION_TYPE = Code("NN-2", PRIVATE_SCHEME, "Nodule attenuation type")
PLEURAL_ATTACHMENT = Code("NN-3", PRIVATE_SCHEME, "Pleural attachment")
DOUBLING_TIME = Code("NN-5", PRIVATE_SCHEME, "Volume doubling time")
VOLUME_CHANGE = Code("NN-6", PRIVATE_SCHEME, "Volume change")
DETECTION_THRESHOLD = Code("NN-8", PRIVATE_SCHEME, "Detection threshold")
PLEURAL_DISTANCE = Code("NN-9", PRIVATE_SCHEME, "Distance to the pleura")
FUSED_PROBABILITY = Code("NN-10", PRIVATE_SCHEME, "Suspicious rather than benign, with the clinical record")

MODEL_WEIGHTS = Code("NN-11", PRIVATE_SCHEME, "Model weights SHA-256")
INPUT_DIGEST = Code("NN-12", PRIVATE_SCHEME, "Input digest")
SOFTWARE_VERSION = Code("NN-13", PRIVATE_SCHEME, "Software version")
DIAMETER_CHANGE = Code("NN-14", PRIVATE_SCHEME, "Change of the average diameter")
PRIOR_EXAMINATION = Code("NN-15", PRIVATE_SCHEME, "Prior examination")
CHANGE = Code("NN-16", PRIVATE_SCHEME, "Change since the prior examination")
READERS_SUSPICION = Code("NN-17", PRIVATE_SCHEME, "Readers' suspicion, not histology")
"""Method of the probabilities: the standard's "Probability of cancer" alone would be taken for one."""

CHANGES = {
    Change.NEW: NEW_FINDING,
    Change.GROWING: LARGER,
    Change.SLOWLY_GROWING: LARGER,
    Change.STABLE: UNCHANGED,
    Change.SMALLER: SMALLER,
}
"""Of a nodule since a prior examination (CID 6134, and CID 6002 for a new one)."""

MASS_MM = 30.0
"""A lesion of a longer axis is a mass, not a nodule (Fleischner Society, Radiology 246:697-722, 2008)."""

ATTENUATION = {
    Attenuation.SOLID: Code("RID50151", "RADLEX", "solid pulmonary nodule"),
    Attenuation.PART_SOLID: Code("RID50152", "RADLEX", "part-solid pulmonary nodule"),
    Attenuation.GROUND_GLASS: Code("RID50153", "RADLEX", "non-solid pulmonary nodule"),
}

LUNG_RADS = Code("RID50134", "RADLEX", "Lung-RADS assessment")
# Category 0 has no entry: its RadLex identifier could not be verified, so it is written as text.
LUNG_RADS_CATEGORIES = {
    category: Code(value, "RADLEX", f"Lung-RADS {category}")
    for category, value in {
        "1": "RID50136",
        "2": "RID50137",
        "3": "RID50138",
        "4A": "RID50139",
        "4B": "RID50140",
        "4X": "RID50141",
        "S": "RID50710",
    }.items()
}


@dataclass(frozen=True, slots=True)
class FeatureScale:
    """A nodule feature: its concept and the codes of its ranks 1, 2, 3 ..."""

    concept: Code
    ranks: tuple[Code, ...]


def _rank(number: int, text: str = "", code: str = "") -> Code:
    """Private rank code; without text the generic ``00n``, "n out of 5"."""
    meaning = f"{number} out of 5 ({text})" if text else f"{number} out of 5"
    return Code(code or f"{number:03d}", LIDC_SCHEME, meaning)


def _radlex(value: str, meaning: str) -> Code:
    return Code(value, "RADLEX", meaning)


def _between(first: Code, third: Code, last: Code) -> tuple[Code, ...]:
    return first, _rank(2), third, _rank(4), last


FEATURES: dict[str, FeatureScale] = {
    "subtlety_score": FeatureScale(
        Code("C45992", "NCIt", "Subtlety score"),
        (
            _rank(1, "Extremely subtle", "101"),
            _rank(2, "Moderately subtle", "102"),
            _rank(3, "Fairly subtle", "103"),
            _rank(4, "Moderately obvious", "104"),
            _rank(5, "Obvious", "105"),
        ),
    ),
    "internal_structure": FeatureScale(
        Code("200", LIDC_SCHEME, "Internal structure"),
        (
            Code("C12471", "NCIt", "Soft tissue"),
            Code("C25278", "NCIt", "Fluid"),
            Code("C12472", "NCIt", "Adipose tissue"),
            Code("C73434", "NCIt", "Air"),
        ),
    ),
    "calcification": FeatureScale(
        Code("C3672", "NCIt", "Calcification"),
        (
            _radlex("RID35453", "Popcorn calcification sign"),
            Code("302", LIDC_SCHEME, "Laminated appearance"),
            _radlex("RID5741", "Solid appearance"),
            Code("304", LIDC_SCHEME, "Non-central appearance"),
            _radlex("RID5827", "Central calcification"),
            _radlex("RID28473", "Absent"),
        ),
    ),
    "sphericity": FeatureScale(
        Code("400", LIDC_SCHEME, "Sphericity"),
        _between(_radlex("RID5811", "linear"), _radlex("RID5800", "ovoid"), _radlex("RID5799", "round")),
    ),
    "margin": FeatureScale(
        Code("C25563", "NCIt", "Margin"),
        _between(
            _radlex("RID5709", "Indistinct margin"), _rank(3), _radlex("RID5707", "Circumscribed margin")
        ),
    ),
    "lobular_pattern": FeatureScale(
        Code("C62175", "NCIt", "Lobular Pattern"),
        _between(_rank(1, "No lobulation", "601"), _rank(3), _rank(5, "Marked lobulation", "605")),
    ),
    "spiculation": FeatureScale(
        Code("C28749", "NCIt", "Spiculation"),
        _between(_rank(1, "No spiculation", "701"), _rank(3), _rank(5, "Marked spiculation", "705")),
    ),
    "texture": FeatureScale(
        Code("C41144", "NCIt", "Texture"),
        _between(
            ATTENUATION[Attenuation.GROUND_GLASS],
            ATTENUATION[Attenuation.PART_SOLID],
            ATTENUATION[Attenuation.SOLID],
        ),
    ),
    "malignancy": FeatureScale(
        _radlex("RID36042", "Malignancy"),
        (
            _rank(1, "Highly Unlikely for Cancer", "901"),
            _rank(2, "Moderately Unlikely for Cancer", "902"),
            _rank(3, "Indeterminate Likelihood", "903"),
            _rank(4, "Moderately Suspicious for Cancer", "904"),
            _rank(5, "Highly Suspicious for Cancer", "905"),
        ),
    ),
}
"""By `SemanticFeature.name`. Codes: QIICR/lidc2dicom, ``concepts_dict.json`` and ``values_dict.json``."""

_QUALITY = {
    ReasonCode.NOT_AN_IMAGE: NO_IMAGE,
    ReasonCode.NO_SUITABLE_SERIES: NO_IMAGE,
    ReasonCode.SOFTWARE_FAILURE: SOFTWARE_FAILURE,
    ReasonCode.DECODE: SOFTWARE_FAILURE,
    ReasonCode.DERIVED: INAPPROPRIATE_PROCESSING,
    ReasonCode.NOT_AXIAL: INAPPROPRIATE_PROCESSING,
    ReasonCode.TOO_THICK: INAPPROPRIATE_PROCESSING,
    ReasonCode.HU_RANGE: INAPPROPRIATE_PROCESSING,
}


def quality_finding(reason: ReasonCode) -> Code:
    """The code of CID 6135 nearest to a refusal; the exact reason is always given as text beside it."""
    return _QUALITY.get(reason, OTHER_FAILURE)


def said_feature_codes(feature: SemanticFeature) -> tuple[Code, Code]:
    """Concept and value as a report says them: "Undetermined" for a value that isn't certain.

    Raises
    ------
    ValueError
        As `feature_codes`.
    """
    concept, value = feature_codes(feature)
    return concept, value if feature.is_certain else UNDETERMINED


def feature_codes(feature: SemanticFeature) -> tuple[Code, Code]:
    """Concept and most probable value of a semantic feature.

    Raises
    ------
    ValueError
        The name isn't a row of `FEATURES` or the value isn't on its scale.
    """
    scale = FEATURES.get(feature.name)
    if scale is None:
        raise ValueError(f"no codes for the feature {feature.name!r}; known: {', '.join(FEATURES)}")
    if not 1 <= feature.value <= len(scale.ranks):
        raise ValueError(f"{feature.name} = {feature.value}; its scale is 1 to {len(scale.ranks)}")
    return scale.concept, scale.ranks[feature.value - 1]


def site_codes(site: Site) -> tuple[Code, Code | None]:
    """Anatomy and laterality (None where the anatomy already says it, or where it isn't known).

    Raises
    ------
    ValueError
        A middle lobe on the left.
    """
    side = {Laterality.RIGHT: RIGHT, Laterality.LEFT: LEFT}.get(site.laterality) if site.laterality else None
    if site.lobe is Lobe.MIDDLE:
        if site.laterality is Laterality.LEFT:
            raise ValueError("the left lung has no middle lobe")
        return MIDDLE_LOBE, None
    lobes = {Lobe.UPPER: UPPER_LOBE, Lobe.LOWER: LOWER_LOBE}
    return (lobes[site.lobe] if site.lobe else LUNG), side


def finding_code(finding: Finding) -> Code:
    """Nodule, or mass above `MASS_MM` (both of CID 6102 and of CID 7159); the same in SEG and report."""
    return MASS if finding.measurements.long_axis_mm > MASS_MM else NODULE


def site_words(site: Site) -> str:
    """The site for a reader, e.g. ``right upper lobe`` or ``left lung``."""
    side = f"{site.laterality} " if site.laterality else ""
    if site.lobe is Lobe.MIDDLE:
        return "right middle lobe"
    return f"{side}{site.lobe} lobe" if site.lobe else f"{side}lung"


def attenuation_words(finding: Finding) -> str:
    """The type for a reader, or what speaks for which; empty where it wasn't assessed."""
    if finding.attenuation is not None:
        return str(finding.attenuation)
    doubt = finding.attenuation_doubt
    return "" if doubt is None else f"type not certain ({doubt.words})"


def algorithm_family(cards: tuple[ModelCard, ...]) -> Code:
    """CID 7162 family: Artificial Intelligence only where at least one model has trained weights.

    The stage without weights finds blobs at several scales, hence Multi-Scale/Resolution Filtering.
    """
    trained = any(card.weights_sha256 for card in cards)
    return ARTIFICIAL_INTELLIGENCE if trained else MULTI_SCALE_FILTERING
