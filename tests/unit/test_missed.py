"""Studies that the archive has and that never came: when it is asked, what is kept, who hears of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from pacs_node.archive import ArchiveError, FoundStudy, StudyFilter
from pacs_node.cli import main
from pacs_node.config import ArchiveSettings, parse_settings
from pacs_node.db import AuditEvent, Errand
from pacs_node.destinations import OutcomeKind
from pacs_node.errors import ConfigurationError
from pacs_node.missed import MissedStudies, missing_studies
from pacs_node.schedule import archive_tasks
from tests.small_node import START, SmallNode, chest

AWAY = ArchiveError(OutcomeKind.TRANSIENT, "the connection was refused or timed out")
NIGHT = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)
YESTERDAY = "20260301"


def study(uid: str, **changes: object) -> FoundStudy:
    facts: dict[str, object] = {
        "study_uid": uid,
        "study_date": YESTERDAY,
        "accession_number": "A1",
        "description": "CT CHEST LOW DOSE",
        "modalities": ("CT", "SR"),
        "ae_titles": ("PACS",),
        "n_instances": 300,
    }
    return FoundStudy(**facts | changes)  # type: ignore[arg-type]  # of the values above


@dataclass
class Nightly:
    """An archive that says what it is told, and a node that asks it."""

    node: SmallNode
    found: list[FoundStudy] = field(default_factory=list)
    by_series: dict[str, set[str]] = field(default_factory=dict)
    failure: ArchiveError | None = None
    name: str = "pacs"
    asked: list[StudyFilter] = field(default_factory=list)
    settings: ArchiveSettings = field(default_factory=lambda: ArchiveSettings(destination="pacs"))

    def count(self, _study_uid: str, _series_uid: str) -> int:
        """Nothing."""
        return 0

    def studies(self, wanted: StudyFilter) -> list[FoundStudy]:
        """All it has: it heeds no filter."""
        self.asked.append(wanted)
        if self.failure is not None:
            raise self.failure
        return self.found

    def modalities(self, study_uid: str) -> set[str]:
        """By series."""
        return self.by_series[study_uid]

    def tick(self, at: datetime | None = None) -> None:
        """What a scheduler does that was started just now."""
        if at is not None:
            self.node.clock.now = at
        MissedStudies(self.node.database, self, self.settings, self.node.clock).tick()

    def listed(self) -> list[str]:
        """UIDs of the list."""
        with self.node.database.read() as session:
            return [row.study_uid for row in missing_studies(session)]

    def events(self, name: str) -> list[tuple[str | None, int]]:
        """Study and outcome of the audit events of a name."""
        with self.node.database.read() as session:
            rows = session.execute(select(AuditEvent).where(AuditEvent.event == name)).scalars()
            return [(row.study_uid, row.outcome) for row in rows]

    def errand(self) -> Errand:
        """When it is due."""
        with self.node.database.read() as session:
            return session.execute(select(Errand)).scalar_one()


@pytest.fixture
def nightly(node: SmallNode) -> Nightly:
    return Nightly(node)


def test_it_asks_at_night_and_lists_what_never_came(nightly: Nightly) -> None:
    here = chest()
    nightly.node.receive(*here)
    nightly.found = [study("1.2.1"), study(str(here[0].StudyInstanceUID)), study("1.2.2", n_instances=None)]
    nightly.tick()
    nightly.tick(NIGHT - timedelta(seconds=1))
    assert nightly.asked == []
    nightly.tick(NIGHT)
    assert nightly.asked == [StudyFilter(date(2026, 2, 27), date(2026, 3, 1), "CT")]
    assert nightly.listed() == ["1.2.1", "1.2.2"]
    assert nightly.events("study missed") == [("1.2.1", 4), ("1.2.2", 4)]
    assert nightly.events("archive searched") == [(None, 4)]
    assert nightly.errand().status == (
        "2026-02-27 to 2026-03-01: 3 studies, 2 of them never came here (2 new)"
    )
    assert nightly.errand().due_at == NIGHT + timedelta(days=1)


def test_the_alarm_comes_once_and_the_study_leaves_the_list_when_it_comes(nightly: Nightly) -> None:
    late = chest()
    uid = str(late[0].StudyInstanceUID)
    nightly.found = [study(uid)]
    nightly.tick()
    for night in range(2):
        nightly.tick(NIGHT + timedelta(days=night))
    assert nightly.events("study missed") == [(uid, 4)]
    assert nightly.events("archive searched") == [(None, 4), (None, 0)]
    nightly.node.receive(*late)
    assert nightly.listed() == []
    nightly.tick(NIGHT + timedelta(days=2))
    assert nightly.listed() == []


def test_a_restart_and_a_second_scheduler_ask_no_second_time(nightly: Nightly) -> None:
    nightly.tick()
    for minutes in (0, 0, 1, 61):
        nightly.tick(NIGHT + timedelta(minutes=minutes))
    assert len(nightly.asked) == 1


def test_one_that_dies_while_it_asks_is_followed_by_another(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """As a signal."""

    def studies(_wanted: StudyFilter) -> list[FoundStudy]:
        raise Killed

    nightly.found = [study("1.2.1")]
    nightly.tick()
    monkeypatch.setattr(nightly, "studies", studies)
    with pytest.raises(Killed):
        nightly.tick(NIGHT)
    monkeypatch.undo()
    nightly.tick(NIGHT + timedelta(minutes=29))
    assert nightly.listed() == []
    nightly.tick(NIGHT + timedelta(minutes=30))
    assert nightly.listed() == ["1.2.1"]


def test_an_archive_that_is_away_is_asked_again_and_it_is_recorded(nightly: Nightly) -> None:
    nightly.failure = AWAY
    nightly.tick()
    nightly.tick(NIGHT)
    assert nightly.events("archive searched") == [(None, 8)]
    assert (nightly.errand().status, nightly.errand().due_at) == (str(AWAY), NIGHT + timedelta(hours=1))
    nightly.failure = None
    nightly.found = [study("1.2.1")]
    nightly.tick(NIGHT + timedelta(hours=1))
    assert nightly.listed() == ["1.2.1"]


def test_after_days_without_an_answer_it_asks_for_all_of_them(nightly: Nightly) -> None:
    nightly.tick()
    nightly.tick(NIGHT)
    nightly.tick(NIGHT + timedelta(days=10))
    assert [wanted.first for wanted in nightly.asked] == [date(2026, 2, 27), date(2026, 3, 1)]
    nightly.tick(NIGHT + timedelta(days=200))
    wanted = nightly.asked[-1]
    assert (wanted.last - wanted.first).days == 59


def test_an_archive_that_heeds_no_filter_is_filtered_here(nightly: Nightly) -> None:
    nightly.settings = ArchiveSettings(
        destination="pacs", missed_description="*chest*", missed_ae_title="PACS", missed_days=1
    )
    nightly.found = [
        study("1.2.1"),
        study("1.2.2", modalities=("MR",)),
        study("1.2.3", study_date="20260228"),
        study("1.2.4", study_date=""),
        study("1.2.5", description="CT HEAD"),
        study("1.2.6", ae_titles=("OTHER",)),
        study("../../etc", description="CT CHEST"),
        study("1.2.7", modalities=()),
        study("1.2.8", modalities=()),
    ]
    nightly.by_series = {"1.2.7": {"CT"}, "1.2.8": {"MR"}}
    nightly.tick()
    nightly.tick(NIGHT)
    assert nightly.listed() == ["1.2.1", "1.2.7"]
    assert "3 studies" not in (nightly.errand().status or "")


def test_command(nightly: Nightly, tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(f'[storage]\ndirectory = "{nightly.node.spool.directory}"\n')
    run = CliRunner().invoke(main, ["missed", "--config", str(config)])
    assert (run.exit_code, "0 studies" in run.output, "nobody is asked" in run.output) == (0, True, True)
    nightly.found = [study("1.2.1")]
    nightly.tick(START)
    nightly.tick(NIGHT)
    lines = CliRunner().invoke(main, ["missed", "--config", str(config)]).output.splitlines()
    assert lines[0] == "20260301  1.2.1  A1  CT CHEST LOW DOSE  300 images"
    assert lines[1] == "1 studies never came here"
    assert "asked again 2026-03-03 03:00 UTC" in lines[2]
    refused = CliRunner().invoke(main, ["missed", "--ask", "--config", str(config)])
    assert (refused.exit_code, "nobody can be asked" in refused.output) == (1, True)


@pytest.mark.parametrize(
    ("chosen", "asked"),
    [
        ({}, []),
        ({"destination": "pacs"}, ["Reconciler", "MissedStudies"]),
        ({"destination": "pacs", "count_images": False}, ["MissedStudies"]),
        ({"destination": "pacs", "list_missed": False}, ["Reconciler"]),
    ],
)
def test_the_scheduler_asks_what_the_settings_say(
    node: SmallNode, chosen: dict[str, object], asked: list[str]
) -> None:
    pacs = {"name": "pacs", "kind": "dicom", "host": "127.0.0.1", "port": 104, "ae_title": "PACS"}
    settings = parse_settings({"destinations": [pacs], "archive": chosen}, base=node.spool.directory)
    tasks = list(archive_tasks(settings, node.database))
    assert [type(getattr(task.tick, "__self__", None)).__name__ for task in tasks] == asked


def test_an_archive_that_is_no_destination_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"archive\.destination = 'pacs': no destination of this name"
    ):
        parse_settings({"archive": {"destination": "pacs"}}, base=tmp_path)
