"""The verbs that need no running node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select

from pacs_node.cli import main
from pacs_node.config import load_settings
from pacs_node.db import AuditEvent, Database, Delivery, Job, sqlite_url
from pacs_node.peer import ReceivingPeer
from pacs_node.states import DeliveryState, JobState
from tests.node_story import Story, analysed


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "pacs-node.toml"


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[ReceivingPeer]:
    with ReceivingPeer(tmp_path / "peer") as running:
        yield running


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_init_writes_a_file_that_loads(config: Path) -> None:
    done = run("init", "--output", config)
    assert done.exit_code == 0
    assert "nobody may send yet" in done.output
    assert load_settings(config).listener.ae_title == "CTNODE"


def test_init_with_caller_and_destinations(config: Path) -> None:
    done = run(
        "init", "--output", config, "--caller", "PACS@10.1.2.0/24",
        "--destination", "dicom://ARCHIVE@10.1.2.3:104", "--destination", "https://pacs.example/dicom-web",
    )  # fmt: skip
    assert done.exit_code == 0
    settings = load_settings(config)
    assert settings.callers[0].admits("PACS", "10.1.2.77")
    assert [item.kind for item in settings.destinations] == ["dicom", "dicomweb"]
    assert [item.name for item in settings.destinations] == ["archive", "destination2"]
    assert settings.archive.destination == "archive"
    assert "10.1.2.0/24 can't come in: the listener is reached from this machine only" in done.output


def test_init_makes_a_node_that_the_pacs_reaches(config: Path) -> None:
    done = run(
        "init", "--output", config, "--caller", "PACS@10.1.2.3", "--listen", "0.0.0.0", "--allow-plaintext",
        "--destination", "dicom://PACS@10.1.2.3:104", "--destination", "dicom://PACS@10.1.2.4:104",
    )  # fmt: skip
    assert "can't come in" not in done.output
    settings = load_settings(config)
    assert (settings.listener.host, settings.listener.allow_plaintext) == ("0.0.0.0", True)
    assert [item.name for item in settings.destinations] == ["pacs", "destination2"]


def test_init_without_tls_says_what_is_missing(config: Path) -> None:
    done = run("init", "--output", config, "--listen", "0.0.0.0")
    assert "before it can start: set the three keys listener.tls_..." in done.output


def test_init_overwrites_only_when_told(config: Path) -> None:
    config.write_text("precious")
    assert run("init", "--output", config).exit_code == 1
    assert config.read_text() == "precious"
    assert run("init", "--output", config, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--caller", "PACS", "write AE@ADDRESS"),
        ("--caller", "PACS@nowhere", "write AE@ADDRESS"),
        ("--destination", "ftp://x", "write dicom://"),
        ("--destination", "dicom://A@host:99999", "dicom://A@host:99999"),
        ("--destination", "dicom://AAAAAAAAAAAAAAAAA@host:104", "16"),
    ],
)
def test_init_says_what_would_be_right(option: str, value: str, says: str, config: Path) -> None:
    done = run("init", "--output", config, option, value)
    assert done.exit_code == 1
    assert says in done.output
    assert not config.exists()


@pytest.mark.parametrize("verb", ["serve", "listen", "work", "deliver", "schedule", "web", "status", "echo"])
def test_wrong_configuration_is_refused_at_start(verb: str, config: Path) -> None:
    config.write_text("[listener]\nport = 'many'\nhots = '127.0.0.1'\n")
    done = run(verb, "--config", config)
    assert done.exit_code == 1
    assert "listener.port = 'many': input should be a valid integer" in done.output
    assert "listener.hots: unknown key; did you mean 'host'?" in done.output


def test_missing_configuration(config: Path) -> None:
    done = run("status", "--config", config)
    assert done.exit_code == 1
    assert "pacs-node init" in done.output


def test_echo(config: Path, peer: ReceivingPeer) -> None:
    run("init", "--output", config, "--destination", f"dicom://PEER@127.0.0.1:{peer.port}")
    done = run("echo", "--config", config)
    assert done.exit_code == 0, done.output
    assert "peer: ok" in done.output
    assert run("echo", "--config", config, "other").exit_code == 1


def test_echo_of_nobody(config: Path, free_port: int) -> None:
    run("init", "--output", config, "--destination", f"dicom://PEER@127.0.0.1:{free_port}")
    done = run("echo", "--config", config)
    assert done.exit_code == 1
    assert "FAILED" in done.output


@pytest.fixture
def told(config: Path, peer: ReceivingPeer) -> Story:
    """A node with one analysed study."""
    run("init", "--output", config, "--destination", f"dicom://PEER@127.0.0.1:{peer.port}")
    storage = config.parent / "pacs-node-data"
    storage.mkdir()
    database = Database(sqlite_url(storage))
    database.upgrade()
    story = Story(database, storage)
    analysed(story)
    return story


def job_states(story: Story) -> list[JobState]:
    with story.database.read() as session:
        return list(session.scalars(select(Job.state).order_by(Job.id)))


def delivery_states(story: Story) -> list[DeliveryState]:
    with story.database.read() as session:
        return list(session.scalars(select(Delivery.state).order_by(Delivery.id)))


def test_status_lists_studies_and_tells_the_story_of_one(told: Story, config: Path) -> None:
    listed = run("status", "--config", config)
    assert listed.exit_code == 0, listed.output
    assert told.study_uid in listed.output
    for key in (told.study_uid, told.accession_number, told.patient_id):
        story = run("status", "--config", config, key)
        assert story.exit_code == 0
        assert "analysed" in story.output
        assert len(story.output.splitlines()) >= 5
        assert told.patient_name not in story.output


def test_status_of_an_unknown_study(told: Story, config: Path) -> None:
    done = run("status", "--config", config, "1.2.3")
    assert done.exit_code == 1
    assert "no study" in done.output


def test_requeue_takes_failed_jobs_only(told: Story, config: Path) -> None:
    assert run("requeue", "--config", config, told.study_uid).exit_code == 1
    other = Story(told.database, told.directory, name="b", accession_number="ACC-2")
    other.receive().close().queue().start().finish(reason=("SOFTWARE_FAILURE", "It stopped."), failed=True)
    done = run("requeue", "--config", config, "ACC-2")
    assert done.exit_code == 0, done.output
    assert job_states(told) == [JobState.SUCCEEDED, JobState.QUEUED]


def test_send_puts_the_result_into_the_outbox_again(told: Story, config: Path) -> None:
    before = len(delivery_states(told))
    done = run("send", "--config", config, told.study_uid)
    assert done.exit_code == 0, done.output
    states = delivery_states(told)
    assert len(states) == before + 2
    assert states[-2:] == [DeliveryState.PENDING, DeliveryState.PENDING]
    assert run("send", "--config", config, told.study_uid, "--to", "nowhere").exit_code == 1


def test_every_verb_explains_itself() -> None:
    listed = run("--help").output
    assert "not for primary diagnosis" in listed
    for verb in main.commands:
        done = run(verb, "--help")
        assert done.exit_code == 0
        assert main.commands[verb].help
        assert verb in listed


def test_requeue_and_send_are_in_the_record(told: Story, config: Path) -> None:
    run("send", "--config", config, told.study_uid)
    with told.database.read() as session:
        actors = set(session.scalars(select(AuditEvent.actor)))
    assert any(actor.startswith("cli:") for actor in actors)
