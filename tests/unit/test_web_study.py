"""The nodules of the study page: slices to scroll through, and the sentences behind the features."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from dicom_sr.stacks import render_stacks
from pacs_node import jobs
from pacs_node.db import AuditEvent
from pacs_node.web import app as web_app
from tests.ct_factory import make_ct_series
from tests.finding_factory import make_finding, make_volume
from tests.node_story import Story
from tests.web_browser import RESULT, Browser, parse, study_path

PAIRS = [
    {"feature": "spiculation", "positive": ["It is spiculated.", "Spicules."], "negative": ["It is smooth."]},
    {"feature": "margin", "positive": ["Sharp."], "negative": ["Blurred."]},
]
DESCRIPTORS = [
    {"name": "spiculation", "value": 0.31, "unit": "1", "source": "sentence pair"},
    {"name": "nodule", "value": 0.94, "unit": "1", "source": "structure sentence"},
    {"name": "vessel", "value": 0.06, "unit": "1", "source": "structure sentence"},
    {"name": "sphericity", "value": 0.5, "unit": "1", "source": "IBSI QCFX"},
]


@pytest.fixture
def scrolled(story: Story, monkeypatch: pytest.MonkeyPatch) -> Story:
    """A study whose result has the slices of its nodule, as a case writes them."""
    volume = make_volume(make_ct_series(16, matrix=64))
    (stack,) = render_stacks(volume, [make_finding(volume)], story.directory / "made")
    result = copy.deepcopy(RESULT)
    result["findings"][0] |= {"stack": stack.describe(), "descriptors": DESCRIPTORS}
    result["sentence_pairs"] = PAIRS
    write = Story._artifact

    def artifact(told: Story, job_id: int, kind: str, given: Any) -> jobs.NewArtifact:
        if kind != "stack":
            return write(told, job_id, kind, given)
        return jobs.NewArtifact(kind, f"made/{stack.path.name}", "ab" * 32)

    monkeypatch.setattr(Story, "_artifact", artifact)
    story.receive().close().queue().start()
    return story.finish(result=result, kinds=("seg", "sr", "json", "html", "png", "stack"))


def viewers(browser: Browser, story: Story) -> list[dict[str, str | None]]:
    page = parse(browser.get(study_path(story)))
    return [tag for tag in page.all("div") if tag.get("class") == "viewer"]


def test_slices_are_there_for_the_script_and_asked_for_only_by_it(browser: Browser, scrolled: Story) -> None:
    (viewer,) = viewers(browser, scrolled)
    assert "hidden" in viewer, "without the script the key image stands alone"
    slices = json.loads(viewer["data-slices"] or "")
    assert [index for index, _, _ in slices] == sorted((one[0] for one in slices), reverse=True)
    assert any(outline for _, _, outline in slices)
    assert viewer["data-total"] == "133"
    document = parse(browser.get(study_path(scrolled)))
    ranges = [field["id"] for field in document.all("input") if field.get("type") == "range"]
    assert ranges == ["slice-1"]
    assert set(ranges) <= {label["for"] for label in document.all("label")}
    page = browser.get(study_path(scrolled)).text
    assert f'href="{viewer["data-src"]}"' not in page
    assert "/static/viewer.js" in page


def test_a_look_at_the_slices_is_an_event_of_its_own(browser: Browser, scrolled: Story) -> None:
    (viewer,) = viewers(browser, scrolled)
    answer = browser.get(viewer["data-src"] or "")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
    assert answer.content[:4] == b"RIFF"
    with browser.database.read() as session:
        rows = session.execute(select(AuditEvent).where(AuditEvent.event == "result viewed")).scalars().all()
    assert [(row.study_uid, row.objects["kind"]) for row in rows] == [(scrolled.study_uid, "stack")]


def test_the_sentences_stand_beside_the_feature(browser: Browser, scrolled: Story) -> None:
    text = parse(browser.get(study_path(scrolled))).text
    assert "spiculation marked 80 % It is spiculated. 31 % It is smooth. 69 %" in text
    assert "structures: nodule 94 %, vessel 6 %." in text
    assert "Sharp." not in text, "a pair without a number of this nodule tells nothing"


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 0},
        {"columns": True},
        {"key": 99},
        {"key": -1},
        {"pixel_mm": [1.0]},
        {"pixel_mm": [float("inf"), 1.0]},
        {"windows": []},
        {"slices": [{"index": 1, "z_mm": 2.0, "outline": "M0 0h1' onload='x"}]},
        {"slices": [{"index": "1", "z_mm": 2.0, "outline": ""}]},
        {"slices": [{"index": 1, "z_mm": float("nan"), "outline": ""}]},
        {"slices": 5},
        {"file": "../../node.db"},
        {"file": "nodule-09-slices.webp"},
    ],
)
def test_an_odd_stack_is_left_out(browser: Browser, scrolled: Story, changes: dict[str, Any]) -> None:
    (path,) = scrolled.directory.glob("results/*/result.json")
    result = json.loads(path.read_text())
    result["findings"][0]["stack"] |= changes
    path.write_text(json.dumps(result))
    assert viewers(browser, scrolled) == []
    assert "Nodule N1" in parse(browser.get(study_path(scrolled))).text


def test_the_script_needs_nothing_that_the_policy_forbids() -> None:
    """No fetch, no inline style, nothing that is evaluated: the policy allows none of them."""
    script = (Path(web_app.__file__).parent / "static" / "viewer.js").read_text()
    assert not re.search(r"fetch|XMLHttp|eval|innerHTML|\.style|http", script)
