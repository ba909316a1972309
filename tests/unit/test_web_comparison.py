"""The comparison with a prior examination on the page of a study."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from dicom_sr.compared import comparison_json
from dicom_sr.pairimages import PairImages, render_pairs
from pacs_node import jobs
from pacs_node.db import AuditEvent
from pacs_node.web.comparison import read_comparison
from tests.api_client import Program
from tests.ct_factory import make_ct_series
from tests.finding_factory import (
    make_comparison,
    make_context,
    make_findings,
    make_prior_volume,
    make_result,
    make_volume,
)
from tests.node_story import Story
from tests.web_browser import RESULT, Browser, parse, study_path

VOLUME = make_volume(make_ct_series(16, matrix=64))
FINDINGS = make_findings(VOLUME, 4)
COMPARISON = make_comparison(VOLUME, FINDINGS)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[PairImages, ...]:
    return render_pairs(VOLUME, make_prior_volume(VOLUME), COMPARISON, tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def block(pictures: tuple[PairImages, ...]) -> dict[str, Any]:
    result = make_result(VOLUME, FINDINGS, make_context(), comparison=COMPARISON)
    found: dict[str, Any] = json.loads(json.dumps(comparison_json(result, pictures)))
    return found


@pytest.fixture
def compared(
    story: Story, block: dict[str, Any], pictures: tuple[PairImages, ...], monkeypatch: pytest.MonkeyPatch
) -> Story:
    """A study whose result was compared; of the files those of the first pair are there."""
    made = story.directory / "made"
    made.mkdir()
    files = {"png": [pictures[0].picture], "stack": [stack.path for stack in pictures[0].stacks]}
    write = Story._artifact

    def artifact(told: Story, job_id: int, kind: str, given: Any) -> jobs.NewArtifact:
        if kind not in files:
            return write(told, job_id, kind, given)
        source: Path = files[kind].pop()
        (made / source.name).write_bytes(source.read_bytes())
        return jobs.NewArtifact(kind, f"made/{source.name}", "ab" * 32)

    monkeypatch.setattr(Story, "_artifact", artifact)
    story.receive().close().queue().start()
    result = copy.deepcopy(RESULT) | {"comparison": block}
    return story.finish(result=result, kinds=("seg", "sr", "json", "html", "png", "stack", "stack"))


def test_both_dates_stand_in_the_table(browser: Browser, compared: Story) -> None:
    text = parse(browser.get(study_path(compared))).text
    assert "Compared with the examination of 2025-01-06" in text
    assert "361 days before this one of 2026-01-02" in text
    assert COMPARISON.prior.study_uid in text
    assert "growing by volume: growing, doubling in less than 400 days 5.2 7.1" in text
    assert "+200 % 223" in text
    assert "Nodule 8 of 2025-01-06, right upper lobe not seen any more 5.2 not seen" in text
    assert "outside what the prior examination shows not shown 7.1" in text
    assert "overlap 0.970, correlation 0.885; the prior examination shows 100 % of these lungs" in text


def test_slices_of_both_dates_stand_side_by_side(browser: Browser, compared: Story) -> None:
    page = parse(browser.get(study_path(compared)))
    names = [tag.get("aria-label") for tag in page.all("div") if tag.get("class") == "viewer"]
    assert names == ["Slices of nodule Nodule 1 on 2025-01-06", "Slices of nodule Nodule 1 on 2026-01-02"]
    assert [tag["id"] for tag in page.all("input") if tag.get("type") == "range"] == ["prior-1", "current-1"]
    images = [tag for tag in page.all("img") if "2025-01-06" in (tag.get("alt") or "")]
    assert [tag["alt"] for tag in images] == ["Nodule Nodule 1 on 2025-01-06 and on 2026-01-02, growing"]
    assert "change-01.png" not in page.text, "it isn't listed as another picture"


def test_whoever_sees_the_prior_examination_is_recorded_for_it_too(browser: Browser, compared: Story) -> None:
    browser.get(study_path(compared))
    with browser.database.read() as session:
        rows = session.execute(select(AuditEvent).where(AuditEvent.event == "study viewed")).scalars().all()
    assert [row.study_uid for row in rows] == [compared.study_uid, COMPARISON.prior.study_uid]
    assert rows[1].objects["shown_with"] == compared.study_uid


def test_programs_get_the_same(browser: Browser, compared: Story) -> None:
    browser.now = compared.now
    found = Program(browser).ask(f"/studies/{compared.study_uid}").json()["result"]["comparison"]
    assert (found["prior_study_uid"], found["days"]) == (COMPARISON.prior.study_uid, 361)
    grown, new = found["pairs"][:2]
    assert (grown["words"], grown["volume_change"], grown["doubling_days"]) == ("growing", 2.0, 223.0)
    assert (grown["prior"]["mean_diameter_mm"], grown["current"]["mean_diameter_mm"]) == (5.2, 7.1)
    assert (new["words"], new["prior"]) == ("new", None)
    with browser.database.read() as session:
        rows = session.execute(select(AuditEvent).where(AuditEvent.event == "study viewed")).scalars().all()
    assert [row.study_uid for row in rows] == [compared.study_uid, COMPARISON.prior.study_uid]


def test_a_comparison_that_failed_says_why(browser: Browser, compared: Story) -> None:
    change(compared, {"reason": "The <b>lungs</b> differ.", "pairs": [], "sentences": ["It differs <b>."]})
    answer = browser.get(study_path(compared))
    assert "Not compared with the examination of 2025-01-06" in parse(answer).text
    assert "It differs &lt;b&gt;." in answer.text


def test_a_block_that_names_no_study_is_none(block: dict[str, Any]) -> None:
    for prior in (None, {}, 5, {"study_uid": "1.2.3<b>"}, {"study_uid": "1" * 65}):
        assert read_comparison(block | {"prior": prior}) is None
    assert read_comparison({}) is None


ODD: tuple[dict[str, Any], ...] = (
    {"pairs": 5},
    {"pairs": [5, None, {}]},
    {"pairs": [{"current": {"tracking_id": "N1", "measurements": 3}, "prior": [], "stacks": {"prior": 1}}]},
    {"pairs": [{"prior": {"tracking_id": "N1"}, "volume_change": "x", "doubling_days": float("inf")}]},
    {"registration": {"overlap": "x"}, "days": "x", "date": None, "sentences": [1]},
    {"pairs": [{"picture": "../../node.db", "stacks": {"current": {"file": "../../node.db"}}}]},
)


def test_an_odd_block_breaks_nothing(browser: Browser, compared: Story) -> None:
    (path,) = compared.directory.glob("results/*/result.json")
    whole = path.read_text()
    for changes in ODD:
        path.write_text(whole)
        change(compared, changes)
        answer = browser.get(study_path(compared))
        assert answer.status_code == 200, changes
        assert "with the examination of 2025-01-06" in parse(answer).text
        assert "node.db" not in answer.text


def change(story: Story, changes: dict[str, Any]) -> None:
    (path,) = story.directory.glob("results/*/result.json")
    result = json.loads(path.read_text())
    result["comparison"] |= changes
    path.write_text(json.dumps(result))


def test_every_field_of_the_block_is_read(block: dict[str, Any]) -> None:
    found = read_comparison(block)
    assert found is not None
    first, *_, last = found.pairs
    assert (first.marked, first.notable, first.unseen) == (True, True, "not seen")
    assert (last.name, last.marked) == ("Nodule 7", False)
    assert [pair.prior_stack is None for pair in found.pairs] == [
        False,
        False,
        True,
        False,
        False,
        False,
        False,
    ]
