"""Webhook and e-mail: what is told, to real receivers on this machine, and what happens without them."""

from __future__ import annotations

import base64
import hmac
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, get_args

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from click.testing import CliRunner
from sqlalchemy import select

from pacs_node import audit, notify, notify_queue, preflight
from pacs_node.audit_chain import note_head
from pacs_node.cli import main
from pacs_node.clock import utc_now
from pacs_node.config import Settings
from pacs_node.config_notify import USUAL, NotifySettings, Topic
from pacs_node.db import AuditEvent, Database, Errand
from pacs_node.db_notices import Notice
from pacs_node.doctor_findings import Level
from pacs_node.doctor_services import check_notifications
from pacs_node.errors import ConfigurationError
from pacs_node.notify import Sender
from pacs_node.notify_channels import Channel, Mail, NotTakenError, Webhook, open_channels, signature
from pacs_node.notify_messages import _SENTENCES, Message, worded
from pacs_node.notify_queue import Collector
from pacs_node.watch import ChainWatch, DiskWatch
from tests.certificates import make_certificate
from tests.node_story import START, Story, analysed
from tests.serving import serving
from tests.web_browser import make_settings

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdefghijklmnop").decode()


@dataclass
class Receiver:
    """Keeps what it gets."""

    port: int = 0
    status: int = 204
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(found.status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            """Say nothing."""

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        found.port = server.server_address[1]
        yield found


def configured(directory: Path, **chosen: Any) -> Settings:
    (directory / "secret").write_text(f"{SECRET}\n")
    storage = {"directory": str(directory / "storage"), "reserve_mb": 1}
    return make_settings(directory, storage=storage, notify=chosen)


def hooked(directory: Path, receiver: Receiver, **chosen: Any) -> Settings:
    files = {"webhook_url": receiver.url, "webhook_secret_file": "secret"}
    return configured(directory, **files, page_url="https://node.example", **chosen)


def record(database: Database, event: audit.Event, **objects: Any) -> None:
    at = objects.pop("at", START)
    study = objects.pop("study_uid", None)
    with database.write() as session:
        audit.record(session, event, at=at, actor="test", study_uid=study, **objects)


def notices(database: Database) -> list[Notice]:
    with database.read() as session:
        return list(session.scalars(select(Notice).order_by(Notice.id)))


REFUSED = {"state": "succeeded", "outcome_of_job": "not_analysed"}
FAILED: dict[str, Any] = {"study_uid": "1.2.3", "job": 7, "state": "failed", "reason": "Doe^Jane"}


# what is told


def test_every_topic_has_a_sentence() -> None:
    assert set(_SENTENCES) == set(get_args(Topic)) >= set(USUAL)


def test_the_story_of_a_study_names_no_patient(
    database: Database, tmp_path: Path, receiver: Receiver
) -> None:
    settings = hooked(tmp_path, receiver, events=list(get_args(Topic)))
    collector = Collector(database, notify.wanted(settings))
    collector.collect(START)
    story = analysed(Story(database, tmp_path))
    collector.collect(story.now)
    (told,) = notices(database)
    assert told.topic == "study analysed"
    body = json.loads(told.body)
    assert body["type"] == "study.analysed"
    assert body["data"]["study_uid"] == story.study_uid
    assert body["data"]["link"] == f"https://node.example/studies/{story.study_uid}"
    assert "not for primary diagnosis" in body["data"]["notice"]
    assert not {"PID-1", "Doe", "ACC"} & set(json.dumps(body).replace('"', " ").split())


@pytest.mark.parametrize(
    ("event", "objects", "topic"),
    [
        (audit.Event.JOB_CHANGED, FAILED, "study failed"),
        (audit.Event.JOB_CHANGED, {"state": "running"}, None),
        (audit.Event.JOB_CHANGED, REFUSED, "study not analysed"),
        (audit.Event.DELIVERY_CHANGED, {"state": "failed", "destination": "pacs"}, "delivery failed"),
        (audit.Event.DELIVERY_CHANGED, {"state": "pending"}, None),
        (audit.Event.DESTINATION_AWAY, {"destination": "pacs", "reason": "Doe^Jane"}, "destination away"),
        (audit.Event.ARCHIVE_SEARCHED, {"new": 2, "archive": "pacs"}, "studies missed"),
        (audit.Event.ARCHIVE_SEARCHED, {"new": 0}, None),
        (audit.Event.AUDIT_CHECKED, {"rows": 4, "first_bad": 5}, "audit broken"),
        (audit.Event.AUDIT_CHECKED, {"rows": 4}, None),
        (audit.Event.LOGGED_IN, {}, None),
    ],
)  # fmt: skip
def test_topics(
    database: Database,
    tmp_path: Path,
    receiver: Receiver,
    event: audit.Event,
    objects: dict[str, Any],
    topic: str | None,
) -> None:
    collector = Collector(database, notify.wanted(hooked(tmp_path, receiver, events=list(get_args(Topic)))))
    collector.collect(START)
    record(database, event, **objects)
    collector.collect(START)
    rows = notices(database)
    assert [row.topic for row in rows] == ([topic] if topic else [])
    assert all("Doe" not in row.body for row in rows), "what a peer or an error wrote stays behind the link"


def test_each_event_is_told_once_by_each_channel(
    database: Database, tmp_path: Path, receiver: Receiver
) -> None:
    record(database, audit.Event.JOB_CHANGED, **FAILED)
    mail = {
        "mail_host": "127.0.0.1",
        "mail_tls": "none",
        "mail_from": "a@b.example",
        "mail_to": ["c@d.example"],
    }
    wanted = notify.wanted(hooked(tmp_path, receiver, **mail))
    first, second = Collector(database, wanted), Collector(database, wanted)
    assert (first.collect(START), second.collect(START)) == (0, 0), "what was before is not told"
    record(database, audit.Event.JOB_CHANGED, **FAILED)
    assert (first.collect(START), second.collect(START), first.collect(START)) == (1, 1, 0)
    assert [row.channel for row in notices(database)] == ["webhook", "mail"]
    record(database, audit.Event.JOB_CHANGED, **FAILED)
    record(database, audit.Event.JOB_CHANGED, at=START - timedelta(days=2), **FAILED)
    Collector(database, wanted).collect(START)
    assert len(notices(database)) == 4, "a new process goes on; what is older than a day is no news"


def test_old_messages_are_removed(database: Database, tmp_path: Path, receiver: Receiver) -> None:
    collector = Collector(database, notify.wanted(hooked(tmp_path, receiver)))
    collector.collect(START)
    record(database, audit.Event.JOB_CHANGED, **FAILED)
    collector.collect(START)
    notify_queue.note_sent(database, notices(database), "http 204", START)
    record(database, audit.Event.JOB_CHANGED, at=START + timedelta(days=31), **FAILED)
    collector.collect(START + timedelta(days=31))
    assert [row.seq for row in notices(database)] == [3]


# webhook


@pytest.fixture
def waiting(database: Database, tmp_path: Path, receiver: Receiver) -> Settings:
    """Three messages for the webhook."""
    settings = hooked(tmp_path, receiver)
    collector = Collector(database, notify.wanted(settings))
    collector.collect(START)
    for _ in range(3):
        record(database, audit.Event.JOB_CHANGED, **FAILED)
    collector.collect(START)
    return settings


def sender(
    database: Database, settings: Settings, at: timedelta = timedelta(0), channel: Channel | None = None
) -> Sender:
    return Sender(
        database,
        "webhook",
        channel or Webhook(settings.notify),
        timedelta(hours=24),
        clock=lambda: START + at,
    )


def test_webhooks_are_signed(database: Database, waiting: Settings, receiver: Receiver) -> None:
    assert sender(database, waiting).send() is True
    assert sender(database, waiting).send() is None
    assert len(receiver.got) == 3
    for headers, body in receiver.got:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        mac = hmac.digest(base64.b64decode(SECRET.removeprefix("whsec_")), signed, "sha256")
        assert headers["webhook-signature"] == f"v1,{base64.b64encode(mac).decode()}"
        assert json.loads(body)["data"]["id"] == headers["webhook-id"]
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 3
    assert all(row.sent_at == START for row in notices(database))
    with database.read() as session:
        last = session.scalars(select(AuditEvent).order_by(AuditEvent.seq.desc())).first()
    assert last is not None
    assert (last.event, last.objects["told_rows"]) == ("notification", [1, 2, 3])


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example of the specification's own libraries."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("status", [302, 400, 404, 410, 500])
def test_what_is_not_taken_is_sent_again_with_the_same_bytes(
    database: Database, waiting: Settings, receiver: Receiver, status: int
) -> None:
    receiver.status = status
    assert sender(database, waiting).send() is False
    assert len(receiver.got) == 1, "the others wait as well: nobody would take them"
    assert {(row.status, row.sent_at) for row in notices(database)} == {(f"http {status}", None)}
    assert sender(database, waiting).send() is None
    receiver.status = 200
    later = timedelta(minutes=2)
    assert sender(database, waiting, later).send() is True
    assert len(receiver.got) == 4
    bodies = {headers["webhook-id"]: body for headers, body in receiver.got[1:]}
    assert bodies[receiver.got[0][0]["webhook-id"]] == receiver.got[0][1]
    assert all(row.attempts == 2 for row in notices(database))


class Half:
    """Takes one message of a batch."""

    def send(self, messages: list[Message]) -> str:
        raise NotTakenError("ConnectTimeout", 1)


def test_a_part_is_not_sent_again(database: Database, waiting: Settings) -> None:
    assert sender(database, waiting, channel=Half()).send() is False  # type: ignore[arg-type] # a list is enough
    assert [row.sent_at is None for row in notices(database)] == [False, True, True]


def test_it_is_given_up_after_a_day_and_comes_back_on_demand(
    database: Database, waiting: Settings, receiver: Receiver
) -> None:
    receiver.status = 500
    assert sender(database, waiting, timedelta(hours=25)).send() is False
    assert all(row.failed_at is not None and row.next_attempt_at is None for row in notices(database))
    assert sender(database, waiting, timedelta(hours=30)).send() is None
    findings = list(check_notifications(waiting, START + timedelta(hours=30), offline=True))
    assert [item.level for item in findings] == [Level.WARNING]
    assert "3 given up; http 500" in findings[0].sentence
    assert notify_queue.requeue(database, START + timedelta(hours=30)) == 3
    receiver.status = 200
    assert sender(database, waiting, timedelta(hours=31)).send() is True


def test_who_dies_with_messages_leaves_them_to_others(
    database: Database, waiting: Settings, receiver: Receiver
) -> None:
    assert len(notify_queue.claim(database, "webhook", START)) == 3
    assert sender(database, waiting, timedelta(minutes=4)).send() is None
    assert sender(database, waiting, timedelta(minutes=6)).send() is True
    assert sender(database, waiting, timedelta(minutes=12)).send() is None
    assert len(receiver.got) == 3


def test_a_clock_that_is_set_back_holds_nothing_up(database: Database, waiting: Settings) -> None:
    notify_queue.claim(database, "webhook", START + timedelta(days=2))
    assert sender(database, waiting).send() is True


def test_the_part_runs_and_stops(database: Database, tmp_path: Path, receiver: Receiver) -> None:
    """With the real time, as `pacs-node serve` runs it; the mail server is away all the time."""
    mail = {"mail_host": "127.0.0.1", "mail_port": 1, "mail_tls": "none", "mail_from": "a@b.example"}
    settings = hooked(tmp_path, receiver, **mail, mail_to=["c@d.example"])
    Collector(database, notify.wanted(settings)).collect(utc_now())
    record(database, audit.Event.DESTINATION_AWAY, at=utc_now(), destination="pacs")
    stop = Event()
    thread = Thread(target=notify.run, args=(settings, stop))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notify, "POLL_SECONDS", 0.02)
        thread.start()
        for _ in range(1000):
            if receiver.got and any(row.status for row in notices(database) if row.channel == "mail"):
                break
            stop.wait(0.02)
        stop.set()
        thread.join()
    assert json.loads(receiver.got[0][1])["data"]["sentence"] == "pacs does not answer; results wait."
    assert [row.status for row in notices(database) if row.channel == "mail"] == ["ConnectionRefusedError"]


# mail


@dataclass
class MailBox:
    """What a mail server took."""

    got: list[Envelope] = field(default_factory=list)
    answer: str = "250 OK"

    def content(self) -> bytes:
        """Of the first mail."""
        content = self.got[0].content
        assert isinstance(content, bytes)
        return content

    async def handle_DATA(  # noqa: N802 - its name
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        if self.answer.startswith("250"):
            self.got.append(envelope)
        return self.answer

    async def handle_RCPT(  # noqa: N802 - its name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if address.startswith("gone@"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"


def _knows(_server: SMTP, _session: Session, _envelope: Envelope, _way: str, data: object) -> AuthResult:
    known = isinstance(data, LoginPassword) and (data.login, data.password) == (b"node", b"geheim")
    return AuthResult(success=known, handled=False)


@contextmanager
def mail_server(directory: Path, port: int) -> Iterator[tuple[MailBox, str]]:
    """A server that wants STARTTLS and a login."""
    made = make_certificate(directory, "mail")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    box = MailBox()
    server = Controller(
        box,
        "127.0.0.1",
        port,
        tls_context=context,
        require_starttls=True,
        auth_required=True,
        authenticator=_knows,
    )
    server.start()
    yield box, str(made.certificate)
    server.stop()


def test_mail_goes_by_tls_with_a_login(database: Database, tmp_path: Path, free_port: int) -> None:
    (tmp_path / "password").write_text("geheim\n")
    with mail_server(tmp_path, free_port) as (box, certificate):
        chosen = NotifySettings(
            mail_host="127.0.0.1",
            mail_port=free_port,
            mail_ca_file=certificate,
            mail_user="node",
            mail_password_file=str(tmp_path / "password"),
            mail_from="node@ct.example",
            mail_to=("it@ct.example", "gone@ct.example"),
        )
        messages = [
            worded(
                f"{number}" * 32,
                "study failed",
                START,
                {"sentence": "It failed.", "study_uid": "1.2.3", "notice": "Research use only."},
            )
            for number in (1, 2)
        ]
        mail = Mail(chosen, "CTNODE", clock=lambda: START)
        assert mail.send(messages) == "accepted for 1 of 2 recipients"
        assert mail.probe() == "127.0.0.1 would take our mail"
        assert box.got[0].rcpt_tos == ["it@ct.example"]
        read = message_from_bytes(box.content())
        assert read["Subject"].endswith("2 events")
        assert read["Auto-Submitted"] == "auto-generated"
        text = read.get_payload(decode=True)
        assert isinstance(text, bytes)
        assert text.count(b"It failed.") == 2
        assert b"Research use only." in text
        box.answer = "451 later"
        with pytest.raises(NotTakenError, match="smtp 451"):
            mail.send(messages)
        (tmp_path / "password").write_text("wrong\n")
        with pytest.raises(NotTakenError, match="smtp 535"):
            Mail(chosen, "CT").probe()
        with pytest.raises(NotTakenError, match="SSL"):
            Mail(chosen.model_copy(update={"mail_ca_file": ""}), "CT").probe()


@pytest.mark.parametrize("way", ["none", "tls"])
def test_one_event_is_the_subject(tmp_path: Path, free_port: int, way: str) -> None:
    context, certificate = None, ""
    if way == "tls":
        made = make_certificate(tmp_path, "mail")
        context, certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), str(made.certificate)
        context.load_cert_chain(made.certificate, made.key)
    box = MailBox()
    server = Controller(box, "127.0.0.1", free_port, ssl_context=context)
    server.start()
    chosen = NotifySettings.model_validate(
        {
            "mail_host": "127.0.0.1",
            "mail_port": free_port,
            "mail_tls": way,
            "mail_ca_file": certificate,
            "mail_from": "node@ct.example",
            "mail_to": ["it@ct.example"],
        }
    )
    data = {"sentence": "3 MB are free.", "link": "https://node.example/", "notice": "Research use only."}
    Mail(chosen, "CTNODE").send([worded("1" * 32, "disk low", START, data)])
    server.stop()
    read = message_from_bytes(box.content())
    assert read["Subject"] == "[CTNODE] disk low"
    assert "https://node.example/" in str(read.get_payload())


# settings, commands, doctor


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"webhook_url": "http://hook.example", "webhook_secret_file": "secret"}, "url must be https"),
        ({"webhook_url": "https://hook.example"}, "needs webhook_secret_file"),
        ({"mail_host": "mail.example"}, "needs mail_from and mail_to"),
        ({"mail_host": "m", "mail_from": "a@b", "mail_to": ["c@d"], "mail_tls": "none"}, "this machine"),
        ({"mail_host": "m", "mail_from": "a@b", "mail_to": ["c@d"], "mail_user": "u"}, "need each other"),
        ({"mail_host": "m", "mail_from": "a@b", "mail_to": ["c@d\\r\\nX: y z"]}, "mail_to"),
        ({"events": ["study seen"]}, "events"),
        ({"page_url": "http://node.example"}, "page_url"),
    ],
)  # fmt: skip
def test_settings_that_can_not_be(tmp_path: Path, chosen: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        configured(tmp_path, **chosen)


@pytest.mark.parametrize(
    ("secret", "expected"),
    [("short", "at least 24"), ("whsec_" + "!" * 30, "base64"), (None, "can't be read")],
)
def test_a_secret_that_can_not_be_is_said_at_start(
    tmp_path: Path, receiver: Receiver, secret: str | None, expected: str
) -> None:
    settings = hooked(tmp_path, receiver)
    (tmp_path / "secret").unlink()
    if secret is not None:
        (tmp_path / "secret").write_text(secret)
    with pytest.raises(ConfigurationError, match=expected):
        preflight.check(settings, ["notify"])


def test_by_command_line(database: Database, tmp_path: Path, receiver: Receiver) -> None:
    config = tmp_path / "pacs-node.toml"
    (tmp_path / "secret").write_text(SECRET)
    config.write_text(
        f'[storage]\ndirectory = "{tmp_path / "storage"}"\n'
        f'[notify]\nwebhook_url = "{receiver.url}"\nwebhook_secret_file = "secret"\n'
    )
    run = CliRunner()
    done = run.invoke(main, ["notify", "test", "--config", str(config)])
    assert (done.exit_code, done.output) == (0, "webhook: http 204\n")
    assert json.loads(receiver.got[0][1])["type"] == "test"
    receiver.status = 503
    done = run.invoke(main, ["notify", "test", "--config", str(config)])
    assert (done.exit_code, done.output) == (1, "webhook: NOT taken (http 503)\n")
    done = run.invoke(main, ["notify", "status", "--requeue", "--config", str(config)])
    assert "webhook: 0 wait, 0 given up" in done.output
    config.write_text(f'[storage]\ndirectory = "{tmp_path / "storage"}"\n')
    assert "nobody is notified" in run.invoke(main, ["notify", "test", "--config", str(config)]).output


def test_doctor_says_what_waits(database: Database, waiting: Settings, tmp_path: Path) -> None:
    first = next(check_notifications(waiting, START + timedelta(minutes=5), offline=True))
    assert (first.level, first.sentence) == (Level.GOOD, "3 wait, 0 given up")
    first = next(check_notifications(waiting, START + timedelta(hours=2), offline=True))
    assert (first.level, "never tried" in first.sentence) == (Level.PROBLEM, True)
    (tmp_path / "secret").unlink()
    assert "can't be read" in next(check_notifications(waiting, START, offline=True)).sentence
    assert list(check_notifications(make_settings(tmp_path), START, offline=True)) == []


def test_channels_of_the_settings(tmp_path: Path) -> None:
    assert open_channels(make_settings(tmp_path).notify, "X") == {}


# the node's own watches


def events(database: Database) -> list[tuple[str, dict[str, Any]]]:
    with database.read() as session:
        return [
            (row.event, row.objects) for row in session.scalars(select(AuditEvent).order_by(AuditEvent.seq))
        ]


def test_little_room_is_an_event_once(database: Database, tmp_path: Path) -> None:
    room = [2000]

    def watch() -> DiskWatch:
        return DiskWatch(database, tmp_path, 1000, free=lambda _: room[0] << 20, clock=lambda: START)

    first = watch()
    for room[0] in (2000, 1499, 1300, 1600):
        first.tick()
    second = watch()
    for room[0] in (1600, 1749, 1751, 1600, 900):
        second.tick()
    assert [(name, found["free_mb"]) for name, found in events(database)] == [
        ("disk low", 1499),
        ("disk enough", 1751),
        ("disk low", 900),
    ]


def test_the_record_is_checked_once_a_day(database: Database, tmp_path: Path) -> None:
    heads, now, stop = tmp_path / "heads", [START], Event()
    record(database, audit.Event.LOGGED_IN)

    def watch() -> ChainWatch:
        return ChainWatch(database, heads, stop, clock=lambda: now[0])

    verdict = watch().tick()
    assert verdict is not None
    assert (verdict.rows, verdict.first_bad) == (1, None)
    assert watch().tick() is None
    with database.write() as session:
        note_head(session, heads, START)
        session.connection().exec_driver_sql("DROP TRIGGER audit_event_no_delete")
        session.connection().exec_driver_sql("DELETE FROM audit_event WHERE seq = 2")
    now[0] += timedelta(hours=25)
    verdict = watch().tick()
    assert verdict is not None
    assert verdict.first_bad == 2
    name, found = events(database)[-1]
    assert (name, found["first_bad"]) == ("audit record checked", 2)
    heads.write_text("nonsense\n")
    now[0] += timedelta(hours=25)
    watch().tick()
    assert "can't be read" in str(events(database)[-1][1]["reason"])


def test_a_check_ends_with_the_node_and_is_done_later(database: Database, tmp_path: Path) -> None:
    record(database, audit.Event.LOGGED_IN)
    stop = Event()
    stop.set()
    watch = ChainWatch(database, tmp_path / "none", stop, clock=lambda: START)
    assert watch.tick() is None
    with database.read() as session:
        assert session.query(Errand).one().status == "stopped"
    stop.clear()
    assert watch.tick() is not None
