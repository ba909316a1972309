"""One outbox in a process of its own, one archive, and the line between them: all three may fail."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event
from typing import Protocol

from pydicom import dcmread
from pydicom.uid import generate_uid
from sqlalchemy import select
from sqlalchemy.orm import joinedload

from pacs_node import audit, delivery, leases, outbox
from pacs_node.clock import utc_now
from pacs_node.config import DestinationSettings, Settings
from pacs_node.db import Artifact, AuditEvent, Database, Delivery, Job, Series, Study, sqlite_url
from pacs_node.destinations import ObjectRef
from pacs_node.dicomweb import DicomWebDestination
from pacs_node.dimse import DimseDestination
from pacs_node.logs import silence_libraries
from pacs_node.outbox import Outbox
from pacs_node.spool import Spool
from pacs_node.states import DeliveryState
from pacs_node.storage import open_database
from tests.conftest import find_free_port
from tests.faults.invariants import Seen, dataset_sha256, violations
from tests.faults.receiver import context, make_storage
from tests.peers import Orthanc, dcmqrscp, getscu, orthanc
from tests.small_node import SmallNode, TestClock
from tests.tcp_proxy import Line

context.set_forkserver_preload(["tests.faults.receiver", "tests.faults.outbox_lane"])

_CREATED, _CHANGED = audit.Event.DELIVERY_CREATED, audit.Event.DELIVERY_CHANGED

#: (SOP Instance UID, SHA-256 of the data set) of each object
Objects = list[tuple[str, str]]

# discards one object and answers success: whoever doesn't ask afterwards never learns it
_FORGETS = """
function ReceivedInstanceFilter(dicom, origin, info)
  local file = io.open("{0}", "r")
  if file == nil then return true end
  file:close()
  os.remove("{0}")
  return false
end
"""


class Archive(Protocol):
    """A real PACS that may be killed and started again."""

    @property
    def port(self) -> int:
        """Where the line to it goes."""
        ...

    def start(self) -> None:
        """Start it, or start it again with what it had."""
        ...

    def kill(self) -> None:
        """``kill -9``, its children too."""
        ...

    def objects(self, study_uid: str) -> Objects:
        """What it has of a study, each as often as it has it."""
        ...


class OrthancArchive:
    """An Orthanc, which can lose an object and say that it has it."""

    def __init__(
        self, directory: Path, settings: Mapping[str, object] | None = None, *, by_http: bool = False
    ) -> None:
        directory.mkdir()
        self._directory = directory
        self._ports = (find_free_port(), find_free_port())
        self.port = self._ports[by_http]
        self._forget = directory / "forget"
        script = directory / "forget.lua"
        script.write_text(_FORGETS.format(self._forget))
        # it has four threads for associations, and each half-open line keeps one for this long
        self._settings = {"LuaScripts": [str(script)], "DicomScpTimeout": 2, **(settings or {})}
        self._stack = ExitStack()

    def start(self) -> None:
        self._peer: Orthanc = self._stack.enter_context(
            orthanc(self._directory, settings=self._settings, ports=self._ports)
        )

    def kill(self) -> None:
        self._stack.close()

    def forget_the_next(self) -> None:
        """Answer success for the next object, and don't keep it."""
        self._forget.touch()

    def objects(self, study_uid: str) -> Objects:
        found = []
        with tempfile.NamedTemporaryFile() as copy:
            for item in self._peer.instances(study_uid):
                Path(copy.name).write_bytes(self._peer.file(item["OrthancID"]))
                found.append((item["SOPInstanceUID"], dataset_sha256(Path(copy.name))))
        return found


class DcmtkArchive:
    """A dcmqrscp that keeps the bytes as they came."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self.port = find_free_port()
        self._stack = ExitStack()

    def start(self) -> None:
        options = ("+B", "-ta", "2", "-td", "2")
        self._stack.enter_context(dcmqrscp(self._directory, *options, port=self.port, studies=500))

    def kill(self) -> None:
        self._stack.close()

    def objects(self, study_uid: str) -> Objects:
        with tempfile.TemporaryDirectory() as directory:
            said = getscu(self.port, study_uid, Path(directory), called_ae="QRSCP")
            assert said.returncode == 0, said.stderr
            found = [
                (str(dcmread(path, stop_before_pixels=True).SOPInstanceUID), dataset_sha256(path))
                for path in Path(directory).iterdir()
            ]
        # one that it has twice comes twice, into the same file
        again = said.stdout.count("Received C-STORE Request") - len(found)
        return found + [("one of them again", "")] * again


def deliver(settings: Settings, broken: str, whole: bool) -> None:
    """The part of a node that delivers, with shorter waits of its own.

    Parameters
    ----------
    broken
        Name of a negative control below, or nothing.
    whole
        As if the whole node started: what its former parts held is free at once, not when the lease is lost.
    """
    silence_libraries()
    outbox._IDLE_SECONDS = 0.1
    outbox._CHECK_WAIT = timedelta(seconds=0.05)
    leases.LEASE, leases.HEARTBEAT_SECONDS = timedelta(seconds=1), 0.2
    if broken:
        {"new UID": _make_a_new_uid, "unverified": _believe}[broken]()
    if whole:
        database = open_database(settings)
        with database.write() as session:
            leases.give_up_leases_of_serve(session)
        database.dispose()
    delivery.run(settings, Event())


def _make_a_new_uid() -> None:
    """Negative control: each attempt sends a new object, and the row says so."""
    real = Outbox._send

    def send(self: Outbox, batch: list[Delivery], token: str) -> None:
        with self._database.write() as session:
            for row in batch:
                path = self._path(row.artifact)
                ds = dcmread(path)
                ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
                ds.save_as(path)
                for artifact in (row.artifact, session.get_one(Artifact, row.artifact_id)):
                    artifact.sop_instance_uid = str(ds.SOPInstanceUID)
                    artifact.sha256 = _sha256(path)
        real(self, batch, token)

    Outbox._send = send  # type: ignore[method-assign,assignment]


def _believe() -> None:
    """Negative control: whatever was sent counts as delivered."""

    def verify(_self: object, objects: list[ObjectRef]) -> dict[str, bool | None]:
        return dict.fromkeys((item.sop_instance_uid for item in objects), True)

    for kind in (DimseDestination, DicomWebDestination):
        kind.verify = verify  # type: ignore[method-assign,assignment]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Promise:
    """What one job has put into the outbox: by SOP Instance UID the SHA-256 of the file and its data set."""

    study_uid: str
    files: dict[str, str] = field(default_factory=dict)
    objects: Objects = field(default_factory=list)


class Lane:
    """A node's rows, its outbox, a line and an archive.

    Parameters
    ----------
    directory
        An empty one, for the node.
    archive
        Running.
    line
        Before the archive.
    destination
        What the node knows of it.
    """

    def __init__(
        self,
        directory: Path,
        archive: Archive,
        line: Line,
        destination: DestinationSettings,
    ) -> None:
        self.archive, self.line = archive, line
        self.name = destination.name
        self.broken = ""
        """The negative control that its outbox is when it is started."""
        self.promised: list[Promise] = []
        self._settings = Settings.model_validate(
            {
                "storage": {"directory": str(make_storage(directory))},
                "destinations": [destination.model_dump()],
                "delivery": {
                    "retry_first_seconds": 0.1,
                    "retry_longest_seconds": 0.5,
                    "timeout_seconds": 1.0,
                },
            }
        )
        self._directory = directory
        self._database = Database(sqlite_url(directory))
        self._node = SmallNode(self._database, Spool(directory, 1), TestClock())
        self._process: BaseProcess | None = None

    def start(self, *, whole: bool = True) -> None:
        """Start the outbox."""
        arguments = (self._settings, self.broken, whole)
        self._process = context.Process(target=deliver, args=arguments, daemon=True)
        self._process.start()

    def kill(self) -> None:
        """``kill -9`` of the outbox."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def end(self) -> None:
        """Kill it for good."""
        self.kill()
        self._database.dispose()

    def finish_a_job(self, sizes: dict[str, int]) -> Promise:
        """End an analysis with a SEG and an SR, each with so many bytes more: from now on they are due."""
        node = self._node
        node.clock.now = utc_now()
        node.queue(f"{self.name}{len(self.promised)}")
        job, token = node.claim()
        promise = Promise(job.series.study.study_uid)
        result = []
        for item in node.result(job):
            path = node.spool.directory / item.path
            ds = dcmread(path)
            block = ds.private_block(0x0071, "PACSNODE TEST", create=True)
            block.add_new(0x01, "OB", bytes(sizes[item.kind]))
            ds.PatientID = f"{self.name}{len(self.promised)}"
            ds.save_as(path, enforce_file_format=True)
            result.append(replace(item, sha256=_sha256(path)))
            promise.files[str(ds.SOPInstanceUID)] = _sha256(path)
            promise.objects.append((str(ds.SOPInstanceUID), dataset_sha256(path)))
        node.finish(job, token, result, destinations=[(self.name, ("seg", "sr"))])
        self.promised.append(promise)
        return promise

    def wait_for(self, promise: Promise, seconds: float) -> None:
        """Until both objects are at their end, whichever."""
        deadline = time.monotonic() + seconds
        done = {DeliveryState.COMMITTED, DeliveryState.FAILED}
        while not {row.state for row in self._rows(promise)} <= done:
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)

    def _rows(self, promise: Promise) -> list[Delivery]:
        mine = select(Delivery).join(Artifact).join(Job).join(Series).join(Study)
        with self._database.read() as session:
            found = mine.where(Study.study_uid == promise.study_uid).options(joinedload(Delivery.artifact))
            return list(session.execute(found).scalars())

    def attempts(self, promise: Promise) -> int:
        """How often one of both was sent, at most."""
        return max(row.attempts for row in self._rows(promise))

    def wrong(self, promise: Promise) -> list[str]:
        """Hold one study against its promise: rows, files, record, and what the archive has."""
        rows = self._rows(promise)
        found = []
        frozen = {row.artifact.sop_instance_uid: row.artifact.sha256 for row in rows}
        if frozen != promise.files:
            found.append("the outbox has other objects than the job has made")
        for row in rows:
            if row.state is not DeliveryState.COMMITTED or row.lease_token is not None:
                found.append(f"{row.artifact.kind} is {row.state} ({row.status}), held by {row.lease_token}")
            if _sha256(self._directory / (row.artifact.path or "")) != promise.files.get(
                row.artifact.sop_instance_uid or ""
            ):
                found.append(f"the file of {row.artifact.kind} has other bytes")
        found += self._recorded(promise)
        if sorted(there := self.archive.objects(promise.study_uid)) != sorted(promise.objects):
            found.append(f"promised are {promise.objects}, the archive has {there}")
        return [f"{self.name}, study {promise.study_uid}: {sentence}" for sentence in found]

    def _recorded(self, promise: Promise) -> list[str]:
        """The record says of each object once that it was put into the outbox, and once that it arrived."""
        mine = select(AuditEvent).where(AuditEvent.study_uid == promise.study_uid)
        with self._database.read() as session:
            said = Counter(
                (str(event.objects.get("sop_instance_uid")), event.event, event.objects.get("state"))
                for event in session.scalars(mine)
            )
        expected = [
            (uid, kind.value[0], state)
            for uid in promise.files
            for kind, state in ((_CREATED, None), (_CHANGED, DeliveryState.COMMITTED.value))
        ]
        return [f"the record says {said[key]} times: {key}" for key in expected if said[key] != 1]

    def violations(self) -> list[str]:
        """Everything once more at the end, with all the invariants of a node."""
        found = [sentence for promise in self.promised for sentence in self.wrong(promise)]
        there = {uid: None for promise in self.promised for uid, _ in self.archive.objects(promise.study_uid)}
        return found + violations(self._database, self._directory, Seen(arrived={self.name: there}))
