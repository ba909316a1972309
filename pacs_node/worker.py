"""Takes jobs under a lease, has them analysed by the engine, and ends each in a named state."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Event

from sqlalchemy import exists, select
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from inference.errors import ReasonCode
from inference.registry import load_pipeline
from pacs_node import jobs, leases, lifecycle
from pacs_node.ballast import Ballast
from pacs_node.case_of_job import case_request
from pacs_node.clock import Clock, utc_now
from pacs_node.config import Settings
from pacs_node.db import Database, Job, is_full
from pacs_node.engines import Engine, InProcessEngine, ProcessEngine
from pacs_node.errors import AnalysisFailedError, StaleStateError
from pacs_node.priors import StudyPriors, attempt_name, without_priors
from pacs_node.reader import OpenReader, confined_reader
from pacs_node.recipients import note_kept_back, recipients
from pacs_node.record_of_study import StudyRecords
from pacs_node.request import CaseOutcome, CaseRequest, Refusal, run_case
from pacs_node.row_errors import Blame, blame
from pacs_node.states import CancelCause, JobState, SeriesState
from pacs_node.storage import open_database

logger = logging.getLogger(__name__)

_ACTOR = "worker"
_IDLE_SECONDS = 0.5
_POLL_SECONDS = 0.2


class Worker:
    """Analyses one job at a time.

    Parameters
    ----------
    database
        Holds the queue.
    settings
        Pipeline, storage and destinations.
    pipeline_version
        Of the loaded pipeline; a job of another version is analysed by this one all the same, and the
        result says so.
    engine
        Runs `run_case`.
    clock
        Source of time.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        pipeline_version: str,
        engine: Engine,
        clock: Clock = utc_now,
    ) -> None:
        self._database = database
        self._settings = settings
        self._directory = Path(settings.storage.directory)
        self._pipeline_version = pipeline_version
        self._engine = engine
        self._clock = clock
        self._ballast = Ballast(self._directory, settings.storage.ballast_mb << 20)
        self._stop = Event()
        self._records = StudyRecords(database, settings, clock)
        reader = confined_reader() if engine.confined else OpenReader()
        self._priors = StudyPriors(database, settings, reader, clock)

    def run(self, stop: Event) -> None:
        """Work until `stop` is set."""
        self._stop = stop
        while not stop.is_set():
            try:
                busy = self.tick()
            except Exception:
                # the worker's loop: a job whose end could not be written comes back with its lease
                logger.exception("worker step failed")
                busy = False
            if not busy:
                stop.wait(_IDLE_SECONDS)
        self._engine.kill()

    def tick(self) -> bool:
        """Take one job to its end; return False if none is due, or its result would have no room."""
        # what the ballast gave back is for deliveries and the record
        claimed = None if self._ballast.is_given_up else self._claim()
        if claimed is None:
            return False
        job_id, token = claimed
        try:
            with leases.heartbeat(self._database, Job, [job_id], token, self._clock) as lost:
                outcome, state = self._analyse(self._request(job_id), job_id, lost)
            self._with_room(lambda: self._finish(job_id, token, outcome, state))
        except (_RetryLaterError, AnalysisFailedError) as error:
            reason = str(error)
            self._with_room(lambda: self._retry(job_id, token, reason))
        except _ImagesGoneError:
            self._with_room(lambda: self._judge_again(job_id, token))
        except _NoRoomError:
            self._with_room(lambda: self._give_back(job_id, token, "the disk is full"))
        except _StoppedError:
            self._give_back(job_id, token, "the node was stopped")
        except StaleStateError:
            logger.warning("job lease lost; its result is dropped", extra={"job": job_id})
        except Exception as error:
            if isinstance(error, SQLAlchemyError) and blame(error) is Blame.ALL:
                raise
            # the worker's loop: whatever it is, it is an attempt of this job, and no job blocks the queue
            logger.exception("attempt failed by a fault of this software", extra={"job": job_id})
            reason = f"a fault of this software ({type(error).__name__})"
            self._with_room(lambda: self._retry(job_id, token, reason))
        return True

    def _with_room(self, write: Callable[[], None]) -> None:
        """Write down how an attempt ended, as soon as there is room for it: an analysis is not lost so."""
        while True:
            try:
                write()
            except OperationalError as error:
                if not is_full(error) or self._stop.is_set():
                    raise
                logger.error("the disk is full: the end of an attempt waits")  # noqa: TRY400 - no news in it
            else:
                return
            self._stop.wait(_IDLE_SECONDS)

    def _give_back(self, job_id: int, token: str, reason: str) -> None:
        with self._database.write() as session:
            job = session.get_one(Job, job_id)
            try:
                jobs.retry(
                    session,
                    job,
                    token,
                    at=self._clock(),
                    actor=_ACTOR,
                    reason=reason,
                    attempts=job.attempts - 1,
                )
            except StaleStateError:
                logger.warning("job lease lost", extra={"job": job_id})

    def _claim(self) -> tuple[int, str] | None:
        now = self._clock()
        with self._database.read() as session:
            if not session.execute(select(exists().where(jobs.is_due(now)))).scalar_one():
                return None
        with self._database.write() as session:
            claimed = jobs.claim(session, at=now, actor=_ACTOR)
            if claimed is None:
                return None
            job, token = claimed
            logger.info("job started", extra={"job": job.id, "attempt": job.attempts, "kind": job.kind})
            return job.id, token

    def _request(self, job_id: int) -> CaseRequest:
        """What the analysis of a claimed job needs, asked for once it is claimed: an error is its own."""
        with self._database.read() as session:
            job = session.get_one(Job, job_id)
            if job.kind == jobs.ANALYSIS and any(row.path is None for row in job.series.instances):
                raise _ImagesGoneError
            return case_request(session, job, self._settings, confined=self._engine.confined)

    def _judge_again(self, job_id: int, token: str) -> None:
        """A part of a series is never analysed as if it were the whole: intake says what becomes of it."""
        now, reason = self._clock(), "images of this series were removed"
        with self._database.write() as session:
            job = session.get_one(Job, job_id)
            jobs.cancel(session, job, CancelCause.LATE, reason, at=now, actor=_ACTOR, token=token)
            jobs.judge_again(session, job.series, reason, at=now, actor=_ACTOR)

    def _analyse(self, request: CaseRequest, job_id: int, lost: Event) -> tuple[CaseOutcome, JobState]:
        """Return the outcome and the job's last state; raise to try again later."""
        failed = request.refusal is not None and request.refusal.code is ReasonCode.SOFTWARE_FAILURE
        try:
            outcome = self._run(request, job_id, lost)
        except AnalysisFailedError as error:
            logger.warning("attempt failed", extra={"job": job_id, "reason": str(error)})
            with self._database.read() as session:
                attempts = session.get_one(Job, job_id).attempts
            if failed or attempts < self._settings.pipeline.max_attempts:
                raise _RetryLaterError(str(error)) from error
            refusal = Refusal(ReasonCode.SOFTWARE_FAILURE, f"The analysis failed {attempts} times ({error}).")
            return self._analyse(request.with_refusal(refusal), job_id, lost)
        return outcome, JobState.FAILED if failed else JobState.SUCCEEDED

    def _run(self, request: CaseRequest, job_id: int, lost: Event) -> CaseOutcome:
        """Ask for what belongs to the study, and have it analysed."""
        if request.refusal is not None:
            return self._wait(self._engine.submit(run_case, request), lost)

        def interrupted() -> bool:
            return lost.is_set() or self._stop.is_set()

        request = self._records.added_to(request, interrupted)
        with self._priors.added_to(request, attempt_name(job_id, request.out_dir), interrupted) as whole:
            try:
                return self._wait(self._engine.submit(run_case, whole), lost)
            except AnalysisFailedError as error:
                if not whole.priors:
                    raise
                # an earlier examination must not cost the study: whatever it was, once more without
                logger.warning("attempt with an earlier examination failed", extra={"job": job_id})
                alone = without_priors(whole, str(error))
        return self._wait(self._engine.submit(run_case, alone), lost)

    def _wait(self, future: Future[CaseOutcome], lost: Event) -> CaseOutcome:
        deadline = time.monotonic() + self._settings.pipeline.timeout_seconds
        while not wait([future], timeout=_POLL_SECONDS).done:
            if lost.is_set():
                self._engine.kill()
                raise StaleStateError("lease lost")
            if self._stop.is_set():
                self._engine.kill()
                raise _StoppedError
            if time.monotonic() > deadline:
                self._engine.kill()
                raise AnalysisFailedError("time limit")
        try:
            return future.result()
        except Exception as error:
            # the worker's loop: whatever an analysis dies of ends in the job's state
            logger.exception("analysis failed")
            self._engine.kill()
            if self._ballast.is_given_up or _is_full(error):
                raise _NoRoomError from error
            raise AnalysisFailedError(type(error).__name__) from error

    def _finish(self, job_id: int, token: str, outcome: CaseOutcome, state: JobState) -> None:
        now = self._clock()
        analysed = outcome.status == jobs.ANALYSED
        destinations = self._settings.destinations
        with self._database.write() as session:
            job = session.get_one(Job, job_id)
            told = recipients(session, job.series.study_id, destinations, analysed=analysed)
            jobs.finish(
                session,
                job,
                token,
                at=now,
                actor=_ACTOR,
                state=state,
                outcome=outcome.status,
                artifacts=[
                    jobs.NewArtifact(
                        kind=item.kind,
                        path=str(item.path.relative_to(self._directory)),
                        sha256=item.sha256,
                        sop_instance_uid=item.sop_instance_uid,
                        sop_class_uid=item.sop_class_uid,
                        series_uid=item.series_uid,
                        encoding=item.encoding,
                    )
                    for item in outcome.files
                ],
                destinations=[(item.name, item.forms) for item in told],
                reason_code=outcome.reason_code,
                reason=outcome.reason,
            )
            if outcome.files and job.state is not JobState.CANCELLED:
                others = [item for item in destinations if item.forms and item not in told]
                note_kept_back(session, job, others, at=now, actor=_ACTOR)
            unsuitable = job.kind == jobs.ANALYSIS and outcome.status == jobs.NOT_ANALYSED
            queued = job.series.state is SeriesState.QUEUED
            if unsuitable and queued and job.state is JobState.SUCCEEDED:
                self._set_aside(session, job, outcome)
        logger.info(
            "job ended", extra={"job": job_id, "state": state.value, "reason_code": outcome.reason_code}
        )

    def _set_aside(self, session: Session, job: Job, outcome: CaseOutcome) -> None:
        """The pixels were unsuitable: mark the series and, if one is left, queue the next best."""
        now = self._clock()
        lifecycle.move_series(
            session,
            job.series,
            SeriesState.INELIGIBLE,
            at=now,
            actor=_ACTOR,
            reason_code=outcome.reason_code,
            reason=outcome.reason,
        )
        version = self._pipeline_version
        # with a report already made too: another suitable series may have come during the analysis
        following = jobs.pass_on(session, job, pipeline_version=version, at=now, actor=_ACTOR)
        if following is None and not outcome.files:
            jobs.enqueue(
                session,
                job.series,
                kind=jobs.REFUSAL,
                input_digest=job.input_digest,
                pipeline_version=version,
                at=now,
                actor=_ACTOR,
                reason_code=outcome.reason_code,
                reason=outcome.reason,
            )

    def _retry(self, job_id: int, token: str, reason: str) -> None:
        now = self._clock()
        with self._database.write() as session:
            job = session.get_one(Job, job_id)
            try:
                if job.attempts > self._settings.pipeline.max_attempts:
                    # not even the report could be written: the state and its reason are what is left
                    code = ReasonCode.SOFTWARE_FAILURE.value
                    own = job.kind == jobs.REFUSAL
                    lifecycle.move_job(
                        session,
                        job,
                        JobState.FAILED,
                        at=now,
                        actor=_ACTOR,
                        token=token,
                        finished_at=now,
                        lease_token=None,
                        lease_expires_at=None,
                        reason_code=job.reason_code if own else code,
                        reason=job.reason if own else reason,
                        last_error=reason,
                    )
                else:
                    jobs.retry(session, job, token, at=now, actor=_ACTOR, reason=reason)
            except StaleStateError:
                logger.warning("job lease lost", extra={"job": job_id})


class _StoppedError(Exception):
    """The node is being stopped; the attempt doesn't count."""


class _ImagesGoneError(Exception):
    """Some files of the series are no more."""


class _NoRoomError(Exception):
    """The disk is full; the attempt doesn't count."""


class _RetryLaterError(Exception):
    """The attempt failed; the job may be tried again."""


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def run(settings: Settings, stop: Event) -> None:
    """Analyse until `stop` is set."""
    pipeline = settings.pipeline
    database = open_database(settings)
    engine: Engine = InProcessEngine()
    if pipeline.engine == "process":
        results = Path(settings.storage.directory) / "results"
        results.mkdir(exist_ok=True, mode=0o700)
        engine = ProcessEngine(pipeline.threads, writable=[results])
    version = load_pipeline(pipeline.profile, models=Path(pipeline.models)).version
    Worker(database, settings, version, engine).run(stop)
    database.dispose()
