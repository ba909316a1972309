from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from inference.evaluate import cases, crop_models, froc, lidc_prompts, phantom
from inference.evaluate.case_run import run_case
from inference.evaluate.lidc_run import Collection, Named
from inference.evaluate.marks import Mark, Sphere
from inference.evaluate.report import Options
from inference.insertion import Background
from inference.lungs import find_lungs
from inference.phantom import NoduleSpec, make_phantom, write_phantom
from inference.registry import load_pipeline
from inference.types import Volume
from pacs_node.cli import main
from pacs_node.evaluate_cli import evaluate
from tests.lidc_collection import collection, write_collection
from tests.unit.test_evaluate_lidc import CARD, Oracle

REPOSITORY = Path(__file__).resolve().parents[2]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def strips(images: Path, masks: Path, table: Path) -> tuple[str | Path, ...]:
    return "--images", images, "--masks", masks, "--table", table


def test_lidc_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, masks, table = write_collection(tmp_path, collection(12))
    monkeypatch.setattr(crop_models, "load_crop_models", lambda *_asked: Named(Oracle(), (CARD,), "oracle-1"))
    monkeypatch.setattr(lidc_prompts, "MOST_PAIRS", 3)
    out = tmp_path / "made" / "here"
    drawn = ("--limit", "8", "--seed", "5", "--resamples", "10")
    answer = run("lidc-crops", *strips(images, masks, table), "--out", out, *drawn)
    assert answer.exit_code == 0, answer.output
    assert "Research use only" in answer.output
    assert "target >= 0.84: met" in answer.output
    facts = json.loads((out / "report.json").read_text())
    assert facts["settings"]["limit"] == 8
    assert facts["settings"]["seed"] == 5
    assert facts["figures"]["segmentation"]["centred"]["dice"]["value"] == 1


def test_a_profile_without_such_models_is_said_in_one_line(tmp_path: Path) -> None:
    files = strips(*write_collection(tmp_path, collection(2)))
    answer = run("lidc-crops", *files, "--out", tmp_path / "o", "--profile", "classical")
    assert answer.exit_code == 1
    assert answer.output.startswith("Error: profile classical has no models")
    assert not (tmp_path / "o").exists()


def test_wrong_input_is_said_in_one_line(tmp_path: Path) -> None:
    manifest = tmp_path / "cases.json"
    manifest.write_text("[]")
    answer = run("cases", "--manifest", manifest, "--out", tmp_path / "o", "--profile", "classical")
    assert answer.exit_code == 1
    assert answer.output.strip() == 'Error: cases.json: "schema" must be "pacs-node.cases.v1"'
    nothing = run("example-cases", "--data", tmp_path, "--out", tmp_path / "o")
    assert nothing.exit_code == 1
    assert "No such file" in nothing.output
    usage = run(
        "inserted",
        *[x for n in ("images", "masks", "table") for x in (f"--{n}", manifest)],
        "--out",
        tmp_path,
    )
    assert usage.exit_code == 2
    assert "--manifest or --phantoms" in usage.output


def test_cases_and_phantom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = make_phantom(7, (75, 128, 128), (4.0, 2.75, 2.75), (NoduleSpec(24.0),))
    write_phantom(drawn, tmp_path / "one")
    lesion = {"centre_lps": list(drawn.nodules[0].centre_lps), "diameter_mm": 24.0}
    manifest = tmp_path / "cases.json"
    manifest.write_text(
        json.dumps(
            {"schema": "pacs-node.cases.v1", "cases": [{"name": "one", "series": "one", "lesions": [lesion]}]}
        )
    )
    monkeypatch.setattr(cases.evaluate, "__kwdefaults__", {"run": run_case})  # no process for each case
    answer = run(
        "cases", "--manifest", manifest, "--out", tmp_path / "c", "--profile", "classical", "--resamples", "5"
    )
    assert answer.exit_code == 0, answer.output
    assert "annotated lesions found: 1.000" in answer.output
    monkeypatch.setattr(phantom, "make_phantom", lambda _seed, nodules: replace(drawn, seed=len(nodules)))
    answer = run(
        "phantom", "--cases", "1", "--out", tmp_path / "p", "--profile", "classical", "--resamples", "5"
    )
    assert answer.exit_code == 0, answer.output
    facts = json.loads((tmp_path / "p" / "report.json").read_text())
    assert facts["figures"]["cases"] == 1
    assert facts["figures"]["froc_of_findings"]["found"]["value"] == 1


@pytest.fixture(scope="module")
def background() -> Background:
    volume = make_phantom(7, (75, 128, 128), (4.0, 2.75, 2.75), ()).volume
    return Background("chest", volume, find_lungs(volume), (((0.0, 0.0, 0.0), 20.0),))


def test_inserted_nodules_are_the_truth_of_the_curve(background: Background, tmp_path: Path) -> None:
    crops = Collection(*write_collection(tmp_path, collection(16))).read(0)
    make = froc.insertion_cases([background], froc.implants_of(crops))
    one, again, other = make(3), make(3), make(4)
    assert np.array_equal(one.volume.array, again.volume.array)
    assert one.lesions == again.lesions != other.lesions
    assert one.excluded == (Sphere((0.0, 0.0, 0.0), 40.0),)
    assert not np.array_equal(one.volume.array, background.volume.array)

    def mark(volume: Volume) -> Sequence[Mark]:
        case = one if np.array_equal(volume.array, one.volume.array) else other
        false = Mark((0.0, 0.0, 900.0), 0.5)
        return [
            false,
            Mark((1.0, 0.0, 0.0), 0.9),
            *(Mark(lesion.centre_lps, 0.8) for lesion in case.lesions[1:]),
        ]

    options = Options(tmp_path, "c", resamples=10)
    found = froc.evaluate(make, (3, 4), load_pipeline("classical"), mark, options, data="test").figures
    missed = 2 / (len(one.lesions) + len(other.lesions))
    assert found["mean_sensitivity"].value == pytest.approx(1 - missed)
    assert found["false_per_scan_of_all_marks"].value == 1


def test_nothing_to_insert_is_refused(background: Background) -> None:
    with pytest.raises(ValueError, match="0 backgrounds and 0 nodules"):
        froc.insertion_cases([], [])


def test_the_document_names_every_verb_and_only_options_that_exist() -> None:
    text = (REPOSITORY / "docs" / "evaluation.md").read_text(encoding="utf-8").replace("\\\n", " ")
    used: dict[str, set[str]] = {}
    for verb, rest in re.findall(r"pacs-node evaluate ([a-z0-9-]+)([^`\n]*)", text):
        used.setdefault(verb, set()).update(re.findall(r"--[a-z-]+", rest))
    assert set(used) == set(evaluate.commands)
    for verb, options in used.items():
        known = {option for parameter in evaluate.commands[verb].params for option in parameter.opts}
        assert options <= known, verb
