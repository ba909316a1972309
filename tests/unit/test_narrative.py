"""The draft narrative: what it says, where it stands, and what a site may change."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread

from dicom_sr.narrative import DRAFT, Narrative, compose
from dicom_sr.narrative_samples import SAMPLES
from dicom_sr.narrative_sr import narrative_differences
from dicom_sr.paper import report_pages
from dicom_sr.part10 import save
from dicom_sr.report import build_not_analysed_report, build_report
from dicom_sr.seg import build_seg
from dicom_sr.summary import not_analysed_json, report_html, result_json
from dicom_sr.template import (
    BUILT_IN,
    SECTIONS,
    SENTENCES,
    Template,
    TemplateError,
    as_toml,
    read_template,
)
from dicom_sr.verify import VerificationError, reread, reread_not_analysed
from inference.certainty import percent
from inference.types import Malignancy, Observation, SemanticFeature
from pacs_node.case_narrative import template_or_built_in
from pacs_node.report_template_cli import report_template
from tests.ct_factory import make_ct_series
from tests.finding_factory import make_context, make_findings, make_result, make_volume, without_pixels

SERIES = make_ct_series(16)
HEADERS, VOLUME, CONTEXT = without_pixels(SERIES), make_volume(SERIES), make_context()
GERMAN = """
[template]
name = "Beispielklinik"
language = "de-DE"
language_name = "German (Germany)"
sections = ["impression", "findings"]
[headings]
findings = "BEFUND"
impression = "BEURTEILUNG"
[sentences]
notice = "Entwurf, nicht ärztlich geprüft."
read_by = ""
nodules_none = "Kein Rundherd markiert."
nodule = "{name}: {kind}, {site}, {mean:.0f} mm."
[words]
solid = "solider"
nodule = "Rundherd"
"right upper lobe" = "rechter Oberlappen"
"""


def paragraphs(narrative: Narrative, name: str) -> list[str]:
    return [text for part in narrative.sections if part.name == name for text in part.paragraphs]


def sample(title: str, **changes: Any) -> dict[str, Any]:
    return {**deepcopy(dict(SAMPLES[title])), **changes}


def test_every_draft_says_what_it_is() -> None:
    assert DRAFT == (
        "Draft made by software. Not reviewed by a physician. Research use only, not for primary diagnosis."
    )
    for summary in SAMPLES.values():
        narrative = compose(summary)
        assert narrative.text.startswith(DRAFT)
        assert narrative.text.endswith(f"{DRAFT}\n")
        assert narrative.describe()["notice"] == DRAFT
        assert {"findings", "impression"} <= {part.name for part in narrative.sections}
        assert narrative == compose(summary)


def test_no_nodule_is_never_healthy() -> None:
    narrative = compose(sample("no nodule, first screening"))
    assert paragraphs(narrative, "findings")[0] == (
        "Lungs: no nodule was marked by the software. This does not exclude nodules."
    )
    assert paragraphs(narrative, "impression") == [
        "1. No nodule was marked by the software. This does not exclude nodules.",
        "2. Lung-RADS v2022: category 1.",
    ]
    assert paragraphs(narrative, "comparison") == ["No earlier examination was compared."]


def test_one_nodule_reads_like_a_radiologists_finding() -> None:
    narrative = compose(sample("one nodule, with a record"))
    (nodule,) = [text for text in paragraphs(narrative, "findings") if text.startswith("N1")]
    assert nodule == (
        "N1: part-solid nodule in the right upper lobe, 10.1 x 8.3 mm (mean diameter 9.2 mm), 408 mm3, on "
        "slice 41 of 301. Solid part: mean diameter 6.3 mm. Margin ill defined, spiculated, not lobulated, "
        "not calcified. It does not touch the pleura. Suspicious rather than benign (readers' suspicion, "
        "not histology), from the image alone: 42 %, with the clinical record: 51 %. Brock model 2b, "
        "probability of cancer: 6.1 % to 22.3 %, by what is not known."
    )
    assert paragraphs(narrative, "impression") == [
        "1. Part-solid nodule, mean diameter 9.2 mm, in the right upper lobe (N1).",
        "2. Lung-RADS v2022: category 4A. Recommendation by the guideline: Low-dose CT in 3 months.",
    ]
    assert paragraphs(narrative, "clinical")[1] == (
        "Clinical record used: age years (Patient's Age), smoking (record.csv)."
    )


def test_an_unsure_feature_is_not_said() -> None:
    summary = sample("one nodule, with a record")
    for feature in summary["findings"][0]["features"]:
        feature["probability"] = 0.49
    assert "spiculated" not in compose(summary).text


def test_spicules_are_denied_only_where_the_denial_was_measured_to_hold() -> None:
    summary = sample("one nodule, with a record")
    for feature in summary["findings"][0]["features"]:
        feature |= {"value": 1, "probability": 0.69}
    assert "not spiculated" not in compose(summary).text
    assert "margin ill defined" in compose(summary).text.lower()
    summary["findings"][0]["features"][1]["probability"] = 0.7
    assert "not spiculated" in compose(summary).text


def test_a_type_in_doubt_is_said_with_both_readings_and_the_solid_part() -> None:
    summary = sample("one nodule, with a record")
    words = "network: solid, 56 %; HU: part-solid"
    doubt = {"read": "solid", "probability": 0.56, "measured": "part-solid", "words": words}
    summary["findings"][0] |= {"attenuation": None, "attenuation_doubt": doubt}
    text = compose(summary).text
    assert f"Not certain whether solid, part-solid or ground-glass ({words}). Solid part: mean" in text
    summary["findings"][0]["attenuation_doubt"] = {**doubt, "measured": "solid"}
    assert "Solid part" not in compose(summary).text


def test_many_nodules_and_a_comparison() -> None:
    narrative = compose(sample("three nodules, not screening, compared"))
    assert paragraphs(narrative, "comparison") == ["Compared with the examination of 2025-01-20."]
    found = paragraphs(narrative, "findings")
    assert found[1].endswith("Since 2025-01-20: growing.")
    assert found[3].startswith("N3: mass in the right lung")
    assert "Attenuation not assessed. It touches the pleura." in found[3]
    assert found[-1] == "Limitation: Slices are 3 mm thick: small nodules can be missed."
    impression = paragraphs(narrative, "impression")
    assert impression[0].startswith("1. N3 is the largest of 3 nodules: mass")
    assert impression[1:] == [
        "2. N1 has grown since 2025-01-20.",
        "3. Fleischner Society 2017: single solid nodule, below 6 mm, high risk. Optional CT at 12 months.",
    ]


def test_what_no_guideline_says_is_said() -> None:
    assert paragraphs(compose(sample("one nodule, nothing known")), "impression")[-1] == (
        "2. Lung-RADS v2022 is not determined. If this is a first screening examination: 2 (N2)."
    )
    bare = sample("one nodule, nothing known", observations=[])
    assert paragraphs(compose(bare), "impression")[-1] == "2. No guideline was applied."


def test_a_series_that_was_not_analysed() -> None:
    narrative = compose(sample("not analysed"))
    assert [part.name for part in narrative.sections] == ["technique", "findings", "impression"]
    assert paragraphs(narrative, "findings")[1] == (
        "No statement is made on the presence or absence of nodules."
    )
    assert "has to be read without it" in paragraphs(narrative, "impression")[0]


@settings(max_examples=30, deadline=None)
@given(
    texts=st.text(max_size=20),
    mm=st.floats(0.5, 200),
    slice_=st.integers(0, 2000),
    probability=st.floats(0, 1),
)
def test_no_value_of_a_result_breaks_a_line_or_gets_lost(
    texts: str, mm: float, slice_: int, probability: float
) -> None:
    summary = sample("one nodule, with a record")
    finding = summary["findings"][0]
    finding["measurements"]["mean_diameter_mm"] = mm
    finding["key_slice"]["index"] = slice_
    finding["malignancy"]["image_only"] = probability
    summary["series"]["analysed"]["kernel"] = texts
    narrative = compose(summary)
    assert all(text.isprintable() for part in narrative.sections for text in part.paragraphs)
    nodule = paragraphs(narrative, "findings")[1]
    assert f"mean diameter {round(mm, 1):.1f} mm" in nodule
    assert f"on slice {slice_ + 1} of 301" in nodule
    assert f"alone: {percent(probability)}" in nodule


# the site's template


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "template.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_site_changes_what_it_wants(tmp_path: Path) -> None:
    template = read_template(written(tmp_path, GERMAN))
    narrative = compose(sample("one nodule, with a record"), template)
    assert [part.heading for part in narrative.sections] == ["BEURTEILUNG", "BEFUND"]
    assert "N1: part-solid Rundherd, rechter Oberlappen, 9 mm." in narrative.text
    assert narrative.text.startswith(f"{DRAFT}\n\nEntwurf, nicht ärztlich geprüft.")
    assert narrative.describe()["language"] == "de-DE"
    assert template.digest != BUILT_IN.digest


def test_the_built_in_template_is_a_file_to_start_from(tmp_path: Path) -> None:
    template = read_template(written(tmp_path, as_toml()))
    for summary in SAMPLES.values():
        assert compose(summary, template) == compose(summary)
    assert read_template(written(tmp_path, "")).sections == SECTIONS


def test_the_example_of_the_document(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    narrative = compose(sample("one nodule, with a record"), read_template(written(tmp_path, example)))
    assert narrative.sections[2].heading == "Lungs"
    assert "N1: part-solid nodule, right upper lobe, 9 mm (image 41)." in narrative.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[template", "can't be read"),
        ("x = 1", "[x] is unknown"),
        ("sentences = 3", "[sentences] is no table"),
        ("[template]\nsections = 3", "no list of names"),
        ("[template]\nsections = ['findings']", "impression can't be left out"),
        ("[template]\nsections = ['findings', 'impression', 'findings']", "stands there twice"),
        ("[template]\nsections = ['findings', 'impression', 'poem']", "'poem' is none of"),
        ("[template]\nsize = 3", "template.size is unknown"),
        ("[template]\nname = 3", "template.name is no text"),
        ("[template]\nlanguage = 'de-DE'", "language_name is empty"),
        ("[sentences]\nnoduls = 'x'", "sentences.noduls is unknown"),
        ("[sentences]\nnodule = ''", "nodule can't be left out"),
        ("[sentences]\nnodule = 'A nodule.'", "nodule needs {name}"),
        ("[sentences]\nnodule = '{name} {diameter}'", "nodule has no {diameter}; known: {certainty}"),
        ("[sentences]\nnodule = '{name.__class__}'", "has no {name.__class__}"),
        ("[sentences]\nnodule = '{name[0]}'", "has no {name[0]}"),
        ("[sentences]\nnodule = '{name!r}'", "write {name}"),
        ("[sentences]\nnodule = '{name:>99999999}'", "write {name}"),
        ("[sentences]\nnodule = '{name} {mean:99999999.1f}'", "write {mean} or {mean:.1f}"),
        ("[sentences]\nnodule = '{name} {mean:{long}}'", "write {mean} or {mean:.1f}"),
        ("[sentences]\nnodule = '{name'", "sentences.nodule: "),
        ("[sentences]\nnodule = '{name} {}'", "has no {}"),
        ('[sentences]\nnodule = "{name}\\nx"', "line break"),
        ("[sentences]\nnodule = 3", "sentences.nodule is no text"),
        ("[words]\nlung = ''", "words.lung is empty"),
        ("[words]\nlungs = 'x'", "words.lungs is unknown"),
        (f"[sentences]\nread_by = '{'x' * 1001}'", "longer than 1000"),
        (f"# {'x' * 70000}", "larger than 64 KiB"),
    ],
)
def test_a_broken_template_is_refused_with_the_reason(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(TemplateError) as error:
        read_template(written(tmp_path, text))
    assert words in str(error.value)


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(TemplateError) as error:
        Template(sections=("poem",), sentences={"nodule": "", "x": "y"})
    assert len(str(error.value).split("; ")) == 5


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SENTENCES)), st.text("{}nam:.1f!r[]x ", max_size=16))
def test_a_template_that_is_taken_makes_a_draft_of_every_result(key: str, text: str) -> None:
    try:
        template = Template(sentences={key: text})
    except TemplateError:
        return
    for summary in SAMPLES.values():
        assert DRAFT in compose(summary, template).text


def test_a_broken_template_never_fails_a_study(tmp_path: Path) -> None:
    assert template_or_built_in(None) == (BUILT_IN, ())
    good = written(tmp_path, GERMAN)
    assert template_or_built_in(good) == (read_template(good), ())
    for path in (written(tmp_path, "[poem]"), tmp_path / "gone.toml", tmp_path):
        template, (warning,) = template_or_built_in(path)
        assert template == BUILT_IN
        assert warning.startswith("The site's report template could not be used, so the built-in one was: ")


# in the objects


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any, Narrative, dict[str, Any]]:
    out = tmp_path_factory.mktemp("narrative")
    feature = SemanticFeature("spiculation", 5, 0.8)
    findings = make_findings(VOLUME, 2)
    findings = (replace(findings[0], malignancy=Malignancy(0.3), features=(feature,)), *findings[1:])
    result = make_result(VOLUME, findings, CONTEXT, observations=(Observation("lung_rads", "4A"),))
    summary = result_json(VOLUME, result, HEADERS, CONTEXT)
    narrative = compose(summary)
    seg = build_seg(VOLUME, findings, HEADERS, CONTEXT)
    save(seg, out / "seg.dcm")
    save(build_report(VOLUME, result, seg, HEADERS, CONTEXT, narrative=narrative), out / "sr.dcm")
    return out / "seg.dcm", out / "sr.dcm", result, narrative, summary


def test_the_report_has_the_draft_word_for_word(
    made: tuple[Path, Path, Any, Narrative, dict[str, Any]],
) -> None:
    seg, report, result, narrative, summary = made
    reread(VOLUME, result, seg, report, narrative)
    assert summary["narrative"] == narrative.describe()
    other = replace(narrative, sections=(*narrative.sections[:-1],))
    for wrong in (None, other):
        with pytest.raises(VerificationError, match="other sections"):
            reread(VOLUME, result, seg, report, wrong)


def _changed(text: str) -> Callable[[Dataset], None]:
    def change(report: Dataset) -> None:
        (findings,) = (
            i for i in report.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "59776-5"
        )
        findings.ContentSequence[2].TextValue = text

    return change


def _without_notice(report: Dataset) -> None:
    (impressions,) = (
        i for i in report.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "19005-8"
    )
    del impressions.ContentSequence[0]


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (_changed("Nodule 1: solid nodule, 80 mm."), "the draft's Findings"),
        (_changed(""), "the draft's Findings"),
        (_without_notice, "the draft's Impressions"),
    ],
)
def test_a_changed_draft_is_found(
    made: tuple[Path, Path, Any, Narrative, dict[str, Any]], tamper: Callable[[Dataset], None], words: str
) -> None:
    report = dcmread(made[1])
    assert list(narrative_differences(report, made[3])) == []
    tamper(report)
    assert [words in line for line in narrative_differences(report, made[3])] == [True]


def test_page_and_pdf_have_it(made: tuple[Path, Path, Any, Narrative, dict[str, Any]]) -> None:
    *_, narrative, summary = made
    hostile = deepcopy(summary)
    hostile["narrative"]["sections"][0]["paragraphs"].append("<script>alert(1)</script>")
    page = report_html(hostile)
    assert "<script>alert" not in page
    pages = report_pages(summary)
    printed = " ".join(" ".join(text.get_text() for page in pages for text in page.texts).split())
    for part in narrative.sections:
        assert part.heading in page
        for text in part.paragraphs:
            assert " ".join(text.split()) in " ".join(printed.split())
    assert page.count(DRAFT) == 1
    assert DRAFT in printed


def test_a_kernel_of_two_values_is_read_as_words() -> None:
    header = deepcopy(HEADERS[0])
    header.ConvolutionKernel = ["Br40d", "3"]
    result = make_result(VOLUME, (), CONTEXT)
    summary = result_json(VOLUME, result, [header, *HEADERS[1:]], CONTEXT)
    assert "Reconstruction kernel Br40d 3." in compose(summary).text


def test_a_report_of_no_analysis_has_its_draft(tmp_path: Path) -> None:
    reason = ("TOO_THICK", "Its slices are 8 mm thick.")
    summary = not_analysed_json(HEADERS, *reason, CONTEXT, warnings=("A warning.",))
    narrative = compose(summary)
    assert paragraphs(narrative, "findings")[-1] == "Limitation: A warning."
    report = build_not_analysed_report(HEADERS, *reason, CONTEXT, narrative=narrative)
    save(report, tmp_path / "sr.dcm")
    reread_not_analysed(tmp_path / "sr.dcm", VOLUME.series_uid, reason[0], narrative)
    with pytest.raises(VerificationError, match="other sections"):
        reread_not_analysed(tmp_path / "sr.dcm", VOLUME.series_uid, reason[0])


def test_another_template_is_another_document(tmp_path: Path) -> None:
    own = read_template(written(tmp_path, GERMAN))
    result = make_result(VOLUME, (), CONTEXT)
    context = replace(CONTEXT, template=own)
    narrative = compose(result_json(VOLUME, result, HEADERS, context), own)
    reports = [
        build_report(VOLUME, result, None, HEADERS, one, narrative=narrative) for one in (CONTEXT, context)
    ]
    assert reports[0].SOPInstanceUID != reports[1].SOPInstanceUID
    save(reports[1], tmp_path / "sr.dcm")
    reread(VOLUME, result, None, tmp_path / "sr.dcm", narrative)
    (findings,) = (
        i for i in reports[1].ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "59776-5"
    )
    language = findings.ContentSequence[2].ContentSequence[0].ConceptCodeSequence[0]
    assert language.CodeValue == "de-DE"


# the command


def test_the_command_shows_what_a_template_makes(tmp_path: Path) -> None:
    shown = CliRunner().invoke(report_template, ["show"])
    path = written(tmp_path, shown.output)
    done = CliRunner().invoke(report_template, ["check", str(path)])
    assert done.exit_code == 0
    assert all(f"=== {title} ===" in done.output for title in SAMPLES)
    assert "can be used" in done.output
    result = tmp_path / "result.json"
    result.write_text(json.dumps(SAMPLES["one nodule, with a record"]), encoding="utf-8")
    done = CliRunner().invoke(report_template, ["check", str(path), "--result", str(result)])
    assert (done.exit_code, done.output.count("===")) == (0, 2)


@pytest.mark.parametrize("result", ["{", "[]", "{}", '{"status": "analysed"}'])
def test_the_command_says_what_is_wrong(tmp_path: Path, result: str) -> None:
    path = written(tmp_path, "[sentences]\nnodule = ''\nx = 'y'\n")
    done = CliRunner().invoke(report_template, ["check", str(path)])
    assert done.exit_code == 1
    assert "  sentences.x is unknown\n  sentences.nodule can't be left out\n" in done.output
    file = tmp_path / "result.json"
    file.write_text(result, encoding="utf-8")
    done = CliRunner().invoke(
        report_template, ["check", str(written(tmp_path, GERMAN)), "--result", str(file)]
    )
    assert done.exit_code == 1
    assert "Error: " in done.output
    assert "Traceback" not in done.output
