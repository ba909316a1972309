"""Train one fusion mechanism: ``python -m inference.train.fusion --features F.npz --out F.safetensors``.

The images are real, the records are synthetic (`inference.train.records`): one for each patient, drawn anew
each epoch by whether the patient has a nodule with a mean malignancy rating above 3. Nodules rated exactly 3
are left out. `inference.train.fusion_features` writes the features; VAL patients choose the epoch and
calibrate, TEST patients are only reported. How it learns: `inference.train.fusion_learn`. A minute or two on
one CPU core.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from inference.digest import sha256_of
from inference.fusion import (
    MECHANISMS,
    SYNTHETIC_STATEMENT,
    JointEmbedding,
    Mechanism,
    TextTower,
    clip_text_tower,
)
from inference.train.fusion_data import Samples, read_features
from inference.train.fusion_learn import Course, learn, with_calibrated_logits
from inference.train.fusion_measure import Figures, Trial
from inference.train.records import POOL, RecordSource
from inference.weights import load_into, read_weights, write_weights

_LOG = logging.getLogger(__name__)

RESAMPLES = 1000


def figures(network: Mechanism, trial: Trial, *, seed: int, resamples: int) -> dict[str, dict[str, Any]]:
    """Image, record and both on TEST patients, row by row; see `inference.train.fusion_measure`."""
    measured = Figures(trial.samples, seed=seed, resamples=resamples)
    rows = {
        "image": [trial.samples.logit],
        "record": trial.alone(network),
        "image and record": trial.fused(network, trial.full),
        "image and record table": trial.fused(network, trial.full, "image table"),
        "image and record text": trial.fused(network, trial.full, "image text") if network.reads_text else [],
        "image and record without Brock": trial.fused(network, trial.plain),
        "image and record with half of its items": trial.fused(network, trial.half),
        "image and a record drawn without regard to the truth": trial.fused(network, trial.blind),
        "image and exact log likelihood ratio": trial.exact,
    }
    return {name: measured.of(logits) for name, logits in rows.items() if logits}


_CARD = """\
profile = "{profile}"

[card]
name = "Reference fusion of image and clinical record"
version = "1.1.0"
task = "record-fusion"
mechanism = "{mechanism}"
summary = \"\"\"
Corrects the image-only probability by the clinical record, as far as it is known: a table of its \\
items{text}, the range of Brock's model, weighted by the image (mechanism {number} of docs/fusion.md). \\
Without any item of a record the correction is exactly 0.\"\"\"
intended_use = \"\"\"
Research and technical integration. Not for primary diagnosis. It shows that a record can be joined; the \\
corrected probability is no estimate for patients.\"\"\"
limits = \"\"\"
{statement} The record was never seen together with an outcome. Radiologists' ratings, not histology, are \\
the truth of the images. The records are drawn from three published models added up, which no study \\
supports.\"\"\"
licence = "Apache-2.0"
training_data = \"\"\"
Features of LIDC-IDRI nodules (CC BY 3.0) by the profile's CADx, {train} of {patients} patients; one \\
synthetic record for each patient, drawn by whether a nodule is rated above 3 (inference/train/records.py). \\
Calibrated on {val} nodules of other patients. python -m inference.train.fusion --epochs {epochs} \\
--seed {seed}.\"\"\"
performance = [
{performance}
]
weights = "{weights}"
weights_sha256 = "{sha256}"
"""


def card(report: Mapping[str, Any], weights: str, profile: str) -> str:
    """The model card of a report, as TOML.

    Parameters
    ----------
    report
        From `run`.
    weights
        Name of the weights file.
    """
    of = f"{report['nodules']['test']} LIDC-IDRI nodules of {report['patients']['test']} unseen patients"
    lines = [
        f"Synthetic records, {of}, {name}: area under the ROC curve {row['auroc']:.3f} (95 % interval "
        f"{row['auroc_low']:.3f}-{row['auroc_high']:.3f}), calibration error {row['calibration_error']:.3f}, "
        f"Brier score {row['brier']:.3f}."
        for name, row in report["test"].items()
    ]
    return _CARD.format(
        profile=profile,
        mechanism=report["mechanism"],
        number=MECHANISMS[report["mechanism"]].number,
        text=", its sentence read by the text tower" if report["text_tower"] else "",
        statement=report["statement"],
        train=report["nodules"]["train"],
        patients=report["patients"]["train"],
        val=report["nodules"]["val"],
        epochs=report["epochs"],
        seed=report["seed"],
        performance="\n".join(f"  {json.dumps(line)}," for line in lines),
        weights=weights,
        sha256=report["weights_sha256"],
    )


def counts(parts: Mapping[str, Samples]) -> dict[str, dict[str, int]]:
    """Nodules, patients and malignant nodules of each part."""
    return {
        "nodules": {name: len(one.malignant) for name, one in parts.items()},
        "patients": {name: len(one.names) for name, one in parts.items()},
        "malignant": {name: int(one.malignant.sum()) for name, one in parts.items()},
    }


def run(
    parts: dict[str, Samples],
    out: Path,
    tower: TextTower | None,
    *,
    epochs: int,
    seed: int,
    mechanism: str = JointEmbedding.name,
    pool: int = POOL,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Train, write the weights and, beside them as JSON, what was measured.

    Parameters
    ----------
    parts
        From `inference.train.fusion_data.read_features`.

    Returns
    -------
    dict
        The report; it begins with `SYNTHETIC_STATEMENT`.
    """
    parts, calibration = with_calibrated_logits(parts)
    source = RecordSource(seed, pool)
    course = Course.drawn(parts, source, tower, epochs=epochs, seed=seed)
    with Progress() as bar:
        task = bar.add_task(mechanism, total=1.0)
        network = learn(
            MECHANISMS[mechanism], course, seed=seed, report=lambda share: bar.update(task, completed=share)
        )
    digest = write_weights(
        network.state_dict(), out, {"name": "fusion of image and record", "records": "synthetic"}
    )
    load_into(network, read_weights(out, digest))  # the figures are those of the weights as stored
    report = {
        "statement": SYNTHETIC_STATEMENT,
        "mechanism": mechanism,
        "weights_sha256": digest,
        "seed": seed,
        "epochs": epochs,
        "text_tower": tower is not None,
        "image_calibration": {"slope": calibration[0], "intercept": calibration[1]},
        **counts(parts),
        "test": figures(
            network, Trial.drawn(parts, source, tower, seed=seed), seed=seed, resamples=resamples
        ),
    }
    out.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def read_tower(path: Path) -> TextTower:
    """The text tower of a file of one's own making: the hash is taken of the file itself."""
    return clip_text_tower(read_weights(path, sha256_of(path)))


def main() -> None:
    """Parse the arguments, train, report, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=Path, required=True, help="NPZ of inference.train.fusion_features")
    parser.add_argument("--out", type=Path, required=True, help="safetensors; report and card go beside it")
    parser.add_argument("--mechanism", choices=MECHANISMS, default=JointEmbedding.name)
    parser.add_argument("--profile", default="reference", help="named in the card")
    parser.add_argument("--text", type=Path, help="weights of the text tower; without it no record text")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    tower = None if chosen.text is None else read_tower(chosen.text)
    report = run(
        read_features(chosen.features),
        chosen.out,
        tower,
        epochs=chosen.epochs,
        seed=chosen.seed,
        mechanism=chosen.mechanism,
    )
    words = card(report, chosen.out.name, chosen.profile)
    chosen.out.with_suffix(".toml").write_text(words, encoding="utf-8")
    _LOG.info("%s", json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
