"""``pacs-node evaluate priors``: matching, change of volume and registration on pairs of known truth.

Each pair is judged twice: with the true masks as findings, and with what the pipeline finds and measures. The
unit of the bootstrap is the pair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from inference.analyse import analyse, second_look
from inference.evaluate import plots
from inference.evaluate.froc import Backgrounds, implants_of
from inference.evaluate.lidc_run import Collection
from inference.evaluate.metrics import Estimate, Floats, PatientBootstrap
from inference.evaluate.report import Cell, Options, Report, Run, Section, Table, Target
from inference.evaluate.two_dates import PairCase, Seen, inserted_pair, phantom_pair
from inference.measure import attenuation, measure
from inference.priors import PriorExamination, compare
from inference.registry import Pipeline
from inference.types import Comparison, Finding, Pair, SecondLook, Standing, Volume

THEN, NOW = date(2023, 3, 1), date(2024, 3, 1)
SAME_PLACE_MM = 7.0
"""A pair of findings that are no drawn nodules is right where their places truly are as near as this."""
TRUTH, PIPELINE = "true masks", "own findings"

_LIMITS = (
    "The later chest is the earlier one bent smoothly: real lungs also slide along the ribs and fall ill.",
    "Pasted nodules that grow keep their form; real ones change it.",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one comparison got right; counts, and one number for each nodule.

    Parameters
    ----------
    right, wrong, missed
        Pairs of one nodule, pairs of two, and nodules of both days without their pair.
    missed_found
        Of `missed`, those that were found on both days.
    new, new_said, new_right
        New nodules that were found, nodules called new, and those of them that are; nodules that weren't
        drawn don't count. `resolved` likewise.
    registration_mm
        Error of the carried-over centre of each drawn nodule.
    change_error
        Relative error of V2 / V1 of each right pair.
    """

    name: str
    failed: bool
    right: int = 0
    wrong: int = 0
    missed: int = 0
    missed_found: int = 0
    second_looks: int = 0
    new: tuple[int, int, int] = (0, 0, 0)
    resolved: tuple[int, int, int] = (0, 0, 0)
    registration_mm: tuple[float, ...] = ()
    change_error: tuple[float, ...] = ()


def true_findings(seen: Sequence[Seen | None], volume: Volume) -> tuple[Finding, ...]:
    """Findings of the true masks; a nodule that isn't there has none."""
    return tuple(_finding(one, volume, number) for number, one in enumerate(seen, 1) if one is not None)


def _finding(seen: Seen, volume: Volume, number: int) -> Finding:
    measured = measure(volume, seen.mask, seen.origin)
    return Finding(
        tracking_uid=f"2.25.{number}",
        tracking_id=f"N{number}",
        mask=seen.mask,
        origin=seen.origin,
        key_slice=measured.key_slice,
        key_point=measured.key_point,
        long_axis=measured.long_axis,
        short_axis=measured.short_axis,
        measurements=measured.measurements,
        detection_probability=1.0,
        attenuation=attenuation(volume, seen.mask, seen.origin),
    )


def evaluate(
    cases: Sequence[Callable[[], PairCase]],
    pipeline: Pipeline | None,
    options: Options,
    *,
    data: str,
    files: tuple[Path, ...] = (),
) -> Report:
    """Make each pair, compare it and score.

    Parameters
    ----------
    cases
        Make the pairs, one at a time.
    pipeline
        Whose findings to judge; None for the true masks only.
    data
        What the pairs are, for people.
    """
    start = time.monotonic()
    done: dict[str, list[Outcome]] = {TRUTH: [], **({PIPELINE: []} if pipeline else {})}
    seconds: list[float] = []
    for number, make in enumerate(cases):
        options.progress("pairs", number, len(cases))
        case = make()
        begin = time.process_time()
        done[TRUTH].append(scored(case, *_of_truth(case)))
        seconds.append(time.process_time() - begin)
        if pipeline is not None:
            done[PIPELINE].append(scored(case, *_of_pipeline(case, pipeline, options)))
    options.progress("pairs", len(cases), len(cases))
    run = Run(
        options.command,
        time.monotonic() - start,
        options.device,
        {"pairs": len(cases), "resamples": options.resamples, "seed": options.seed},
        files,
    )
    return make_report(done, pipeline, options, data=data, run=run, seconds=seconds)


@dataclass(frozen=True, slots=True)
class Strips:
    """Real nodules to paste, the chests to paste into, and how many pairs."""

    nodules: Collection
    backgrounds: Backgrounds
    count: int


def evaluate_pairs(
    seeds: range, strips: Strips | None, pipeline: Pipeline | None, options: Options
) -> Report:
    """Compare phantoms of two dates and pasted nodules.

    Parameters
    ----------
    seeds
        Of the phantoms; the first one is that of the pasted pairs too.

    Raises
    ------
    ModelUnavailableError
        The weights of the HU estimate are missing.
    ValueError, OSError
        Strips or backgrounds can't be used.
    """
    cases: list[Callable[[], PairCase]] = [partial(phantom_pair, seed) for seed in seeds]
    told = [f"{len(seeds)} phantoms of two dates, seeds from {seeds.start}"] if seeds else []
    files: tuple[Path, ...] = ()
    if strips is not None:
        implants = implants_of(strips.nodules.read(options.seed))
        backgrounds = strips.backgrounds.read()
        cases += [
            partial(inserted_pair, seeds.start + number, backgrounds[number % len(backgrounds)], implants)
            for number in range(strips.count)
        ]
        names = ", ".join(one.name for one in backgrounds)
        told.append(
            f"{strips.count} pairs of {names}, the later one deformed, with nodules of "
            f"{strips.nodules.table.name}, split {strips.nodules.split}"
        )
        files = (strips.nodules.images, strips.nodules.masks, strips.nodules.table)
    return evaluate(cases, pipeline, options, data="; ".join(told), files=files)


Findings = tuple[tuple[Finding, ...], tuple[Finding, ...]]


def _of_truth(case: PairCase) -> tuple[Findings, Comparison]:
    current = true_findings([one.current for one in case.nodules], case.current)
    prior = true_findings([one.prior for one in case.nodules], case.prior)
    return (current, prior), _compared(case, current, prior)


def _of_pipeline(case: PairCase, pipeline: Pipeline, options: Options) -> tuple[Findings, Comparison]:
    current, prior = (
        analyse(volume, pipeline, input_digest=case.name, device=options.device).findings
        for volume in (case.current, case.prior)
    )
    look = second_look(pipeline, device=options.device)
    return (current, prior), _compared(case, current, prior, look)


def _compared(
    case: PairCase, current: tuple[Finding, ...], prior: tuple[Finding, ...], look: Any = None
) -> Comparison:
    earlier = PriorExamination(case.prior.study_uid, case.prior.series_uid, THEN, case.prior, prior)
    return compare(case.current, current, NOW, earlier, look=look)


# scoring


def _hit(finding: Finding | None, seen: Sequence[Seen | None]) -> int | None:
    """The nodule that a finding shares most voxels with, at least a fifth of the smaller of the two."""
    if finding is None:
        return None
    shares = [0.0 if one is None else _shared(finding, one) for one in seen]
    best = int(np.argmax(shares)) if shares else 0
    return best if shares and shares[best] >= 0.2 else None


def _shared(finding: Finding, seen: Seen) -> float:
    low = np.maximum(finding.origin, seen.origin)
    high = np.minimum(np.add(finding.origin, finding.mask.shape), np.add(seen.origin, seen.mask.shape))
    if (high <= low).any():
        return 0.0
    one, other = (
        mask[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))]
        for mask, origin in ((finding.mask, finding.origin), (seen.mask, seen.origin))
    )
    return float((one & other).sum() / max(1, min(finding.mask.sum(), seen.mask.sum())))


def scored(case: PairCase, findings: Findings, comparison: Comparison) -> Outcome:
    """What a comparison of the findings (current, prior) got right."""
    if comparison.reason is not None:
        lost = sum(one.current is not None and one.prior is not None for one in case.nodules)
        return Outcome(case.name, failed=True, missed=lost)
    current, prior = [one.current for one in case.nodules], [one.prior for one in case.nodules]
    hits = [(pair, _hit(pair.current, current), _hit(pair.prior, prior)) for pair in comparison.pairs]
    matched = [row for row in hits if row[0].standing is Standing.MATCHED]
    right = {now for _, now, then in matched if now is not None and now == then}
    both = {n for n, one in enumerate(case.nodules) if one.current is not None and one.prior is not None}
    found = [
        {_hit(one, seen) for one in these} for these, seen in zip(findings, (current, prior), strict=True)
    ]
    wrong = sum(now != then for _, now, then in matched)
    wrong += sum(_apart(pair, case) for pair, now, then in matched if now is None and then is None)
    return Outcome(
        case.name,
        failed=False,
        right=len(right),
        wrong=wrong,
        missed=len(both - right),
        missed_found=len((both - right) & found[0] & found[1]),
        second_looks=sum(
            pair.second_look in (SecondLook.SEEN_IN_CURRENT, SecondLook.SEEN_IN_PRIOR) for pair, _, _ in hits
        ),
        new=_standing(hits, Standing.NEW, {n for n, one in enumerate(case.nodules) if one.prior is None}, 1),
        resolved=_standing(
            hits, Standing.RESOLVED, {n for n, one in enumerate(case.nodules) if one.current is None}, 2
        ),
        registration_mm=tuple(_carried(case, hits)),
        change_error=tuple(_change_errors(case, matched)),
    )


def _apart(pair: Pair, case: PairCase) -> bool:
    """Whether a pair of two findings that are no drawn nodules joins two places."""
    if pair.current is None or pair.prior is None:
        return True
    true = case.motion.to_prior(_centre(case.current, pair.current.mask, pair.current.origin))
    return bool(
        np.linalg.norm(true - _centre(case.prior, pair.prior.mask, pair.prior.origin)) > SAME_PLACE_MM
    )


def _centre(volume: Volume, mask: Any, origin: Any) -> Floats:
    return volume.index_to_lps(np.argwhere(mask).mean(axis=0) + np.array(origin))


Hit = tuple[Pair, int | None, int | None]


def _standing(hits: Sequence[Hit], standing: Standing, true: set[int], side: int) -> tuple[int, int, int]:
    """Nodules of this standing that were found, drawn nodules of which it is said, and those rightly."""
    said = [row[side] for row in hits if row[0].standing is standing and row[side] is not None]
    there = {row[side] for row in hits if row[side] is not None} & true
    return len(there), len(said), len(set(said) & true)


def _carried(case: PairCase, hits: Sequence[Hit]) -> Iterator[float]:
    for pair, now, _ in hits:
        if pair.current is not None and now is not None and pair.current_point_mm is not None:
            true = case.motion.to_prior(_centre(case.current, pair.current.mask, pair.current.origin))
            yield float(np.linalg.norm(true - np.array(pair.current_point_mm)))


def _change_errors(case: PairCase, matched: Sequence[Hit]) -> Iterator[float]:
    for pair, now, then in matched:
        if now is None or now != then or pair.doubling is None:
            continue
        truth = case.nodules[now]
        if truth.current is not None and truth.prior is not None:
            true = truth.current.volume_mm3 / truth.prior.volume_mm3
            yield abs((1 + pair.doubling.change) / true - 1)


# report


@dataclass(frozen=True)
class _Scores:
    """Figures of one kind of findings."""

    matching: Estimate
    end_to_end: Estimate
    change_median: Estimate
    change_worst: Estimate
    registration_median: Estimate
    registration_worst: Estimate
    new: tuple[Estimate, Estimate]
    resolved: tuple[Estimate, Estimate]

    def figures(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """For the JSON."""
        return {
            "matching_f1_of_found": self.matching,
            "matching_f1": self.end_to_end,
            "volume_change_error_median": self.change_median,
            "volume_change_error_worst": self.change_worst,
            "registration_error_mm_median": self.registration_median,
            "registration_error_mm_worst": self.registration_worst,
            "new": {"recall": self.new[0], "precision": self.new[1]},
            "resolved": {"recall": self.resolved[0], "precision": self.resolved[1]},
            "failed_registrations": sum(one.failed for one in outcomes),
            "seen_at_second_look": sum(one.second_looks for one in outcomes),
            "pairs": {
                "right": sum(one.right for one in outcomes),
                "wrong": sum(one.wrong for one in outcomes),
                "missed": sum(one.missed for one in outcomes),
                "missed_though_found_twice": sum(one.missed_found for one in outcomes),
            },
        }


def _scores(outcomes: Sequence[Outcome], options: Options) -> _Scores:
    names = [one.name for one in outcomes]
    bootstrap = PatientBootstrap(names, resamples=options.resamples, seed=options.seed)

    def share(top: Sequence[float], bottom: Sequence[float]) -> Estimate:
        above, below = np.array(top, float), np.array(bottom, float)
        return bootstrap.estimate(lambda w: float(w @ above / (w @ below)) if w @ below > 0 else float("nan"))

    def pooled(values: Sequence[Sequence[float]], reduce: Callable[[Floats], float]) -> Estimate:
        arrays = [np.array(one, float) for one in values]

        def statistic(weights: Floats) -> float:
            drawn = np.concatenate([np.tile(one, int(w)) for one, w in zip(arrays, weights, strict=True)])
            return reduce(drawn) if len(drawn) else float("nan")

        return replace(bootstrap.estimate(statistic), samples=sum(map(len, arrays)))

    def f1(missed: Callable[[Outcome], int]) -> Estimate:
        return share(
            [2 * one.right for one in outcomes],
            [2 * one.right + one.wrong + missed(one) for one in outcomes],
        )

    def standing(pick: Callable[[Outcome], tuple[int, int, int]]) -> tuple[Estimate, Estimate]:
        there, said, good = zip(*map(pick, outcomes), strict=True)
        return share(good, there), share(good, said)

    return _Scores(
        matching=f1(lambda one: one.missed if one.failed else one.missed_found),
        end_to_end=f1(lambda one: one.missed),
        change_median=pooled([one.change_error for one in outcomes], lambda v: float(np.median(v))),
        change_worst=pooled([one.change_error for one in outcomes], lambda v: float(v.max())),
        registration_median=pooled([one.registration_mm for one in outcomes], lambda v: float(np.median(v))),
        registration_worst=pooled([one.registration_mm for one in outcomes], lambda v: float(v.max())),
        new=standing(lambda one: one.new),
        resolved=standing(lambda one: one.resolved),
    )


_ROWS = (
    ("matching F1, nodules found on both days", "matching"),
    ("matching F1, all nodules of both days", "end_to_end"),
    ("relative error of V2 / V1, median", "change_median"),
    ("relative error of V2 / V1, worst", "change_worst"),
    ("registration error at nodules, median, mm", "registration_median"),
    ("registration error at nodules, worst, mm", "registration_worst"),
)


def make_report(
    done: dict[str, list[Outcome]],
    pipeline: Pipeline | None,
    options: Options,
    *,
    data: str,
    run: Run,
    seconds: Sequence[float],
) -> Report:
    """Figures and pictures of pairs that were compared."""
    scores = {name: _scores(outcomes, options) for name, outcomes in done.items()}
    columns = tuple(scores)
    rows: list[tuple[Cell, ...]] = [
        (title, *(getattr(scores[name], key) for name in columns)) for title, key in _ROWS
    ]
    for title, key, part in (
        ("new: found ones called new", "new", 0),
        ("called new: that are", "new", 1),
        ("resolved: found ones called resolved", "resolved", 0),
        ("called resolved: that are", "resolved", 1),
    ):
        rows.append((title, *(getattr(scores[name], key)[part] for name in columns)))
    rows.append(("registrations that failed", *(sum(one.failed for one in done[n]) for n in columns)))
    rows.append(
        ("pairs seen at a second look only", *(sum(o.second_looks for o in done[n]) for n in columns))
    )
    targets: list[Target] = []
    for name in columns:
        targets.append(Target(f"{name}: matching F1", scores[name].matching, ">=", 0.95))
        targets.append(
            Target(f"{name}: median relative error of volume change", scores[name].change_median, "<=", 0.10)
        )
    return Report(
        kind="priors",
        title="Comparison with an earlier examination",
        data=data,
        split="external",
        models=pipeline.cards if pipeline else (),
        pipeline_version=pipeline.version if pipeline else "none",
        targets=tuple(targets),
        sections=(
            Section("Figures", "", Table(("what", *columns), tuple(rows))),
            *_pictures(done, options, data),
        ),
        figures={
            **{name: scores[name].figures(done[name]) for name in columns},
            "cpu_seconds_of_a_comparison": {"mean": float(np.mean(seconds)), "most": float(np.max(seconds))},
        },
        run=run,
        limits=_LIMITS,
    )


def _pictures(done: dict[str, list[Outcome]], options: Options, data: str) -> tuple[Section, ...]:
    """How the errors are spread."""
    sections = []
    for key, title, label, scale in (
        ("change_error", "Error of the volume change", "relative error of V2 / V1", 1.0),
        ("registration_mm", "Registration error at nodules", "error, cm", 10.0),
    ):
        values = {
            f"{name}, n = {len(pooled)}": pooled / scale
            for name, outcomes in done.items()
            if len(pooled := np.array([v for one in outcomes for v in getattr(one, key)], np.float64))
        }
        if values:
            plots.histogram(options.out / f"{key}.png", plots.Caption(title, data), values, label)
            sections.append(Section(title, pictures=((f"{key}.png", f"Histogram: {title.lower()}"),)))
    return tuple(sections)
