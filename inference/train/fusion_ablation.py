"""Compare the fusion mechanisms: ``python -m inference.train.fusion_ablation --data DIR --out OUT``.

Image alone, record alone, and M1 to M6 with all, half and none of the record's items, on patients that no
part of the training has seen, with intervals by patient; on records of which the exact answer is known, and
on records that tell nothing beyond the image (`inference.train.records`). Writes ``ablation.json``,
``ablation.md`` and ``ablation-*.png`` to OUT. What CADx says of the nodules is read once and kept there as
``features.npz``; without it, DIR is read (`inference.train.fusion_features`). Half an hour on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from inference.digest import sha256_of
from inference.evaluate import plots
from inference.fusion import (
    MECHANISMS,
    SYNTHETIC_STATEMENT,
    Mechanism,
    TextTower,
    clip_text_tower,
    mechanism_of,
)
from inference.fusion.distilled import Distilled
from inference.registry import FUSION, TEXT, load_pipeline
from inference.train.fusion import RESAMPLES, counts
from inference.train.fusion_data import Samples, read_features
from inference.train.fusion_features import write_features
from inference.train.fusion_learn import Course, fit_line, learn, val_loss, with_calibrated_logits
from inference.train.fusion_measure import Figures, Floats, Trial
from inference.train.records import POOL, Dependence, RecordSource
from inference.weights import load_into, read_weights

_LOG = logging.getLogger(__name__)

ROWS = ("record alone", "full", "half", "none", "of nobody")
SHIPPED = "as shipped"
DEPENDENCES = (Dependence.OUTCOME, Dependence.RATINGS)


@dataclass(frozen=True)
class Plan:
    """How much is done.

    Parameters
    ----------
    seeds
        How many times each mechanism is trained, from different random weights; figures are means.
    pool, resamples
        Of `RecordSource`, and of the patients for the intervals.
    """

    epochs: int = 40
    seeds: int = 3
    seed: int = 0
    pool: int = POOL
    resamples: int = RESAMPLES
    mechanisms: tuple[str, ...] = tuple(MECHANISMS)
    dependences: tuple[Dependence, ...] = DEPENDENCES


def ablation(
    parts: dict[str, Samples],
    tower: TextTower | None,
    plan: Plan,
    shipped: Mechanism | None = None,
    *,
    progress: Progress,
) -> dict[str, Any]:
    """Train and measure.

    Parameters
    ----------
    parts
        From `inference.train.fusion_data.read_features`.
    shipped
        Trained weights to measure beside.

    Returns
    -------
    dict
        The report; it begins with `SYNTHETIC_STATEMENT`.
    """
    parts, calibration = with_calibrated_logits(parts)
    bench = _Bench(parts, RecordSource(plan.seed, plan.pool), tower, plan, shipped, progress)
    return {
        "statement": SYNTHETIC_STATEMENT,
        "seeds": plan.seeds,
        "epochs": plan.epochs,
        "text_tower": tower is not None,
        "image_calibration": {"slope": calibration[0], "intercept": calibration[1]},
        **counts(parts),
        "records": {str(dependence): bench.on(dependence) for dependence in plan.dependences},
    }


@dataclass(frozen=True)
class _Bench:
    parts: dict[str, Samples]
    source: RecordSource
    tower: TextTower | None
    plan: Plan
    shipped: Mechanism | None
    progress: Progress

    def on(self, dependence: Dependence) -> dict[str, Any]:
        """All rows on records of one dependence."""
        parts, source, tower, plan = self.parts, self.source, self.tower, self.plan
        drawn = self.progress.add_task(f"{dependence}: records", total=None)
        course = Course.drawn(parts, source, tower, epochs=plan.epochs, seed=plan.seed, dependence=dependence)
        trial = Trial.drawn(parts, source, tower, seed=plan.seed, dependence=dependence)
        self.progress.update(drawn, total=1, completed=1)
        measured = Figures(trial.samples, seed=plan.seed, resamples=plan.resamples)
        rows = {}
        for name in plan.mechanisms:
            networks = [self._learnt(name, course, number) for number in range(plan.seeds)]
            rows[name] = _told(networks, course, trial, measured)
        if self.shipped is not None:
            rows[f"{self.shipped.name} {SHIPPED}"] = _told([self.shipped], course, trial, measured)
        return {
            "image": measured.of([trial.samples.logit]),
            "exact ratio of the record": measured.of(trial.exact_alone),
            "image and exact ratio": measured.of(trial.exact),
            "mechanisms": rows,
        }

    def _learnt(self, name: str, course: Course, number: int) -> Mechanism:
        task = self.progress.add_task(f"{name} {number + 1}/{self.plan.seeds}", total=1.0)

        def report(share: float) -> None:
            self.progress.update(task, completed=share)

        return learn(MECHANISMS[name], course, seed=self.plan.seed + number, report=report)


def _told(networks: Sequence[Mechanism], course: Course, trial: Trial, measured: Figures) -> dict[str, Any]:
    """All rows of one mechanism; the logits of several networks are so many further draws."""
    draws = (trial.full, trial.half, trial.none, trial.blind)
    columns = [[logit for network in networks for logit in trial.alone(network)]]
    columns += [[logit for network in networks for logit in trial.fused(network, one)] for one in draws]
    none = columns[ROWS.index("none")]
    found: dict[str, Any] = {
        "number": networks[0].number,
        "parameters": sum(one.numel() for one in networks[0].parameters()),
        "val_loss": [val_loss(network, course) for network in networks],
        "full_auroc_of_each_seed": [measured.area(trial.fused(network, trial.full)) for network in networks],
        "largest_change_without_record": float(max(np.abs(one - trial.samples.logit).max() for one in none)),
        **{name: measured.of(logits) for name, logits in zip(ROWS, columns, strict=True)},
    }
    students = [one for one in networks if isinstance(one, Distilled)]
    if students:
        found["image-only student"] = measured.of([student_logit(one, course, trial) for one in students])
    return found


@torch.inference_mode()
def student_logit(network: Distilled, course: Course, trial: Trial) -> Floats:
    """Image-only logit with the student's correction, calibrated on VAL. Measured, never used."""
    val = course.parts["val"]
    guessed, wanted = (network.image_only(one.image).double().numpy() for one in (val, trial.samples))
    slope, offset = fit_line(guessed, val.malignant, val.logit)
    return np.asarray(trial.samples.logit + slope * wanted + offset)


_HEAD = (
    "mechanism",
    "record alone",
    "whole record",
    "gain over the image",
    "half of the items",
    "gain over the image",
    "no record",
    "record of nobody: gain",
    "calibration error, Brier",
)


def markdown(report: Mapping[str, Any]) -> str:
    """The report as tables: area under the ROC curve with 95 % intervals by patient."""
    lines = [
        "# Fusion mechanisms on synthetic records",
        "",
        f"{report['statement']} Research use only, not for primary diagnosis.",
        "",
        _data_words(report),
    ]
    for name, found in report["records"].items():
        lines += ["", f"## Records that depend on: {name}", "", *_table(found)]
    return "\n".join(lines) + "\n"


def _data_words(report: Mapping[str, Any]) -> str:
    nodules, patients, high = (report[name]["test"] for name in ("nodules", "patients", "malignant"))
    return (
        f"{nodules} nodules of {patients} unseen patients, {high} rated above 3; {report['seeds']} trainings "
        f"of {report['epochs']} epochs each. Area under the ROC curve, 95 % intervals by patient; gains are "
        "of the same patients in the same resample."
    )


def _table(found: Mapping[str, Any]) -> list[str]:
    rows = [_HEAD, ("---",) * len(_HEAD)]
    image = found["image"]
    empty = ("",) * (len(_HEAD) - 1)
    rows.append(("image", *empty[:5], _area(image), "", _errors(image)))
    rows.append(("exact ratio of the record", _area(found["exact ratio of the record"]), *empty[1:]))
    exact = found["image and exact ratio"]
    rows.append(("image and exact ratio", "", _area(exact), _gain(exact), *empty[3:7], _errors(exact)))
    for name, one in found["mechanisms"].items():
        full, half = one["full"], one["half"]
        none = f"{one['none']['auroc']:.3f}, changed by {one['largest_change_without_record']:g}"
        cells = (_area(one["record alone"]), _area(full), _gain(full), _area(half), _gain(half), none)
        rows.append((f"{one['number']} {name}", *cells, _gain(one["of nobody"]), _errors(full)))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if students := [
        one["image-only student"] for one in found["mechanisms"].values() if "image-only student" in one
    ]:
        lines += ["", f"The image-only student of M4 (measured, never used): {_area(students[0])}."]
    return lines


def _area(row: Mapping[str, float]) -> str:
    return f"{row['auroc']:.3f} ({row['auroc_low']:.3f}-{row['auroc_high']:.3f})"


def _gain(row: Mapping[str, float]) -> str:
    return f"{row['gain']:+.3f} ({row['gain_low']:+.3f} to {row['gain_high']:+.3f})"


def _errors(row: Mapping[str, float]) -> str:
    return f"{row['calibration_error']:.3f}, {row['brier']:.3f}"


def picture(path: Path, found: Mapping[str, Any], dependence: str, data: str) -> None:
    """Gains over the image alone with their intervals."""
    rows = {"image and exact ratio": {"whole record": found["image and exact ratio"]}}
    for name, one in found["mechanisms"].items():
        rows[f"{one['number']} {name}"] = {
            "whole record": one["full"],
            "half of the items": one["half"],
            "record of nobody": one["of nobody"],
        }
    plots.intervals(
        path,
        plots.Caption(f"Synthetic records that depend on: {dependence}", data),
        {
            name: {label: (row["gain"], row["gain_low"], row["gain_high"]) for label, row in one.items()}
            for name, one in rows.items()
        },
        "gain in area under the ROC curve over the image alone",
    )


def write(report: Mapping[str, Any], out: Path) -> None:
    """JSON, Markdown and pictures."""
    (out / "ablation.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (out / "ablation.md").write_text(markdown(report), encoding="utf-8")
    data = (
        f"synthetic records; n = {report['nodules']['test']} of {report['patients']['test']} unseen patients"
    )
    for name, found in report["records"].items():
        picture(out / f"ablation-{name}.png", found, name, data)


def main() -> None:
    """Parse the arguments, read or make the features, train, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the collection, where OUT has no features.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each mechanism")
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--mechanisms", nargs="+", choices=MECHANISMS, default=list(MECHANISMS))
    parser.add_argument(
        "--records", nargs="+", choices=[str(one) for one in DEPENDENCES], default=list(DEPENDENCES)
    )
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    chosen.out.mkdir(parents=True, exist_ok=True)
    features = chosen.out / "features.npz"
    if not features.exists():
        if chosen.data is None:
            parser.error(f"{features} doesn't exist, so --data is needed")
        write_features(chosen.data, features)
    pipeline = load_pipeline()
    shipped = mechanism_of(pipeline.card(FUSION).mechanism)()
    load_into(shipped, read_weights(*pipeline.weights(FUSION)))
    plan = Plan(
        epochs=chosen.epochs,
        seeds=chosen.seeds,
        seed=chosen.seed,
        mechanisms=tuple(chosen.mechanisms),
        dependences=tuple(Dependence(one) for one in chosen.records),
    )
    tower = clip_text_tower(read_weights(*pipeline.weights(TEXT)))
    with Progress() as progress:
        report = ablation(read_features(features), tower, plan, shipped, progress=progress)
    write({**report, "features_sha256": sha256_of(features)}, chosen.out)
    _LOG.info("%s", markdown(report))


if __name__ == "__main__":
    main()
