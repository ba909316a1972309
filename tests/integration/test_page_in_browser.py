"""The page as people meet it: in headless Chromium, by mouse and by keyboard, wide and on a phone.

With ``PACS_NODE_SCREENSHOTS=DIR`` a picture of each page is kept, with ``PACS_NODE_AXE=long`` all rules of
axe are asked in each of the four looks of a page.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import BrowserContext

from pacs_node import accounts
from pacs_node.accounts import Passwords
from pacs_node.config import Settings
from pacs_node.db import Database, sqlite_url
from pacs_node.db_accounts import Role
from pacs_node.states import DeliveryState
from pacs_node.web.app import make_app
from tests.conftest import find_free_port
from tests.node_story import Story, analysed
from tests.page_browser import LOOKS, PHONE, WIDE, Visitor, chromium, served
from tests.web_browser import CHEAP, PASSWORD, RESULT, make_settings, study_path

pytestmark = [pytest.mark.peer("chromium"), pytest.mark.timeout(300)]

NASTY = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>\"'\x1b[31m\u202e\x07"
#: nothing that a person can open, but shown by a browser as it is
NO_PAGES = ("/health/", "/metrics", "/audit/export", "/oidc", "/api")


#: a nodule that has grown, with slices of none of the two dates
COMPARED: dict[str, Any] = {
    "prior": {"study_uid": "1.2.3.4", "series_uid": "1.2.3.5", "date": "2025-01-06"},
    "date": "2026-01-02",
    "days": 361,
    "sentences": ["Compared with the examination of 2025-01-06, 361 days before this one of 2026-01-02."],
    "registration": {"overlap": 0.97, "correlation": 0.89, "common_share": 1.0},
    "pairs": [
        {
            "standing": "seen in both examinations",
            "words": "growing",
            "volume_words": "growing, doubling in less than 400 days",
            "current": {"number": 1, "tracking_id": "N1", "measurements": {"mean_diameter_mm": 7.1}},
            "prior": {"number": None, "tracking_id": "N4", "measurements": {"mean_diameter_mm": 5.2}},
            "volume_change": 2.0,
            "doubling_days": 223.0,
            "picture": "nodule-01.png",
        }
    ],
}


def nasty(value: Any) -> Any:
    """The same result with every text a hostile one."""
    if isinstance(value, dict):
        return {key: value[key] if key == "status" else nasty(value[key]) for key in value}
    if isinstance(value, list):
        return [nasty(item) for item in value]
    return f"{value}{NASTY}" if isinstance(value, str) else value


@dataclass
class Node:
    """A node that has received studies."""

    settings: Settings
    database: Database
    #: analysed and verified
    good: Story
    #: its sender, its results and its texts are hostile
    evil: Story
    origin: str = ""


def fill(database: Database, directory: Path) -> Node:
    """Let some studies come, in every state that a person asks about."""
    now = datetime.now(UTC) - timedelta(minutes=30)
    good = analysed(Story(database, directory, "good", now), RESULT | {"comparison": COMPARED}).deliver(
        DeliveryState.COMMITTED
    )
    texts: dict[str, Any] = dict.fromkeys(
        ("patient_id", "patient_name", "accession_number", "study_date", "description", "series_description"),
        NASTY,
    )
    evil = Story(database, directory, "evil", now, modality=NASTY, calling_ae=NASTY, **texts)
    analysed(evil, nasty(RESULT)).deliver(DeliveryState.FAILED, status=NASTY)
    evil.refuse_association(NASTY, NASTY, NASTY)
    refused = Story(database, directory, "refused", now, patient_id="PID-3", patient_name="Roe^Richard")
    reason = ("TOO_THICK", "Slices are 8.0 mm thick.")
    refused.receive(2).close().set_aside(1, *reason).queue(refusal=reason).start().finish(
        reason=reason, kinds=("sr",)
    )
    Story(database, directory, "queued", now, patient_id="PID-4").receive(2).close().queue()
    settings = make_settings(directory, web={"port": find_free_port()})
    return Node(settings, database, good, evil)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    directory = tmp_path_factory.mktemp("node")
    database = Database(sqlite_url(directory))
    database.upgrade()
    made = fill(database, directory)
    hashed = accounts.hashed(Passwords(CHEAP), "root", PASSWORD, one_time=False)
    with database.write() as session:
        accounts.add(session, "root", Role.ADMINISTRATOR, hashed, at=made.good.now, actor="test")
    with served(made.settings) as made.origin:
        yield made
    database.dispose()


@pytest.fixture(scope="module")
def context() -> Iterator[BrowserContext]:
    with chromium() as found:
        yield found


@pytest.fixture
def visitor(node: Node, context: BrowserContext) -> Iterator[Visitor]:
    page = context.new_page()
    kept = os.environ.get("PACS_NODE_SCREENSHOTS")
    somebody = Visitor(page, node.origin, Path(kept) if kept else None)
    somebody.look("light", WIDE)
    if not context.cookies():
        somebody.log_in("root", PASSWORD)
    yield somebody
    assert somebody.complaints == []
    page.close()


@pytest.fixture(scope="module")
def paths(node: Node) -> list[str]:
    """Every page that a person can open, with a study of each kind and two errors."""
    fixed = [rule.path for rule in make_app(node.database, node.settings).state.rules if rule.method == "GET"]
    found = [path for path in fixed if "{" not in path and not path.startswith(NO_PAGES)]
    assert {"/", "/studies", "/audit", "/users"} <= set(found)
    return [
        *found,
        study_path(node.good),
        study_path(node.evil),
        "/studies?q=jane&state=analysed&mm=6&sort=patient",
        "/studies?since=never",
        "/studies?state=cancelled",
        "/audit?event=job",
        "/nothing",
    ]


def test_no_page_has_a_barrier_or_runs_what_came_with_an_image(visitor: Visitor, paths: list[str]) -> None:
    """Axe in light and dark, wide and on a phone; no scrolling to the side; no script of others."""
    found = []
    for number, path in enumerate(paths):
        visitor.open(path)
        for scheme, size, rules in LOOKS:
            visitor.look(scheme, size)
            where = f"{path} {scheme} {size[0]}"
            if rules is not None:
                found += [f"{where}: {barrier}" for barrier in visitor.barriers(*rules)]
            if visitor.overflows():
                found.append(f"{where}: wider than the window")
            name = path.partition("?")[0].strip("/").replace("/", "-") or "overview"
            visitor.shoot(f"{number:02d}-{name[:20]}-{scheme}-{size[0]}")
        if visitor.page.evaluate("window.hacked"):
            found.append(f"{path}: a script of a sender ran")
    assert found == []


def test_what_a_sender_wrote_is_shown_as_text(visitor: Visitor, node: Node) -> None:
    visitor.open(study_path(node.evil))
    assert visitor.says("<script>window.hacked=1</script>", "[U+001B]", "[U+202E]", "[U+0007]")
    assert visitor.page.locator("main img[src=x]").count() == 0


def test_every_control_is_reached_by_keyboard(visitor: Visitor, node: Node, paths: list[str]) -> None:
    for path in ("/", "/studies", study_path(node.good), "/audit", "/users"):
        visitor.open(path)
        visitor.page.keyboard.press("Tab")
        assert visitor.page.evaluate("document.activeElement.className") == "skip", path
        visitor.page.keyboard.press("Enter")
        assert visitor.page.evaluate("location.hash") == "#main", path
        assert visitor.unreached() == [], path


def test_questions_are_answered_in_three_clicks(visitor: Visitor, node: Node) -> None:
    """What happened to X and when, which model, who looked, is all delivered, is all well, does it drift."""
    visitor.open("/")
    assert visitor.says("Studies today", "Deliveries", "Disk", "Alarm:")  # all delivered, all well: no click
    visitor.clicks = 0
    visitor.page.locator("header input[name=q]").fill("PID-1")
    visitor.click("button", "Search")
    visitor.click("link", "Doe, Jane")
    assert visitor.clicks == 2
    assert visitor.says(
        "What happened", "analysed", "What made this result", "Detector", "ab" * 32, "verified"
    )
    visitor.click("link", "Who looked at it")
    assert visitor.clicks == 3
    assert visitor.says("study viewed", "user:root", node.good.study_uid)
    visitor.open("/")
    visitor.page.get_by_role("navigation").get_by_role("link", name="Models").click()
    visitor.page.wait_for_url("**/models")
    assert visitor.says("rift")


def test_times_are_those_of_the_viewer_with_utc_on_hover(visitor: Visitor, node: Node) -> None:
    visitor.open(study_path(node.good))
    shown = visitor.page.locator("#timeline ~ .scroll time").first
    at = datetime.fromisoformat(shown.get_attribute("datetime") or "")
    assert shown.get_attribute("title") == f"{at:%Y-%m-%d %H:%M:%S} UTC"
    local = at.astimezone(ZoneInfo("America/New_York"))
    assert f"{local:%H:%M:%S}" in shown.inner_text()
    assert visitor.page.locator("#zone").inner_text() == "America/New_York"


def test_the_list_keeps_its_filter_while_it_is_sorted(visitor: Visitor) -> None:
    visitor.open("/studies")
    visitor.page.locator("main select[name=state]").select_option("not analysed")
    visitor.click("button", "Show")
    assert visitor.says("1 study.", "Roe, Richard", "TOO_THICK")
    visitor.page.locator("thead").get_by_role("link", name="Patient").click()
    visitor.page.wait_for_url("**sort=patient**")
    assert "state=not+analysed" in visitor.page.url
    assert visitor.page.locator("th[aria-sort=descending]").inner_text().startswith("Patient")
    assert visitor.says("1 study.", "Roe, Richard")
    visitor.look("dark", PHONE)
    assert not visitor.overflows()
