"""The report in sentences, for readers whose viewer shows only text.

The conclusion is what a person reads first; what only some want to know (models, their measured performance)
is said in comments beside the coded results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date

from dicom_sr.codes import MASS, feature_codes, finding_code, site_words
from dicom_sr.comparison import (
    compared,
    doubling_days,
    examined_on,
    open_reason,
    pair_of,
    unmarked,
    volume_percent,
    volume_words,
)
from dicom_sr.content import descriptor, operating_point
from dicom_sr.context import OtherSeries, ResultContext
from dicom_sr.evaluations import (
    is_lung_rads,
    lung_rads_category,
    lung_rads_undetermined,
    observation_words,
)
from dicom_sr.wording import ENGLISH, Wording
from inference.certainty import NOT_CERTAIN, Percent
from inference.types import Comparison, Finding, ModelCard, Pair, Result, SecondLook, Standing

_AT_ITS_PLACE = frozenset({SecondLook.SEEN_IN_PRIOR, SecondLook.SEEN_IN_CURRENT})


def result_sentences(result: Result, context: ResultContext) -> list[str]:
    """The conclusion of an analysed series, one paragraph an item."""
    wording = context.wording
    lines = [opening("automatic_result", wording)]
    if not result.findings:
        lines.append(no_nodule_sentence(result.cards, wording))
    elif len(result.findings) == 1:
        lines.append(wording.say("one_nodule"))
    else:
        lines.append(wording.say("nodules", count=len(result.findings)))
    lines += comparison_sentences(result, wording)
    lines.append(_lung_rads(result, wording))
    # which rules held stands among the evaluations only
    told = (o for o in result.observations if not (is_lung_rads(o) or o.name.startswith("lung_rads_rules")))
    lines += [f"{observation_words(o)}." for o in told]
    lines += _not_assessed(result.findings, wording)
    lines += [wording.say("warning", text=warning) for warning in result.warnings]
    return [*lines, *provenance_sentences(context)]


def comparison_sentences(result: Result, wording: Wording = ENGLISH) -> list[str]:
    """Each nodule with its change, before them what they were compared with, behind them what is gone."""
    found = compared(result)
    lines = [] if result.comparison is None else [prior_sentence(result.comparison, wording)]
    for finding in result.findings:
        pair = pair_of(found, finding)
        words = [finding_sentence(finding, wording)]
        if found is not None and pair is not None:
            words += change_sentences(pair, found.prior.examined_on, examined_on(found), wording)
        lines.append(" ".join(words))
    if found is not None:
        day = found.prior.examined_on
        lines += [
            " ".join(unmarked_sentences(pair, prior, day, examined_on(found), wording))
            for pair, prior in unmarked(found)
        ]
    return lines


def prior_sentence(comparison: Comparison, wording: Wording = ENGLISH) -> str:
    """Which examination this one was compared with, or why it could not be."""
    days = {"prior": comparison.prior.examined_on, "current": examined_on(comparison)}
    if comparison.reason is not None:
        return wording.say("not_compared", reason=comparison.reason, **days)
    return wording.say("compared", days=comparison.days, **days)


def change_sentences(pair: Pair, prior: date, current: date, wording: Wording = ENGLISH) -> Iterator[str]:
    """What became of a nodule that this examination shows."""
    if pair.standing is Standing.NEW:
        yield wording.say("new", prior=prior)
    elif pair.standing is Standing.OUTSIDE_PRIOR:
        yield wording.say("outside_prior", prior=prior)
    elif pair.current is not None and pair.prior is not None:
        now, before = pair.current.measurements, pair.prior.measurements
        yield wording.say(
            "since",
            prior=prior,
            change=wording.word("change not known" if pair.change is None else pair.change.value),
            before=before.mean_diameter_mm,
            now=now.mean_diameter_mm,
            volume_before=before.volume_mm3,
            volume_now=now.volume_mm3,
        )
        if pair.doubling is not None:
            yield wording.say("volume_change", percent=volume_percent(pair.doubling.change))
        if words := volume_words(pair):
            yield wording.say("volume_growth", words=wording.word(words))
        if (days := doubling_days(pair)) is not None:
            yield wording.say("doubling_time", days=days)
    if reason := open_reason(pair):
        yield wording.say("unknown_change", prior=prior, reason=reason)
    if pair.second_look in _AT_ITS_PLACE:
        seen_in_prior = pair.second_look is SecondLook.SEEN_IN_PRIOR
        yield wording.say("only_at_place", date=prior if seen_in_prior else current)


def unmarked_sentences(
    pair: Pair, prior: Finding, day: date, current: date, wording: Wording = ENGLISH
) -> Iterator[str]:
    """What became of a nodule of the prior examination that the result has no finding for."""
    keys = {Standing.RESOLVED: "resolved", Standing.OUTSIDE_CURRENT: "outside_current"}
    yield wording.say(
        keys.get(pair.standing, "unmarked"),
        prior=day,
        name=prior.tracking_id,
        site=wording.word(site_words(prior.site)),
        mean=prior.measurements.mean_diameter_mm,
        volume=prior.measurements.volume_mm3,
    )
    if pair.current is not None:
        yield from change_sentences(pair, day, current, wording)


def not_analysed_sentences(reason: str, sentence: str, context: ResultContext) -> list[str]:
    """The conclusion of a series that was not analysed, one paragraph an item."""
    wording = context.wording
    return [
        opening("automatic_message", wording),
        not_analysed_sentence(reason, sentence, wording),
        wording.say("no_statement"),
        *provenance_sentences(context),
    ]


def opening(kind: str, wording: Wording = ENGLISH) -> str:
    """What it is, that nobody has reviewed it, and how it may be used."""
    return " ".join(wording.say(key) for key in (kind, "not_reviewed", "research_use"))


def not_analysed_sentence(reason: str, sentence: str, wording: Wording = ENGLISH) -> str:
    """Why a series was not analysed."""
    return wording.say("not_analysed", reason=reason, sentence=sentence)


def no_nodule_sentence(cards: Sequence[ModelCard], wording: Wording = ENGLISH) -> str:
    """Says that nothing was found and at which operating point, so that it can't be read as "healthy"."""
    points = "; ".join(f"{card.name}: {operating_point(card)}" for card in cards if card.parameters)
    parts = [wording.say("no_nodule")]
    parts += [wording.say("operating_point", points=points)] if points else []
    return " ".join([*parts, wording.say("nothing_excluded")])


def finding_sentence(finding: Finding, wording: Wording = ENGLISH) -> str:
    """One nodule in words, with the values of the coded tree."""
    m = finding.measurements
    what = wording.word("mass" if finding_code(finding) == MASS else "nodule")
    kind = wording.word(str(finding.attenuation)) if finding.attenuation is not None else ""
    parts = [
        wording.say(
            "finding",
            name=finding.tracking_id,
            kind=f"{kind} {what}".strip(),
            site=wording.word(site_words(finding.site)),
        ),
        wording.say(
            "size",
            long=m.long_axis_mm,
            short=m.short_axis_mm,
            mean=m.mean_diameter_mm,
            greatest=m.max_3d_diameter_mm,
            volume=m.volume_mm3,
            hu=m.mean_hu,
        ),
        wording.say("certainty", percent=Percent(finding.detection_probability)),
        *_assessed(finding, wording),
    ]
    return " ".join(parts)


def _assessed(finding: Finding, wording: Wording) -> Iterator[str]:
    """What trained models say of a nodule."""
    if (malignancy := finding.malignancy) is not None:
        percent = Percent(malignancy.image_only)
        if malignancy.fused is None:
            yield wording.say("image_probability", percent=percent)
        else:
            yield wording.say("both_probabilities", percent=percent, fused=Percent(malignancy.fused))
    if (attached := descriptor(finding, "pleural attachment")) is not None:
        key, chance = ("attached", attached) if attached >= 0.5 else ("not_attached", 1 - attached)
        yield wording.say(key, percent=Percent(chance))
    if finding.features:
        yield wording.say("features", features=", ".join(_features(finding, wording)))


def _features(finding: Finding, wording: Wording) -> Iterator[str]:
    for feature in finding.features:
        name, value = feature_codes(feature)
        words = value.meaning if feature.is_certain else NOT_CERTAIN
        yield wording.say(
            "feature",
            name=wording.word(name.meaning),
            value=wording.word(words),
            percent=Percent(feature.probability),
        )


def _lung_rads(result: Result, wording: Wording) -> str:
    category = lung_rads_category(result.observations)
    if category is None:
        return lung_rads_undetermined(result.observations, wording)
    return wording.say("lung_rads", category=category)


def _not_assessed(findings: Sequence[Finding], wording: Wording) -> Iterator[str]:
    missing = []
    if not any(f.malignancy for f in findings):
        missing.append(wording.word("malignancy"))
    if not any(f.features for f in findings):
        missing.append(wording.word("semantic features"))
    if findings and missing:
        yield wording.say("not_assessed", what=f" {wording.word('and')} ".join(missing))


def provenance_sentences(context: ResultContext) -> Iterator[str]:
    """Software, models with their weights, input, other series, predecessors."""
    wording = context.wording
    yield wording.say(
        "made_by",
        model=context.manufacturer_model_name,
        pipeline=context.pipeline_version,
        software=context.software_version,
        manufacturer=context.manufacturer,
    )
    for card in context.cards:
        yield _model(card)
    yield wording.say("input_digest", digest=context.input_digest)
    for other in context.other_series:
        yield other_series_sentence(other, wording)
    if context.predecessors:
        uids = ", ".join(p.sop_instance_uid for p in context.predecessors)
        yield wording.say("replaces", uids=uids)


def _model(card: ModelCard) -> str:
    weights = f"weights sha256 {card.weights_sha256}" if card.weights_sha256 else "no trained weights"
    return f"{card.name} version {card.version} ({card.task}), {weights}."


def card_sentences(cards: Sequence[ModelCard]) -> list[str]:
    """Measured performance of each model or untrained algorithm, in the words of its card."""
    return [
        f"{card.name} version {card.version}: "
        + (" ".join(card.performance) or "Its performance has not been measured.")
        for card in cards
    ]


def other_series_sentence(other: OtherSeries, wording: Wording = ENGLISH) -> str:
    """Why another series of the study was not analysed."""
    return wording.say(
        "other_series",
        series=other.series_uid,
        modality=other.modality or wording.word("no modality"),
        code=other.code,
        sentence=other.sentence,
    )
