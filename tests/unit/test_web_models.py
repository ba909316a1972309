"""The models page: cards, use, drift, agreement, and what can be taken out."""

from __future__ import annotations

import csv
import io
import json
import re
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from sqlalchemy import select

from inference.registry import load_pipeline
from pacs_node.config_drift import DriftSettings
from pacs_node.db import AuditEvent, Database, Job
from pacs_node.db_accounts import Role
from pacs_node.db_feedback import DriftReading, RejectReason, VerdictKind
from pacs_node.drift import Drift
from pacs_node.feedback import NewVerdict, record
from pacs_node.summaries import Summaries
from pacs_node.web import plots
from tests.node_story import Story, analysed
from tests.web_browser import RESULT, Browser, make_settings, parse


@pytest.fixture
def used(browser: Browser, story: Story) -> Browser:
    """A node that has analysed a study with the reference models; one finding was judged."""
    cards = [
        {"name": card.name, "version": card.version, "weights_sha256": card.weights_sha256}
        for card in load_pipeline("reference").cards
    ]
    result: dict[str, Any] = deepcopy(RESULT) | {"models": cards}
    result["findings"][0]["tracking_uid"] = "2.25.1"
    analysed(story, result)
    Summaries(story.database, story.directory).tick()
    with story.database.write() as session:
        job = session.execute(select(Job)).scalar_one()
        new = NewVerdict("2.25.1", VerdictKind.REJECTED, RejectReason.VESSEL, text="=1+1")
        record(session, job, new, at=story.now, actor="=cmd()")
    Drift(story.database, DriftSettings(), lambda: story.now).tick()
    browser.role, browser.now = Role.VIEWER, story.now
    return browser


def test_cards_use_drift_and_agreement(used: Browser) -> None:
    page = parse(used.get("/models")).text
    pipeline = load_pipeline("reference")
    for card in pipeline.cards:
        assert card.name in page
        assert card.licence in page
        assert card.intended_use in page
        assert (card.weights_sha256 or "") in page
        for measured in card.performance:
            assert " ".join(measured.split()) in page
    assert page.count("Studies 1, the first") == len(pipeline.cards)
    assert "too few studies" in page
    assert "100 % 21 % to 100 %, n 1" in page
    assert "classical-1.0+abcdef" in page


def test_an_empty_node(browser: Browser) -> None:
    page = parse(browser.get("/models")).text
    assert "No analysis has ended yet." in page
    assert "Nobody has judged a finding yet." in page
    assert "Nothing was compared yet." in page


def test_a_pipeline_that_can_not_be_used_is_said_to_be_one(database: Database, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, pipeline={"profile": "full", "models": str(tmp_path / "none")})
    page = parse(Browser(database, settings).get("/models"))
    assert "The configured pipeline can't be used." in page.text
    assert "needs a folder of published models" in page.text


def test_drift_is_on_the_overview_too(used: Browser, story: Story) -> None:
    assert "drifted" not in parse(used.get("/")).text
    with story.database.write() as session:
        row = session.execute(select(DriftReading)).scalar_one()
        comparison = dict(row.content["comparisons"][0])
        comparison |= {"dimension": "scanner", "group": "<b>Scanner", "alarm": True, "distance": 0.4}
        row.content = {**row.content, "comparisons": [{**comparison, "chance": 0.001}]}
    for path in ("/", "/models"):
        response = used.get(path)
        assert "has drifted" in parse(response).text
        assert "<b>Scanner" not in response.text


def test_plots_are_well_formed_and_need_no_style(used: Browser) -> None:
    text = used.get("/models").text
    drawn = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawn) == 3
    for svg in drawn:
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        assert root.find("title") is not None
        assert list(root.iter("rect")) != []
    assert " style=" not in text


def test_plots_of_nothing_and_of_hostile_text() -> None:
    assert "<rect" not in plots.bars("a", "t", [], [])
    assert "<rect" not in plots.shares("a", "t", ["w"], [(0, 0)], ["x", "y"])
    drawn = plots.bars("a", "<script>", ["</svg>"], [0.3])
    assert ET.fromstring(drawn).findtext("title") == "<script>"
    heights = [float(h) for h in re.findall(r'height="([0-9.]+)"', plots.bars("a", "t", "ab", [7.0, 3.5]))]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2)


@pytest.mark.parametrize("what", ["agreement", "verdicts"])
def test_what_is_taken_out(used: Browser, story: Story, what: str) -> None:
    rows = json.loads(used.get(f"/models/{what}?format=json").text)
    lines = list(csv.DictReader(io.StringIO(used.get(f"/models/{what}?format=csv").text)))
    assert len(rows) == len(lines) == 1
    assert set(rows[0]) == set(lines[0])
    if what == "agreement":
        assert (rows[0]["rejected"], rows[0]["rejected_n"], rows[0]["false_positives"]) == (1.0, 1, 1.0)
        assert story.study_uid not in str(rows)
    else:
        assert (rows[0]["study_uid"], rows[0]["reason"]) == (story.study_uid, "vessel")
        assert lines[0]["actor"] == "'=cmd()"
        assert "=1+1" not in str(rows)
    assert used.get(f"/models/{what}?format=xml").status_code == 400
    with story.database.read() as session:
        exported = session.execute(select(AuditEvent).where(AuditEvent.event == "verdicts exported")).all()
    assert len(exported) == (2 if what == "verdicts" else 0)


def test_weeks_without_a_study_are_there(used: Browser, story: Story) -> None:
    used.now = story.now + timedelta(weeks=2)
    page = parse(used.get("/models")).text
    assert "2026-03-16 0 0 \u2013 0" in page
    assert "2026-03-02 1 0 1.00 0" in page
