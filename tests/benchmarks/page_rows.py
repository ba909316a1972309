"""Rows of a node that has run for years, written in bulk by plain SQL: the audit record's chain is valid."""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast

import psycopg
from sqlalchemy import make_url, text

from pacs_node.audit import GENESIS, Event, row_hash
from pacs_node.db import AuditEvent, Database, folded
from pacs_node.jobs import ANALYSED, ANALYSIS, NOT_ANALYSED, REFUSAL
from pacs_node.study_state import DeliveryWord, StudyWord

NOW = datetime(2026, 3, 2, 20, 0, tzinfo=UTC)
DAYS = 1000
_FLUSHED = 20
_KINDS = ("solid", "solid", "solid", "part-solid", "ground-glass")
VERSION = "reference-1.0+abcdef"
RESULT = "results/shared/result.json"

_FAMILIES = [a + b for a in ("Mey", "Schmi", "Kowal", "Berg", "Nov", "Ros", "Lind", "Fern", "Okon", "Tan")
             for b in ("er", "dt", "ski", "mann", "ak", "en", "qvist", "andez", "kwo", "aka")]  # fmt: skip
_GIVEN = ("Anna", "Bela", "Carl", "Dora", "Emil", "Fay", "Gerd", "Hana", "Ivo", "Jane", "Kaya", "Lars")
_PEOPLE = [f"user:{name}" for name in ("jane", "omar", "lena", "igor", "auditor", "root")]
_ENDINGS = (
    ("visible", 0.88), ("sent", 0.02), ("not analysed", 0.035), ("nothing", 0.03),
    ("failed", 0.01), ("refused", 0.01), ("cancelled", 0.015),
)  # fmt: skip
#: the last ones are still on their way
_OPEN = ("receiving", "queued", "running", "failing", "sending")
_NO_JOB = {StudyWord.RECEIVING, StudyWord.NOTHING_TO_ANALYSE}
#: what the row of the study says of each
_WORDS: dict[str, tuple[StudyWord, DeliveryWord | None]] = {
    "visible": (StudyWord.ANALYSED, DeliveryWord.VISIBLE),
    "sent": (StudyWord.ANALYSED, DeliveryWord.SENT),
    "not analysed": (StudyWord.NOT_ANALYSED, DeliveryWord.VISIBLE),
    "nothing": (StudyWord.NOTHING_TO_ANALYSE, None),
    "failed": (StudyWord.FAILED, None),
    "refused": (StudyWord.ANALYSED, DeliveryWord.FAILED),
    "cancelled": (StudyWord.CANCELLED, None),
    "receiving": (StudyWord.RECEIVING, None),
    "queued": (StudyWord.QUEUED, None),
    "running": (StudyWord.ANALYSING, None),
    "failing": (StudyWord.ANALYSED, DeliveryWord.FAILING),
    "sending": (StudyWord.ANALYSED, DeliveryWord.SENDING),
}


class Happening(NamedTuple):
    """A row of the audit record before it has its place."""

    at: datetime
    actor: str
    event: Event
    outcome: int
    study_uid: str | None
    objects: dict[str, Any]


class _Row(NamedTuple):
    """What `row_hash` reads."""

    seq: int
    at: datetime
    actor: str
    event: str
    code: str
    outcome: int
    study_uid: str | None
    objects: dict[str, Any]
    previous_hash: str


@dataclass
class Sink:
    """Takes rows for a table and writes them in batches.

    Parameters
    ----------
    database
        With the newest schema and no rows.
    """

    database: Database
    _rows: defaultdict[tuple[str, tuple[str, ...]], list[tuple[object, ...]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, table: str, **values: object) -> None:
        """Keep a row until `flush`."""
        self._rows[table, tuple(values)].append(tuple(values.values()))

    def flush(self) -> None:
        """Write all rows in one transaction, parents first as they were added."""
        if self.database.engine.dialect.name == "sqlite":
            self._to_sqlite()
        else:
            self._to_postgresql()
        self._rows.clear()

    def _to_sqlite(self) -> None:
        with closing(self.database.engine.raw_connection()) as connection:
            cursor = connection.cursor()
            # nothing is lost if this is cut: it begins anew
            for setting in ("synchronous=OFF", "journal_mode=OFF", "cache_size=-1000000"):
                cursor.execute(f"PRAGMA {setting}")
            cursor.execute("BEGIN")
            for (table, columns), rows in self._rows.items():
                marks = ",".join("?" * len(columns))
                cursor.executemany(
                    f"INSERT INTO {table} ({','.join(columns)}) VALUES ({marks})",
                    [tuple(map(_for_sqlite, row)) for row in rows],
                )
            connection.commit()

    def _to_postgresql(self) -> None:
        url = make_url(self.database.engine.url).set(drivername="postgresql")
        with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
            cursor = connection.cursor()
            for (table, columns), rows in self._rows.items():
                with cursor.copy(f"COPY {table} ({','.join(columns)}) FROM STDIN".encode()) as copy:
                    for row in rows:
                        copy.write_row([_plain(value) for value in row])

    def settle(self) -> None:
        """Let PostgreSQL's sequences go on after our numbers, and both gather statistics."""
        with self.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if self.database.engine.dialect.name == "postgresql":
                for table in ("study", "series", "job", "artifact"):
                    newest = f"SELECT max(id) FROM {table}"
                    connection.execute(text(f"SELECT setval('{table}_id_seq', ({newest}))"))
                connection.execute(text("ANALYZE"))


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.replace(tzinfo=None)
    return json.dumps(value) if isinstance(value, dict) else value


def _for_sqlite(value: object) -> object:
    plain = _plain(value)
    return plain.isoformat(" ", "microseconds") if isinstance(plain, datetime) else plain


def fill(
    database: Database,
    studies: int,
    events: int,
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write that many studies with what belongs to them, and that many rows of the audit record.

    Parameters
    ----------
    progress
        Gets how many days of `DAYS` were written since it was called before.
    """
    random_ = random.Random(seed)
    sink, seq, previous = Sink(database), 0, GENESIS
    first = NOW - timedelta(days=DAYS)
    for day in range(DAYS):
        numbers = range(studies * day // DAYS, studies * (day + 1) // DAYS)
        happened: list[Happening] = []
        for number in numbers:
            at = first + timedelta(days=day, seconds=86_000 * (number - numbers.start) / len(numbers))
            left = studies - number
            ending = _OPEN[left % len(_OPEN)] if left <= 20 else _chosen(random_)
            happened += _study(sink, number + 1, at, ending, random_)
        wanted = events * (day + 1) // DAYS - seq - len(happened)
        happened += _looks(first + timedelta(days=day), numbers, wanted, random_)
        happened.sort(key=lambda row: row.at)
        for row in happened:
            seq += 1
            previous = _append(sink, seq, row, previous)
        if day % _FLUSHED == _FLUSHED - 1 or day == DAYS - 1:
            sink.flush()
        progress(1)
    sink.settle()


def _chosen(random_: random.Random) -> str:
    return random_.choices([name for name, _ in _ENDINGS], [share for _, share in _ENDINGS])[0]


def _append(sink: Sink, seq: int, row: Happening, previous: str) -> str:
    name, code = row.event.value
    full = _Row(seq, row.at, row.actor, name, code, row.outcome, row.study_uid, row.objects, previous)
    value = row_hash(cast(AuditEvent, full))
    sink.add("audit_event", **full._asdict(), hash=value)
    return value


def _uid(*parts: object) -> str:
    return f"2.25.{int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:15], 'big')}"


def _study(sink: Sink, number: int, at: datetime, ending: str, random_: random.Random) -> Iterator[Happening]:
    uid, patient = _uid("study", number), random_.randrange(1, 60_000)
    people = random.Random(patient)
    name = f"{people.choice(_FAMILIES)}{patient % 97:02d}^{people.choice(_GIVEN)}"
    patient_id, accession, words = f"PID-{patient:06d}", f"ACC{number:08d}", _WORDS[ending]
    sink.add("study", id=number, study_uid=uid, patient_id=patient_id, patient_name=name,
             accession_number=accession, study_date=f"{at:%Y%m%d}", description="CT Thorax low dose",
             first_received_at=at, search=folded(patient_id, name, accession, uid), state=words[0].value,
             delivery=words[1], shown_job_id=number if words[0] not in _NO_JOB else None)  # fmt: skip
    state = {"receiving": "receiving", "nothing": "ineligible", "not analysed": "ineligible"}.get(
        ending, "queued"
    )
    modality, done = ("SR" if ending == "nothing" else "CT"), at + timedelta(seconds=90)
    series_uid = _uid("series", number)
    sink.add("series", id=number, study_id=number, series_uid=series_uid, modality=modality,
             description="Thorax 1.0 Br", calling_ae="PACS", n_instances=3, last_received_at=done,
             state=state, closed_by=None if ending == "receiving" else "settled",
             reason_code={"nothing": "NOT_CT", "not analysed": "TOO_THICK"}.get(ending), rank=0)  # fmt: skip
    for image in range(3):
        sink.add("instance", series_id=number, sop_instance_uid=_uid("image", number, image),
                 sop_class_uid="1.2.840.10008.5.1.4.1.1.2", transfer_syntax_uid="1.2.840.10008.1.2.1",
                 sha256="0" * 64, size=525_000, path=None, received_at=at)  # fmt: skip
    yield Happening(
        at,
        "listener",
        Event.SERIES_ARRIVED,
        0,
        uid,
        {"series_uid": series_uid, "modality": modality, "calling_ae": "PACS"},
    )
    if ending == "receiving":
        return
    facts = {"series_uid": series_uid, "n_instances": 3}
    yield Happening(
        done, "intake", Event.SERIES_CHANGED, 0, uid, facts | {"state": "complete", "closed_by": "settled"}
    )
    if ending == "nothing":
        yield Happening(
            done,
            "intake",
            Event.SERIES_CHANGED,
            0,
            uid,
            facts | {"state": "ineligible", "reason_code": "NOT_CT"},
        )
        return
    yield from _job(sink, number, uid, done, ending, random_)


def _job(
    sink: Sink, number: int, uid: str, done: datetime, ending: str, random_: random.Random
) -> Iterator[Happening]:
    state = {"queued": "queued", "running": "running", "failed": "failed", "cancelled": "cancelled"}.get(
        ending, "succeeded"
    )
    kind = REFUSAL if ending == "not analysed" else ANALYSIS
    outcome = {"succeeded": NOT_ANALYSED if kind == REFUSAL else ANALYSED}.get(state)
    started, ended = done + timedelta(seconds=5), done + timedelta(seconds=random_.randint(30, 90))
    over = state not in {"queued", "running"}
    sink.add("job", id=number, series_id=number, kind=kind, input_digest=f"{number:064x}",
             pipeline_version=VERSION, state=state, attempts=int(state != "queued"), created_at=done,
             not_before=done,
             started_at=None if state == "queued" else started, finished_at=ended if over else None,
             outcome=outcome, reason_code="TOO_THICK" if kind == REFUSAL else None,
             reason="Slices are too thick." if kind == REFUSAL else None)  # fmt: skip
    facts = {"series_uid": _uid("series", number), "job": number, "kind": kind, "pipeline_version": VERSION}
    yield Happening(done, "intake", Event.JOB_CREATED, 0, uid, facts)
    if state == "queued":
        return
    yield Happening(started, "worker", Event.JOB_CHANGED, 0, uid, facts | {"state": "running", "attempt": 1})
    if state == "running":
        return
    bad = 8 if state == "failed" else 0
    yield Happening(
        ended,
        "worker",
        Event.JOB_CHANGED,
        bad,
        uid,
        facts | {"state": state, "attempt": 1, "outcome_of_job": outcome},
    )
    if outcome == ANALYSED:
        summarise(sink, number, ended)
    if state == "succeeded":
        yield from _results(sink, number, uid, ended, ending)


def summarise(sink: Sink, number: int, at: datetime) -> None:
    """Write what an analysis found, in columns."""
    random_ = random.Random(-number)
    found = [
        (round(random_.lognormvariate(1.8, 0.45), 1), random_.betavariate(1.2, 4), random_.choice(_KINDS))
        for _ in range(random_.choices(range(4), (45, 30, 15, 10))[0])
    ]
    kinds = [kind for _, _, kind in found]
    sink.add("analysis_summary", job_id=number, study_id=number, finished_at=at, week=f"{at:%Y-%m-%d}",
             outcome="analysed", reason_code="", pipeline_version=VERSION, scanner="Synthetic One",
             kernel="Br40",
             slice_thickness_mm=1.0, n_findings=len(found), n_solid=kinds.count("solid"),
             n_part_solid=kinds.count("part-solid"), n_ground_glass=kinds.count("ground-glass"),
             largest_mm=max((size for size, _, _ in found), default=None),
             malignancy=max((value for _, value, _ in found), default=None),
             lung_rads=_lung_rads(max((size for size, _, _ in found), default=0.0)))  # fmt: skip
    for place, (size, value, kind) in enumerate(found, 1):
        sink.add("nodule", job_id=number, number=place, tracking_uid=_uid("nodule", number, place),
                 tracking_id=f"N{place}", site="right upper lobe", attenuation=kind, mean_diameter_mm=size,
                 malignancy=value)  # fmt: skip


def _lung_rads(largest_mm: float) -> str:
    """As if all were solid nodules of a first screening examination."""
    limits = ((0.0, "1"), (6.0, "2"), (8.0, "3"), (15.0, "4A"))
    return next((category for limit, category in limits if largest_mm <= limit), "4B")


def _results(sink: Sink, number: int, uid: str, at: datetime, ending: str) -> Iterator[Happening]:
    word = {"refused": "failed", "sent": "sent", "failing": "pending", "sending": "sending"}.get(
        ending, "committed"
    )
    for place, kind in enumerate(("seg", "sr", "json", "html", "png")):
        dicom, key = kind in {"seg", "sr"}, number * 5 + place
        sop = _uid(kind, number) if dicom else None
        sink.add("artifact", id=key, job_id=number, kind=kind, path=RESULT if kind == "json" else None,
                 sha256="0" * 64, sop_instance_uid=sop)  # fmt: skip
        if not dicom:
            continue
        sent = at + timedelta(seconds=3)
        sink.add("delivery", artifact_id=key, destination="pacs", state=word, attempts=1, created_at=at,
                 next_attempt_at=sent, sent_at=sent if word in {"sent", "committed"} else None,
                 verified_at=sent if word == "committed" else None, checks=0,
                 status="0000 success")  # fmt: skip
        facts = {"destination": "pacs", "kind": kind, "sop_instance_uid": sop, "job": number}
        yield Happening(at, "worker", Event.DELIVERY_CREATED, 0, uid, facts)
        yield Happening(
            at, "delivery", Event.DELIVERY_CHANGED, 0, uid, facts | {"state": "sending", "attempt": 1}
        )
        yield Happening(
            sent,
            "delivery",
            Event.DELIVERY_CHANGED,
            8 if word == "failed" else 0,
            uid,
            facts | {"state": word, "attempt": 1},
        )


def _looks(day: datetime, numbers: range, wanted: int, random_: random.Random) -> Iterable[Happening]:
    for _ in range(max(0, wanted)):
        at = day + timedelta(seconds=random_.random() * 86_390)
        who, kind = random_.choice(_PEOPLE), random_.random()
        facts: dict[str, Any] = {"address": "10.0.0.7"}
        if kind < 0.002:
            yield Happening(
                at,
                "listener",
                Event.ASSOCIATION_REFUSED,
                4,
                None,
                facts | {"calling_ae": "ODD", "called_ae": "CTNODE"},
            )
        elif kind < 0.01:
            yield Happening(at, who, Event.LOGGED_IN, 0, None, facts)
        elif kind < 0.3:
            yield Happening(at, who, Event.STUDIES_LISTED, 0, None, facts | {"shown": 50})
        else:
            seen = _uid("study", random_.choice(numbers) + 1) if numbers else None
            yield Happening(at, who, Event.STUDY_VIEWED, 0, seen, facts)
