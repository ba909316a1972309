"""Adds to a request the earlier examinations of the patient, and writes down that they were looked for.

They come from the node's own studies and from the archive. What isn't proved to be of the patient is refused,
said in the result and recorded. An archive holds a study no longer than the settings say.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from threading import Thread

from sqlalchemy import select

from inference.errors import UnsuitableSeriesError
from inference.same_patient import Identity
from pacs_node import audit
from pacs_node.archive import day_of
from pacs_node.clock import Clock, utc_now
from pacs_node.config import Settings
from pacs_node.db import Database, Job
from pacs_node.delivery import make_destination
from pacs_node.dicomweb import DicomWebDestination
from pacs_node.dimse import DimseDestination
from pacs_node.errors import ConfigurationError, NodeError
from pacs_node.priors_archive import IN_TIME, Fetcher, Patience, PriorSource
from pacs_node.priors_dimse import DimsePriors
from pacs_node.priors_move import MoveSettings
from pacs_node.priors_own import OwnPrior, own_priors
from pacs_node.priors_search import Gathered, Search, Wanted
from pacs_node.priors_store import FOLDER, PriorFolder, sweep
from pacs_node.priors_web import WebPriors
from pacs_node.reader import Reader
from pacs_node.request import CaseRequest
from pacs_node.retention import attempt_folder

logger = logging.getLogger(__name__)

_ACTOR = "worker"
_POLL_S = 0.1
_REST_S = 300.0
_DAYS_OF_YEAR = 365.25
_WILDCARDS = frozenset("*?\\")


def open_source(settings: Settings) -> PriorSource | None:
    """Build the client that fetches earlier examinations; None where the settings want none.

    Raises
    ------
    ConfigurationError
        A file of the destination can't be used.
    """
    priors = settings.priors
    if priors.retrieve == "off":
        return None
    (item,) = (one for one in settings.destinations if one.name == settings.archive.destination)
    destination = make_destination(item, settings)
    if isinstance(destination, DicomWebDestination):
        return WebPriors(destination)
    if not isinstance(destination, DimseDestination):
        raise TypeError(f"a destination of kind {item.kind}")
    move = None
    if priors.retrieve == "c-move":
        move = MoveSettings(
            priors.move_ae_title,
            priors.move_host,
            priors.move_port,
            settings.listener,
            settings.callers,
        )
    return DimsePriors(item.name, destination.peer, min(priors.wait_seconds, 60.0), move)


class StudyPriors:
    """The earlier examinations for the studies of a worker.

    Parameters
    ----------
    database
        Holds the node's own studies, and the audit record.
    settings
        Sections ``[priors]``, ``[archive]`` and ``[storage]``.
    reader
        Opens received and fetched files.
    """

    def __init__(
        self, database: Database, settings: Settings, reader: Reader, clock: Clock = utc_now
    ) -> None:
        self._database, self._reader, self._clock = database, reader, clock
        self._priors, self._reserve = settings.priors, settings.storage.reserve_mb << 20
        self._directory = Path(settings.storage.directory)
        self._archive, self._fault = settings.archive.destination, ""
        self._source: PriorSource | None = None
        try:
            self._source = open_source(settings)
        except ConfigurationError:
            # doctor says which file; studies are analysed all the same
            logger.exception("earlier examinations can't be fetched")
            self._fault = "its settings can't be used"
        self._asking: Thread | None = None
        self._rests_until = 0.0

    @contextmanager
    def added_to(
        self, request: CaseRequest, name: str, interrupted: Callable[[], bool]
    ) -> Iterator[CaseRequest]:
        """Give the request with what was found; what was fetched is removed at the end of the block.

        Parameters
        ----------
        name
            Of the folder for this attempt: that of its results.
        interrupted
            Whether nobody wants the answer any more.
        """
        self._sweep()
        max_bytes = self._priors.max_mb << 20
        path = self._directory / FOLDER / name
        folder = PriorFolder(path, max_bytes=max_bytes, reserve_bytes=self._reserve)
        try:
            gathered = self._gathered(request, folder, interrupted)
            self._record(request.identity["StudyInstanceUID"], gathered)
            yield _with(request, gathered)
        finally:
            folder.remove()

    def _sweep(self) -> None:
        if not (self._directory / FOLDER).exists():
            return
        with self._database.read() as session:
            held = session.execute(
                select(Job.id, Job.lease_token).where(Job.lease_token.is_not(None))
            ).tuples()
            in_work = {
                attempt_name(job_id, Path(attempt_folder(job_id, str(token)))) for job_id, token in held
            }
        sweep(self._directory, in_work)

    def _gathered(
        self, request: CaseRequest, folder: PriorFolder, interrupted: Callable[[], bool]
    ) -> Gathered:
        try:
            return self._gather(request, folder, interrupted)
        except (NodeError, OSError):
            # the study is analysed all the same
            logger.exception("earlier examinations could not be looked for")
            return Gathered(notes=["Earlier CTs of the patient could not be looked for: the node failed."])

    def _gather(self, request: CaseRequest, folder: PriorFolder, interrupted: Callable[[], bool]) -> Gathered:
        known = request.identity
        day, patient_id = day_of(known["StudyDate"]), known["PatientID"].strip()
        if day is None or not patient_id:
            return Gathered()
        oldest = day - timedelta(days=self._priors.max_years * _DAYS_OF_YEAR)
        study_uid = known["StudyInstanceUID"]
        own = self._own(study_uid, patient_id, oldest, day)
        if not own and self._source is None and not self._fault:
            return Gathered()
        identity = self._identity(request)
        if identity is None:
            return Gathered()
        wanted = Wanted(identity, study_uid, day, oldest)
        if self._source is None:
            gathered = Search(self._reader, wanted, own, self._priors.number).of_this_node()
            if self._fault:
                gathered.asked(self._archive, None, self._fault)
            return gathered
        return self._with_archive(wanted, own, folder, interrupted)

    def _own(self, study_uid: str, patient_id: str, oldest: date, before: date) -> list[OwnPrior]:
        if not self._priors.own:
            return []
        with self._database.read() as session:
            return own_priors(session, self._directory, study_uid, patient_id, first=oldest, before=before)

    def _identity(self, request: CaseRequest) -> Identity | None:
        """Whom the images are of; None where the first can't be read, which the analysis will say."""
        try:
            (facts,) = self._reader.describe(request.files[:1])
        except UnsuitableSeriesError:
            return None
        return None if facts is None else facts.identity

    def _with_archive(
        self,
        wanted: Wanted,
        own: Sequence[OwnPrior],
        folder: PriorFolder,
        interrupted: Callable[[], bool],
    ) -> Gathered:
        """Ask in a thread: nothing that an archive, a resolver or a library does holds the study longer."""
        source = self._source
        if source is None:
            raise TypeError("no archive")
        reason = self._reason_not_to_ask(wanted.identity)
        found: list[Gathered] = []
        if not reason:
            patience = Patience(self._priors.wait_seconds)
            fetcher = Fetcher(source, self._reader, wanted.identity, folder, patience)

            search = Search(self._reader, wanted, own, self._priors.number)

            def work() -> None:
                try:
                    found.append(search.ask(source, fetcher))
                except Exception:
                    # a thread's loop: whatever it dies of, the study is analysed, and the result says so
                    logger.exception("looking for earlier examinations failed")

            self._asking = Thread(target=work, name="priors", daemon=True)
            self._asking.start()
            self._await(self._asking, interrupted)
            patience.over.set()
            if self._asking.is_alive() and not found:
                self._rests_until = time.monotonic() + _REST_S
                reason = IN_TIME
            elif not found:
                reason = "its answer could not be read"
        if found:
            return found[0]
        gathered = Search(self._reader, wanted, own, self._priors.number).of_this_node()
        gathered.asked(source.name, None, reason)
        return gathered

    def _reason_not_to_ask(self, identity: Identity) -> str:
        if _WILDCARDS & set(identity.patient_id):
            return "it was not, since the patient ID would ask for others too"
        if self._asking is not None and self._asking.is_alive():
            return "it was not, since it still owes an earlier answer"
        if time.monotonic() < self._rests_until:
            return "it was not, since it has not answered in time a moment ago"
        return ""

    def _await(self, thread: Thread, interrupted: Callable[[], bool]) -> None:
        until = time.monotonic() + self._priors.wait_seconds
        while thread.is_alive() and time.monotonic() < until and not interrupted():
            thread.join(_POLL_S)

    def _record(self, study_uid: str, gathered: Gathered) -> None:
        if not gathered.events:
            return
        with self._database.write() as session:
            for event, outcome, told in gathered.events:
                audit.record(
                    session,
                    event,
                    at=self._clock(),
                    actor=_ACTOR,
                    study_uid=study_uid,
                    outcome=outcome,
                    **told,
                )


def attempt_name(job_id: int, out_dir: Path) -> str:
    """Name of the folder of an attempt at a job: by that of its results, which no two share."""
    return f"{job_id:08d}-{out_dir.name}"


def without_priors(request: CaseRequest, reason: str) -> CaseRequest:
    """Return the request without its earlier examinations, and with the sentence that says why."""
    note = f"The analysis with an earlier CT of the patient failed ({reason}): nothing was compared."
    told = f"{request.uid_salt}\n{note}"
    return replace(
        request,
        priors=(),
        baseline=False,
        notes=(*request.notes, note),
        uid_salt=hashlib.sha256(told.encode("utf-8")).hexdigest(),
    )


def _with(request: CaseRequest, gathered: Gathered) -> CaseRequest:
    """Return the request with what was found; compared with something else it is another result."""
    if not (gathered.priors or gathered.notes or gathered.no_prior):
        return request
    notes = [*gathered.notes]
    if gathered.no_prior:
        notes.append(
            f"The archive {gathered.no_prior} has no earlier CT of the patient: read as a first examination."
        )
    told = [request.uid_salt, *notes]
    for prior in gathered.priors:
        told += [prior.study_uid, prior.series_uid, prior.input_digest, prior.source]
        if prior.result is not None:
            told.append(hashlib.sha256(prior.result.summary.read_bytes()).hexdigest())
    return replace(
        request,
        priors=tuple(gathered.priors),
        no_prior=gathered.no_prior,
        # what can't be compared, or couldn't be asked for, may be an earlier one
        baseline=request.baseline and not gathered.notes,
        notes=(*request.notes, *notes),
        uid_salt=hashlib.sha256("\n".join(told).encode("utf-8")).hexdigest(),
    )
