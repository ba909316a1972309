from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference.analyse import analyse
from inference.errors import ReasonCode, UnsuitableSeriesError
from inference.evaluate.lidc import annotation_database, consensus, dice, reader_masks
from inference.evaluate.phantom import compare, summary, wilson
from inference.load import load_series
from inference.phantom import Attachment, NoduleSpec, Phantom, make_phantom
from inference.registry import Pipeline, load_pipeline
from inference.types import Attenuation, Result, Volume

SPECS = (
    NoduleSpec(20.0),
    NoduleSpec(16.0, Attenuation.GROUND_GLASS),
    NoduleSpec(14.0, attachment=Attachment.JUXTAPLEURAL),
)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline("classical")


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(7, (100, 200, 200), (3.0, 1.76, 1.76), SPECS)


@pytest.fixture(scope="module")
def result(phantom: Phantom, pipeline: Pipeline) -> Result:
    return analyse(phantom.volume, pipeline, input_digest="digest")


def test_drawn_nodules_are_found_with_side_type_and_size(phantom: Phantom, result: Result) -> None:
    case = compare(phantom, result)
    assert [n.found for n in case.nodules] == [True, True, True]
    assert case.false_positives <= 2
    assert all(n.dice > 0.75 for n in case.nodules)
    assert all(n.attenuation_right for n in case.nodules)
    for nodule in phantom.nodules:
        hit = next(f for f in result.findings if (phantom.truth[f.slices()][f.mask] == nodule.label).any())
        assert hit.site.laterality is nodule.laterality
        if nodule.attachment is Attachment.ISOLATED:  # the pleura cuts the other one
            assert hit.measurements.mean_diameter_mm == pytest.approx(nodule.diameter_mm, abs=2.5)


def test_result_keeps_its_promises(phantom: Phantom, pipeline: Pipeline, result: Result) -> None:
    assert result.series_uid == phantom.volume.series_uid
    assert result.pipeline_version == pipeline.version
    assert result.cards == pipeline.cards
    chances = [f.detection_probability for f in result.findings]
    assert chances == sorted(chances, reverse=True)
    assert [f.tracking_id for f in result.findings] == [f"N{n}" for n in range(1, len(chances) + 1)]
    assert len({f.tracking_uid for f in result.findings}) == len(chances)
    for finding in result.findings:
        y, x = (int(v) for v in finding.key_point)
        inside = np.zeros(phantom.volume.array.shape, np.bool_)
        inside[finding.slices()] = finding.mask
        assert inside[finding.key_slice, y, x]
        assert finding.key_mask().sum() == finding.mask.sum(axis=(1, 2)).max()
        assert finding.malignancy is None
        assert finding.features == ()
        assert finding.site.lobe is None


def test_same_input_gives_the_same_result_and_progress_names_the_stages(
    phantom: Phantom, pipeline: Pipeline, result: Result
) -> None:
    seen: list[tuple[str, float]] = []
    again = analyse(phantom.volume, pipeline, input_digest="digest", progress=lambda *step: seen.append(step))
    for first, same in zip(result.findings, again.findings, strict=True):
        assert np.array_equal(first.mask, same.mask)
        assert first.measurements == same.measurements
        assert first.tracking_uid == same.tracking_uid
    assert [stage for stage, _ in seen] == ["lungs", "nodules", "measurements", "done"]
    assert [share for _, share in seen] == sorted(share for _, share in seen)
    assert seen[-1][1] == 1.0


def test_another_digest_another_identity_and_what_limits_the_result_is_said(
    phantom: Phantom, pipeline: Pipeline, result: Result
) -> None:
    card = pipeline.cards[0]
    one = replace(card, parameters={**card.parameters, "max_findings": 1.0})
    other = analyse(phantom.volume, replace(pipeline, cards=(one,)), input_digest="another")
    assert len(other.findings) == 1
    assert np.array_equal(other.findings[0].mask, result.findings[0].mask)
    assert other.findings[0].tracking_uid != result.findings[0].tracking_uid
    assert any(sentence.startswith("Slices of 3 mm") for sentence in other.warnings)
    assert any("limit of findings" in sentence for sentence in other.warnings)


def test_a_chest_without_nodules_is_a_result(pipeline: Pipeline) -> None:
    empty = make_phantom(8, (100, 200, 200), (3.0, 1.76, 1.76), ())
    assert len(analyse(empty.volume, pipeline, input_digest="d").findings) <= 2


def test_no_chest_is_refused(phantom: Phantom, pipeline: Pipeline) -> None:
    water = replace(phantom.volume, array=np.maximum(phantom.volume.array, 0))
    with pytest.raises(UnsuitableSeriesError) as refusal:
        analyse(water, pipeline, input_digest="d")
    assert refusal.value.code is ReasonCode.NOT_CHEST


def test_figures_of_a_case_add_up(phantom: Phantom, result: Result) -> None:
    report = summary([compare(phantom, result), compare(phantom, replace(result, findings=()))])
    sensitivity = report["sensitivity"]
    assert isinstance(sensitivity, dict)
    assert sensitivity["6 mm and more"]["found"] == 3
    assert sensitivity["6 mm and more"]["of"] == 6
    assert isinstance(report["missed"], list)
    assert len(report["missed"]) == 3
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-3)


def real_volume(real_ct: Callable[[str], Path], name: str) -> Volume:
    return load_series(sorted(real_ct(name).rglob("*.dcm"))).volume


@pytest.mark.shared_data
@pytest.mark.slow
def test_mass_of_lidc_0001_against_its_four_readers(
    real_ct: Callable[[str], Path], shared_data: Path, pipeline: Pipeline
) -> None:
    volume = real_volume(real_ct, "LIDC-IDRI-0001")
    result = analyse(volume, pipeline, input_digest="d")
    with annotation_database(shared_data / "lidc" / "lidc_annotations.sqlite.xz") as connection:
        masks = reader_masks(connection, "LIDC-IDRI-0001", volume)
    assert len(masks) == 4
    truth = consensus(masks)
    ours = np.zeros(truth.shape, np.bool_)
    first = result.findings[0]
    ours[first.slices()] = first.mask
    assert dice(ours, truth) > 0.8
    assert first.attenuation is Attenuation.SOLID
    assert len(result.findings) <= 6


@pytest.mark.shared_data
@pytest.mark.slow
def test_adenocarcinoma_of_lung_dx_a0001_lies_in_its_boxes(
    real_ct: Callable[[str], Path], pipeline: Pipeline
) -> None:
    folder = real_ct("Lung_Dx-A0001")
    volume = real_volume(real_ct, "Lung_Dx-A0001")
    result = analyse(volume, pipeline, input_digest="d")
    first = result.findings[0]
    uid = volume.frames[first.key_slice].sop_instance_uid
    (annotation,) = folder.rglob(f"{uid}.xml")
    box = ET.parse(annotation).getroot().find("object/bndbox")
    assert box is not None
    low_x, low_y, high_x, high_y = (int(box.findtext(k, "")) for k in ("xmin", "ymin", "xmax", "ymax"))
    y, x = np.argwhere(first.key_mask()).mean(axis=0) + np.array(first.origin[1:])
    assert low_x < x < high_x
    assert low_y < y < high_y
    assert any(sentence.startswith("Slices of 5 mm") for sentence in result.warnings)
    assert len(result.findings) <= 6


@pytest.mark.shared_data
@pytest.mark.slow
def test_spiculated_tumour_of_c3n_00247_is_found(real_ct: Callable[[str], Path], pipeline: Pipeline) -> None:
    volume = real_volume(real_ct, "C3N-00247")
    result = analyse(volume, pipeline, input_digest="d")
    centres = [
        volume.index_to_lps(np.argwhere(f.mask).mean(axis=0) + np.array(f.origin)) for f in result.findings
    ]
    gaps = [float(np.linalg.norm(centre - (-83.0, -195.0, -195.0))) for centre in centres]
    assert min(gaps) < 8
    assert 1 <= len(result.findings) <= 6


@pytest.mark.shared_data
@pytest.mark.slow
def test_memory_of_a_whole_analysis_stays_below_four_gigabytes(real_ct: Callable[[str], Path]) -> None:
    script = """
import json, resource, sys
from pathlib import Path
from inference.analyse import analyse
from inference.load import load_series
from inference.registry import load_pipeline
volume = load_series(sorted(Path(sys.argv[1]).rglob("*.dcm"))).volume
found = analyse(volume, load_pipeline(), input_digest="d").findings
sys.stdout.write(json.dumps([len(found), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))
"""
    folder = real_ct("LIDC-IDRI-0001")
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True, timeout=240
    )
    findings, gigabytes = json.loads(done.stdout)
    assert findings >= 1
    assert gigabytes < 4.0
