from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from pydicom.sr import _concepts_dict
from pydicom.sr.codedict import codes as standard
from pydicom.sr.coding import Code

from dicom_sr import codes
from inference.errors import ReasonCode
from inference.types import Laterality, Lobe, SemanticFeature, Site
from tests.finding_factory import TRAINED, UNTRAINED

KNOWN: dict[str, set[str]] = {
    scheme: {value for names in by_keyword.values() for value in cast("dict[str, object]", names)}
    for scheme, by_keyword in _concepts_dict.concepts.items()
}


def all_codes() -> list[Code]:
    single = [value for value in vars(codes).values() if isinstance(value, Code)]
    tables = (
        *(codes.PROCEDURES, codes.ATTENUATION, codes.LUNG_RADS_CATEGORIES),
        codes.QUALITY_OBSERVATIONS,
    )
    in_tables = [code for table in tables for code in table.values()]
    scales = [code for scale in codes.FEATURES.values() for code in (scale.concept, *scale.ranks)]
    return [*single, *in_tables, *scales]


def test_every_standard_code_is_in_the_dictionary_of_the_standard() -> None:
    unknown = [
        code
        for code in all_codes()
        if code.scheme_designator in {"DCM", "SCT", "LN", "UCUM", "IBSI"}
        and code.value not in KNOWN[code.scheme_designator]
    ]
    assert unknown == []


def test_no_code_value_has_two_meanings() -> None:
    meanings: dict[tuple[str, str], set[str]] = {}
    for code in all_codes():
        meanings.setdefault((code.scheme_designator, code.value), set()).add(code.meaning)
    assert {key: names for key, names in meanings.items() if len(names) > 1} == {}


def test_radlex_is_spelled_as_in_the_standard_and_meanings_fit() -> None:
    assert {c.scheme_designator for c in all_codes() if c.value.startswith("RID")} == {"RADLEX"}
    assert all(0 < len(c.meaning) <= 64 and len(c.value) <= 16 for c in all_codes())


def test_axis_names_are_what_viewers_compare_with() -> None:
    assert (codes.LONG_AXIS.meaning, codes.SHORT_AXIS.meaning) == ("Long Axis", "Short Axis")


@pytest.mark.parametrize(
    ("site", "anatomy", "side", "words"),
    [
        (Site(Laterality.RIGHT, Lobe.UPPER), "45653009", "24028007", "right upper lobe"),
        (Site(Laterality.LEFT, Lobe.UPPER), "45653009", "7771000", "left upper lobe"),
        (Site(Laterality.RIGHT, Lobe.MIDDLE), "72481006", None, "right middle lobe"),
        (Site(None, Lobe.MIDDLE), "72481006", None, "right middle lobe"),
        (Site(Laterality.LEFT, Lobe.LOWER), "90572001", "7771000", "left lower lobe"),
        (Site(Laterality.LEFT), "39607008", "7771000", "left lung"),
        (Site(), "39607008", None, "lung"),
    ],
)
def test_site(site: Site, anatomy: str, side: str | None, words: str) -> None:
    concept, laterality = codes.site_codes(site)
    assert (concept.value, laterality and laterality.value) == (anatomy, side)
    assert codes.site_words(site) == words


def test_a_left_middle_lobe_is_refused() -> None:
    with pytest.raises(ValueError, match="no middle lobe"):
        codes.site_codes(Site(Laterality.LEFT, Lobe.MIDDLE))


def test_feature_scales_have_the_lengths_of_lidc() -> None:
    lengths = {name: len(scale.ranks) for name, scale in codes.FEATURES.items()}
    assert lengths.pop("internal_structure") == 4
    assert lengths.pop("calcification") == 6
    assert set(lengths.values()) == {5}
    assert len(lengths) == 7


def test_features_map_to_their_rank() -> None:
    name, value = codes.feature_codes(SemanticFeature("spiculation", 5, 0.9))
    assert (name.value, value.value, value.meaning) == ("C28749", "705", "5 out of 5 (Marked spiculation)")
    _, middle = codes.feature_codes(SemanticFeature("margin", 3, 0.9))
    assert (middle.value, middle.scheme_designator) == ("003", "99LIDCQIICR")
    _, solid = codes.feature_codes(SemanticFeature("texture", 5, 0.9))
    assert solid.value == "RID50151"


@pytest.mark.parametrize("feature", [("spiculation", 6), ("spiculation", 0), ("cavity", 1)])
def test_unknown_features_and_ranks_are_refused(feature: tuple[str, int]) -> None:
    with pytest.raises(ValueError, match=r"codes for|scale is"):
        codes.feature_codes(SemanticFeature(*feature, 0.5))


@pytest.mark.parametrize("reason", ReasonCode)
def test_every_reason_has_a_quality_finding_of_cid_6135(reason: ReasonCode) -> None:
    assert codes.quality_finding(reason) in standard.cid6135


def test_artifacts_are_quality_findings_of_cid_6135() -> None:
    assert all(code in standard.cid6135 for code in codes.QUALITY_OBSERVATIONS.values())
    assert codes.LIMITED_QUALITY in standard.cid7036


def test_only_trained_weights_are_called_artificial_intelligence() -> None:
    assert codes.algorithm_family((UNTRAINED,)).value == "123106"
    assert codes.algorithm_family((UNTRAINED, TRAINED)).value == "123110"
    assert codes.algorithm_family((replace(TRAINED, weights_sha256=None),)) in standard.cid7162


def test_the_package_loads_no_torch() -> None:
    modules = [path.stem for path in Path(codes.__file__).parent.glob("*.py") if path.stem != "__init__"]
    assert len(modules) > 8
    script = "import sys\n" + "\n".join(f"import dicom_sr.{m}" for m in modules)
    script += "\nassert not {'torch', 'pacs_node'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
