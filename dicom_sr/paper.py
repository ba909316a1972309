"""What stands on the pages of a result: the summary to be captured, and the whole report to be printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dicom_sr.comparison import volume_percent
from dicom_sr.conclusion import no_nodule_sentence
from dicom_sr.context import NOT_REVIEWED, RESEARCH_USE
from dicom_sr.keyimages import KeyImage
from dicom_sr.pages import BODY, HEADING, NOTE, STRONG, TITLE, Pages, Style, drawable
from dicom_sr.pairimages import PairImages
from dicom_sr.wording import said_meaning
from inference.certainty import NOT_CERTAIN, SUSPICION, SUSPICIOUS, percent
from inference.types import ModelCard

_WIDE = 470.0
"""Of a key image, points: two of them fill a page."""
_COLUMNS = (
    ("Nodule", 54.0),
    ("Site", 76.0),
    ("Type", 62.0),
    ("Long x short axis", 76.0),
    ("Volume", 50.0),
    ("Mean", 44.0),
    ("Slice", 28.0),
    ("Detection certainty", 52.0),
    (SUSPICIOUS, 69.0),
)


def summary_pages(summary: Mapping[str, Any]) -> list[Figure]:
    """Identification, verdict, findings and warnings; one page unless there are many findings.

    Parameters
    ----------
    summary
        From `dicom_sr.summary.result_json` or `not_analysed_json`.
    """
    pages = _pages(summary)
    _first_part(pages, summary)
    return pages.finish()


def report_pages(
    summary: Mapping[str, Any],
    key_images: Sequence[KeyImage] = (),
    overview: Path | None = None,
    pairs: Sequence[PairImages] = (),
) -> list[Figure]:
    """The summary, then pictures, models with their measured performance, other series and provenance.

    Parameters
    ----------
    summary
        From `dicom_sr.summary.result_json` or `not_analysed_json`.
    pairs
        Pictures of the comparison with a prior examination.
    """
    pages = _pages(summary)
    _first_part(pages, summary)
    _narrative(pages, summary["narrative"])
    if pairs:
        pages.heading(f"Compared with {summary['comparison']['prior']['date']}")
    for images in pairs:
        pages.picture(images.picture, 0.6 * _WIDE)
    if key_images or overview is not None:
        pages.heading("Key images")
    if overview is not None:
        pages.picture(overview, 0.55 * _WIDE)
    for image in key_images:
        pages.picture(image.path, _WIDE)
    _models(pages, summary["models"])
    if summary["series"]["refused"]:
        pages.heading("Series that were not analysed")
        for row in summary["series"]["refused"]:
            words = (
                f"{row['modality'] or 'No modality'} {row['series_uid']}: {row['code']}. {row['sentence']}"
            )
            pages.text(words)
    _provenance(pages, summary["provenance"])
    return pages.finish()


def _pages(summary: Mapping[str, Any]) -> Pages:
    parts = (person(summary["patient"]["name"]), summary["patient"]["id"], summary["study"]["date"])
    return Pages(f"{RESEARCH_USE} {NOT_REVIEWED}", " · ".join(filter(None, parts)))


def _first_part(pages: Pages, summary: Mapping[str, Any]) -> None:
    patient, study = summary["patient"], summary["study"]
    pages.text("Chest CT: automatic nodule report", TITLE)
    pages.space(6)
    pages.pairs(
        [
            ("Patient", _name(patient["name"])),
            ("Patient ID", patient["id"]),
            ("Born", patient["birth_date"]),
            ("Sex", patient["sex"]),
            ("Study of", study["date"]),
            ("Description", study["description"]),
            ("Accession number", study["accession_number"]),
            ("Study UID", study["study_uid"]),
            *_series(summary["series"]["analysed"]),
        ]
    )
    pages.space(8)
    for text, style in _verdict(summary):
        pages.text(text, style)
    for warning in summary["warnings"]:
        pages.text(f"Warning: {warning}", STRONG)
    if summary["findings"]:
        _findings(pages, summary["findings"])
    if summary["comparison"]:
        _comparison(pages, summary["comparison"])
    if summary["observations"]:
        pages.heading("Other observations")
        for row in summary["observations"]:
            share = "" if row["probability"] is None else f" ({percent(row['probability'])})"
            pages.text(f"{row['title']}: {row['value']}{share}")


def person(name: str) -> str:
    """A person's name (PS3.5 6.2, PN) as one reads it: ``DOE^JANE^^DR`` is ``DOE, JANE DR``."""
    groups = [group for group in name.split("=") if group.strip("^ ")]
    family, *others = (groups[0] if groups else "").split("^")
    return ", ".join(filter(None, (family.strip(), " ".join(filter(None, (o.strip() for o in others))))))


def _name(name: str) -> str:
    words = person(name)
    hidden = drawable(words) != words
    return f"{words} (in a script that this page can't show)" if hidden else words or "no patient name"


def _series(analysed: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    if analysed is None:
        return
    words = [analysed["modality"], analysed["number"], analysed["description"]]
    yield "Series", " ".join(filter(None, words))
    yield "Series UID", analysed["series_uid"]
    slices, rows, columns = analysed["shape"]
    spacing = analysed["spacing_mm"]
    yield (
        "Images",
        (
            f"{slices} slices of {rows} x {columns}, {spacing[0]:.2f} mm apart, "
            f"pixels {spacing[1]:.3f} x {spacing[2]:.3f} mm"
        ),
    )
    yield "Scanner", analysed["scanner"]


def _verdict(summary: Mapping[str, Any]) -> Iterator[tuple[str, Style]]:
    if summary["status"] != "analysed":
        yield f"Not analysed ({summary['reason']['code']})", HEADING
        yield summary["reason"]["sentence"], BODY
        yield "No statement is made on the presence or absence of nodules.", BODY
    elif summary["findings"]:
        count = len(summary["findings"])
        yield f"{count} nodule{'s' if count > 1 else ''} marked automatically", HEADING
    else:
        yield "No nodule found", HEADING
        yield no_nodule_sentence([_card(model) for model in summary["models"]]), BODY


def _findings(pages: Pages, findings: Sequence[Mapping[str, Any]]) -> None:
    pages.heading("Findings")
    pages.table([name for name, _ in _COLUMNS], map(_cells, findings), [width for _, width in _COLUMNS])
    if any(finding["malignancy"] for finding in findings):
        pages.text(f"{SUSPICIOUS}: {SUSPICION}.", NOTE)
    for finding in findings:
        if doubt := finding.get("attenuation_doubt"):
            pages.text(f"{finding['tracking_id']}: type {NOT_CERTAIN} ({doubt['words']})", NOTE)
        if finding["features"]:
            words = ", ".join(
                f"{f['name'].replace('_', ' ')} {said_meaning(f)} ({percent(f['probability'])})"
                for f in finding["features"]
            )
            pages.text(f"{finding['tracking_id']}: {words}", NOTE)


def _comparison(pages: Pages, comparison: Mapping[str, Any]) -> None:
    then, now = comparison["prior"]["date"], comparison["date"]
    answer = "Compared" if comparison["reason"] is None else "Not compared"
    pages.heading(f"{answer} with the examination of {then}")
    for sentence in comparison["sentences"]:
        pages.text(sentence)
    if comparison["pairs"]:
        head = ("Nodule", "Site", f"Since {then}", then, now, "Change of volume", "Doubling time")
        widths = (62.0, 72.0, 97.0, 92.0, 92.0, 48.0, 48.0)
        pages.table(head, (_pair_cells(pair, then) for pair in comparison["pairs"]), widths)


def _pair_cells(pair: Mapping[str, Any], then: str) -> tuple[str, ...]:
    named = pair["current"] or pair["prior"]
    marked = pair["current"] is not None and pair["current"]["number"] is not None
    change, days = pair["volume_change"], pair["doubling_days"]
    by_volume = f"By volume: {pair['volume_words']}" if pair["volume_words"] else ""
    return (
        named["tracking_id"] if marked else f"{named['tracking_id']} of {then}",
        named["site"],
        ". ".join(filter(None, (pair["words"], pair["reason"], by_volume))),
        _side_words(pair["prior"], pair["standing"]),
        _side_words(pair["current"], pair["standing"]),
        "-" if change is None else f"{volume_percent(change):+} %",
        "-" if days is None else f"{days:.0f} days",
    )


def _side_words(side: Mapping[str, Any] | None, standing: str) -> str:
    if side is None:
        return "not shown" if standing.startswith("outside") else "not seen"
    m = side["measurements"]
    return f"{m['mean_diameter_mm']:.1f} mm, {m['volume_mm3']:.0f} mm³"


def _cells(finding: Mapping[str, Any]) -> tuple[str, ...]:
    m = finding["measurements"]
    return (
        finding["tracking_id"],
        finding["site"]["words"],
        finding["attenuation"] or (NOT_CERTAIN if finding.get("attenuation_doubt") else "not assessed"),
        f"{m['long_axis_mm']:.1f} x {m['short_axis_mm']:.1f} mm",
        f"{m['volume_mm3']:.0f} mm³",
        f"{m['mean_hu']:.0f} HU",
        str(finding["key_slice"]["index"] + 1),
        percent(finding["detection_probability"]),
        _malignancy(finding["malignancy"]),
    )


def _malignancy(malignancy: Mapping[str, Any] | None) -> str:
    if malignancy is None:
        return "not assessed"
    alone = f"{percent(malignancy['image_only'])} image alone"
    if malignancy["fused"] is None:
        return alone
    return f"{alone}, {percent(malignancy['fused'])} with record"


def _narrative(pages: Pages, narrative: Mapping[str, Any]) -> None:
    pages.heading("Draft report")
    pages.text(narrative["notice"], STRONG)
    for section in narrative["sections"]:
        pages.part(section["heading"], section["paragraphs"])
        pages.space(4)


def _models(pages: Pages, models: Sequence[Mapping[str, Any]]) -> None:
    if not models:
        return
    pages.heading("Models and algorithms")
    for model in models:
        card = _card(model)
        pages.text(f"{card.name} {card.version} ({card.task})", STRONG)
        pages.text(card.summary)
        weights = f"weights sha256 {card.weights_sha256}" if card.weights_sha256 else "no trained weights"
        parameters = ", ".join(f"{name} = {value:g}" for name, value in sorted(card.parameters.items()))
        pages.text("; ".join(filter(None, (weights, parameters))), NOTE)
        for sentence in card.performance or ("Its performance has not been measured.",):
            pages.text(f"-  {sentence}", indent=8)
        if card.limits:
            pages.text(f"Limits: {card.limits}", NOTE)
        pages.space(6)


def _provenance(pages: Pages, provenance: Mapping[str, Any]) -> None:
    pages.heading("Provenance")
    pages.pairs(
        [
            ("Algorithm", f"{provenance['algorithm']}, {provenance['manufacturer']}"),
            ("Pipeline version", provenance["pipeline_version"]),
            ("Software version", provenance["software_version"]),
            ("Made at", provenance["created_at"]),
            ("Institution", provenance["institution"]),
            ("Device UID", provenance["device_uid"]),
            ("Input digest", provenance["input_digest"]),
            ("Replaces", " ".join(provenance["replaces"])),
        ]
    )


def _card(model: Mapping[str, Any]) -> ModelCard:
    return ModelCard(**{**model, "performance": tuple(model["performance"])})
