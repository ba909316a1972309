from __future__ import annotations

import hashlib
import json
from math import nan
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.evaluate import metrics, plots
from inference.evaluate.marks import Froc, ScanMatch
from inference.evaluate.metrics import Estimate, PatientBootstrap
from inference.evaluate.report import SCHEMA, Report, Run, Section, Table, Target, plain, table_text, write
from inference.types import ModelCard

CARD = ModelCard("Model", "1.2", "task", "s", "i", "l", "licence", "data", (), "ab" * 32)
GOOD, BAD = Estimate(0.9, 0.85, 0.95, 20, 10), Estimate(0.7, 0.6, 0.8, 20, 10)


def made(source: Path) -> Report:
    return Report(
        kind="lidc-crops",
        title="A report",
        data="20 nodules",
        split="test",
        models=(CARD,),
        pipeline_version="reference-1",
        targets=(
            Target("dice", GOOD, ">=", 0.84, "readers 0.82"),
            Target("error", GOOD, "<=", 0.05),
            Target("none", Estimate(nan, nan, nan, 0, 0), ">=", 0.5),
        ),
        sections=(
            Section("Part", "Words.", Table(("a|b", "c"), ((GOOD, None), (0.5, nan))), (("p.png", "alt"),)),
        ),
        figures={"dice": {"all": GOOD, "missing": nan}, "list": (1, 2)},
        run=Run("pacs-node evaluate lidc-crops", 12.34, settings={"seed": 1}, files=(source,)),
        limits=("One limit.",),
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "slices.csv"
    path.write_text("patient\n")
    return path


def test_json_says_what_ran_on_what_and_where(source: Path, tmp_path: Path) -> None:
    facts = json.loads(write(made(source), tmp_path)[0].read_text())
    assert facts["schema"] == SCHEMA
    assert "not for primary diagnosis" in facts["notice"]
    assert facts["models"] == [
        {"name": "Model", "version": "1.2", "task": "task", "weights_sha256": "ab" * 32}
    ]
    assert facts["data"]["files"] == [
        {"name": "slices.csv", "bytes": 8, "sha256": hashlib.sha256(b"patient\n").hexdigest()}
    ]
    assert (facts["seconds"], facts["command"]) == (12.3, "pacs-node evaluate lidc-crops")
    assert facts["hardware"]["cores"] >= 1
    assert facts["software"]["numpy"] == np.__version__
    assert facts["figures"]["dice"]["missing"] is None
    assert facts["figures"]["dice"]["all"]["samples"] == 20
    assert [target["met"] for target in facts["targets"]] == [True, False, None]


def test_page_shows_targets_tables_and_pictures(source: Path, tmp_path: Path) -> None:
    words = write(made(source), tmp_path)[1].read_text()
    assert "Research use only" in words
    assert "| dice | 0.900 (0.850 to 0.950) | >= 0.84 | met | 20 of 10 | readers 0.82 |" in words
    assert "| error | 0.900 (0.850 to 0.950) | <= 0.05 | **not met** |" in words
    assert "| none | not defined |" in words
    assert "![alt](p.png)" in words
    assert "- One limit." in words
    assert "`abababababab`" in words


def test_a_target_shows_on_which_side_it_lies() -> None:
    just_below = Target("dice", Estimate(0.83962, 0.82, 0.86, 9, 9), ">=", 0.84)
    assert just_below.met is False
    assert just_below.text() == "0.8396 (0.8200 to 0.8600)"
    assert Target("dice", Estimate(0.84, 0.82, 0.86, 9, 9), ">=", 0.84).text() == "0.840 (0.820 to 0.860)"
    assert Estimate(-0.0001, -0.001, 0.0, 9, 9).text() == "0.000 (-0.001 to 0.000)"


def test_cells_do_not_break_the_table() -> None:
    text = table_text(Table(("a|b",), (("x\ny",), (None,), (nan,), (3,))))
    assert text.splitlines() == ["| a\\|b |", "| --- |", "| x y |", "| - |", "| - |", "| 3 |"]


def test_nothing_but_json_is_left() -> None:
    assert plain({"a": float("inf"), 1: [GOOD.value, (nan,)]}) == {"a": None, "1": [0.9, [None]]}


def _picture(path: Path) -> tuple[int, np.ndarray]:
    with Image.open(path) as picture:
        assert "not for primary diagnosis" in picture.info["Description"]
        return picture.width, np.asarray(picture.convert("L"))


def test_pictures_are_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.random(60) < 0.5, rng.random(60)
    caption = plots.Caption("Title", "data, n = 60")
    bootstrap = PatientBootstrap([str(n) for n in range(60)], resamples=20)
    plots.roc(tmp_path / "roc.png", caption, [plots.Line("one", *metrics.roc_points(labels, scores))])
    plots.precision_recall(
        tmp_path / "pr.png",
        caption,
        [plots.Line("one", *metrics.precision_recall_points(labels, scores))],
        prevalence=0.5,
    )
    plots.calibration(
        tmp_path / "cal.png", caption, {"one": metrics.calibration_curve(labels, scores)}, scores
    )
    plots.histogram(tmp_path / "hist.png", caption, {"one": scores, "two": scores**2}, "Dice")
    plots.bland_altman(
        tmp_path / "ba.png",
        caption,
        (scores, scores - 0.5),
        metrics.bland_altman(scores - 0.5, bootstrap),
        ("mm", "mm"),
    )
    froc = Froc([ScanMatch("a", "a", (0.9, None), (None, None), (0.5,), 0)])
    plots.froc(tmp_path / "froc.png", caption, {"one": froc.curve()})
    seen = {path.name: _picture(path) for path in tmp_path.glob("*.png")}
    assert len(seen) == 6
    for width, pixels in seen.values():
        assert width > 600
        assert 0.005 < (pixels < 128).mean() < 0.6


def test_the_same_figures_give_the_same_picture(tmp_path: Path) -> None:
    caption = plots.Caption("Title", "data")
    for name in ("one.png", "two.png"):
        plots.histogram(tmp_path / name, caption, {"x": np.linspace(0, 1, 9)}, "Dice")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
