"""When a series is complete, and which series of a study is analysed.

DICOM has no "series done": `pacs_node.completeness` weighs the signals. A study is judged once all its series
are closed; a late instance opens its series again.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Select, exists, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, aliased

from dicom_sr.context import MANUFACTURER
from inference.errors import ReasonCode
from inference.select import SeriesVerdict, rank_series
from pacs_node import jobs, lifecycle
from pacs_node.clock import Clock, utc_now
from pacs_node.completeness import (
    Evidence,
    Limits,
    Silences,
    closing_signal,
    lacks_images,
    sentence_of_lack,
)
from pacs_node.config import ArchiveSettings, CompletenessSettings
from pacs_node.db import Association, Conflict, Database, Instance, Job, Series, Study
from pacs_node.reader import Reader
from pacs_node.returned import ReturnedObjects
from pacs_node.spool import Spool
from pacs_node.states import CancelCause, JobState, SeriesState

logger = logging.getLogger(__name__)

_ACTOR = "intake"
_TRIES = 3


@dataclass(frozen=True, slots=True)
class _Candidate:
    series_uid: str
    paths: tuple[Path, ...]
    #: known without a look at the headers
    refusal: SeriesVerdict | None


class Intake:
    """Closes series, judges studies and queues jobs.

    Parameters
    ----------
    database, spool
        Where the node keeps rows and files.
    settings, archive
        How long silence must last, and what is done where the archive has more images than came.
    pipeline_version
        Part of a job's key: a new version analyses again when it is asked to.
    reader
        Opens the received files.
    returned
        Looks whether a SEG or report is an edited result of ours; None: nobody does.
    clock, monotonic
        The time of day, for rows; and a clock that is never set, in seconds, for silence.
    """

    def __init__(
        self,
        database: Database,
        spool: Spool,
        settings: CompletenessSettings,
        pipeline_version: str,
        *,
        reader: Reader,
        archive: ArchiveSettings | None = None,
        returned: ReturnedObjects | None = None,
        clock: Clock = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._spool = spool
        self._limits = Limits.of(settings, archive)
        self._refuses_parts = archive is not None and archive.incomplete == "refuse"
        self._silences = Silences(clock, monotonic)
        self._pipeline_version = pipeline_version
        self._reader = reader
        self._returned = returned
        self._clock = clock
        #: series id -> (instances looked at, slices had no gap)
        self._looked_at: dict[int, tuple[int, bool]] = {}
        #: study id -> instances of its series when none of them was suitable
        self._waiting: dict[int, dict[str, int]] = {}
        #: study id -> how often in a row it could not be judged
        self._failures: dict[int, int] = {}

    def tick(self) -> None:
        """Do what is due now."""
        self.close_series()
        self.judge_studies()

    def close_series(self) -> None:
        """Move series whose last slice has arrived from ``receiving`` to ``complete``."""
        with self._database.read() as session:
            rows = session.execute(select(Series).where(Series.state == SeriesState.RECEIVING)).scalars()
            candidates = [
                row.id
                for row in rows
                if self._silences.of(row) >= self._limits.settle or row.promised_instances == row.n_instances
            ]
        for series_id in candidates:
            self._each(self._close, series_id)

    def _each(self, step: Callable[[int], None], row_id: int) -> None:
        """Do one step; a study that can't be handled must not stop the others."""
        try:
            step(row_id)
        except Exception:
            # a tick loop: the next tick tries again
            logger.exception("intake step failed", extra={"step": step.__name__, "row": row_id})

    def _close(self, series_id: int) -> None:
        with self._database.read() as session:
            series = session.get_one(Series, series_id)
            evidence = self._evidence(session, series)
            limits = self._limits.for_modality(series.modality)
            paths = self._paths(series)
        seen = evidence.n_instances
        # files are read outside of transactions: a reader would hold up the listener
        signal = closing_signal(evidence, limits, lambda: self._has_no_gaps(series_id, seen, paths))
        if signal is None:
            return
        with self._database.write() as session:
            series = session.get_one(Series, series_id)
            if series.state is SeriesState.RECEIVING and series.n_instances == seen:
                self._looked_at.pop(series_id, None)
                lifecycle.move_series(
                    session,
                    series,
                    SeriesState.COMPLETE,
                    at=self._clock(),
                    actor=_ACTOR,
                    closed_by=signal.value,
                )

    def _evidence(self, session: Session, series: Series) -> Evidence:
        asked_at = series.archive_asked_at
        return Evidence(
            n_instances=series.n_instances,
            silence=self._silences.of(series),
            released=_is_released(session, series),
            promised=series.promised_instances,
            asked=asked_at is not None and asked_at >= series.last_received_at,
            archive=series.archive_instances,
        )

    def _paths(self, series: Series) -> tuple[Path, ...]:
        """Files of a series; empty if retention has removed any."""
        paths = [instance.path for instance in series.instances]
        return tuple(self._spool.absolute(path) for path in paths if path) if all(paths) else ()

    def _has_no_gaps(self, series_id: int, n_instances: int, paths: Sequence[Path]) -> bool:
        known = self._looked_at.get(series_id)
        if known is None or known[0] != n_instances:
            known = self._looked_at[series_id] = (n_instances, self._reader.has_no_gaps(paths))
        return known[1]

    def judge_studies(self) -> None:
        """Queue the best series of each study whose series are all closed; name why not for the others."""
        with self._database.read() as session:
            # by the state of the series, which few have: asked of each study it would be all of the table
            other = aliased(Series)
            receiving = exists().where(
                other.study_id == Series.study_id, other.state == SeriesState.RECEIVING
            )
            complete = select(Series.study_id).where(Series.state == SeriesState.COMPLETE, ~receiving)
            due = session.execute(complete.distinct()).scalars().all()
        for study_id in due:
            self._each(self._judge_or_give_up, study_id)

    def _judge_or_give_up(self, study_id: int) -> None:
        """A study that can't be judged ends with a report too, after some tries."""
        try:
            self._judge(study_id)
        except SQLAlchemyError:
            raise
        except Exception:
            self._failures[study_id] = self._failures.get(study_id, 0) + 1
            if self._failures[study_id] < _TRIES:
                raise
            logger.exception("study could not be judged", extra={"study": study_id})
            sentence = "A fault of this software: the headers of the series could not be judged."
            with self._database.write() as session:
                study = session.get_one(Study, study_id)
                verdicts = [
                    _refusal(series.series_uid, ReasonCode.SOFTWARE_FAILURE, sentence)
                    for series in study.series
                    if series.state is SeriesState.COMPLETE
                ]
                self._decide(session, study, verdicts, ())
        self._failures.pop(study_id, None)

    def _judge(self, study_id: int) -> None:
        with self._database.read() as session:
            study = session.get_one(Study, study_id)
            seen = {series.series_uid: series.n_instances for series in study.series}
            quiet = min(self._silences.of(row) for row in study.series) >= self._limits.quiet
        if not quiet and self._waiting.get(study_id) == seen:
            return
        self._compare_conflicts(study_id)
        edited = self._returned.look_at(study_id) if self._returned is not None else frozenset()
        with self._database.read() as session:
            candidates = [self._candidate(session, row) for row in session.get_one(Study, study_id).series]
        verdicts, own = _verdicts(candidates, self._reader)
        if not quiet and not any(verdict.suitable for verdict in verdicts):
            # a suitable series may still be on its way: no hasty "not analysed"
            self._waiting[study_id] = seen
            return
        self._waiting.pop(study_id, None)
        with self._database.write() as session:
            study = session.get_one(Study, study_id)
            now = {series.series_uid: series.n_instances for series in study.series}
            opened = any(series.state is SeriesState.RECEIVING for series in study.series)
            if now == seen and not opened and not session.execute(_open_conflicts(study_id)).all():
                self._decide(session, study, verdicts, own | edited)

    def _candidate(self, session: Session, series: Series) -> _Candidate:
        refusal, paths = self._refused_before(session, series), self._paths(series)
        if refusal is None and not paths and series.state is SeriesState.COMPLETE:
            sentence = "Images of this series were removed, by retention or as damaged."
            refusal = _refusal(series.series_uid, ReasonCode.GAP, sentence)
        return _Candidate(series.series_uid, paths, refusal)

    def _refused_before(self, session: Session, series: Series) -> SeriesVerdict | None:
        """What is known beyond the headers: conflicting copies, or pixels that were found unsuitable."""
        differing = (
            select(Conflict.id)
            .join(Instance, Conflict.instance_id == Instance.id)
            .where(Instance.series_id == series.id, Conflict.same_content.is_(False))
        )
        if session.execute(differing).first() is not None:
            sentence = "One SOP Instance UID came with two different contents."
            return _refusal(series.series_uid, ReasonCode.CONFLICT, sentence)
        if self._refuses_parts and lacks_images(series):
            return _refusal(series.series_uid, ReasonCode.INCOMPLETE, sentence_of_lack(series))
        unsuitable = select(Job).where(
            Job.series_id == series.id,
            Job.kind == jobs.ANALYSIS,
            Job.input_digest == jobs.input_digest(series),
            Job.pipeline_version == self._pipeline_version,
            Job.outcome == jobs.NOT_ANALYSED,
            Job.state == JobState.SUCCEEDED,
        )
        job = session.execute(unsuitable).scalar_one_or_none()
        if job is None:
            return None
        return _refusal(
            series.series_uid, ReasonCode(job.reason_code or ReasonCode.NOT_CHEST), job.reason or ""
        )

    def _compare_conflicts(self, study_id: int) -> None:
        """Tell a re-encoded copy from another content under the same SOP Instance UID."""
        with self._database.read() as session:
            open_conflicts = session.execute(_open_conflicts(study_id)).scalars().all()
            pairs = [(row.id, row.path, row.instance.path) for row in open_conflicts]
        for conflict_id, path, first_path in pairs:
            same = False
            if path is not None and first_path is not None:
                same = self._reader.same_content(self._spool.absolute(first_path), self._spool.absolute(path))
            with self._database.write() as session:
                session.get_one(Conflict, conflict_id).same_content = same

    def _decide(
        self, session: Session, study: Study, verdicts: Sequence[SeriesVerdict], own: Collection[str]
    ) -> None:
        rows = {series.series_uid: series for series in study.series}
        self._silences.forget(series.id for series in study.series)
        suitable = [verdict for verdict in verdicts if verdict.suitable]
        for rank, verdict in enumerate(verdicts):
            series = rows[verdict.series_uid]
            series.rank = rank if verdict.suitable else None
            if verdict is not (suitable[0] if suitable else None):
                self._set_aside(session, series, verdict)
        if suitable:
            self._withdraw_refusals(session, study, "a suitable series arrived")
            self._queue(session, rows[suitable[0].series_uid])
        elif not any(series.state is SeriesState.QUEUED for series in study.series):
            # answering reports of our own kind with a report would go round in circles
            self._refuse(session, study, [verdict for verdict in verdicts if verdict.series_uid not in own])
        if study.held_reason is not None:
            # what came late doesn't undo an operator's word
            jobs.hold(session, study, study.held_reason, at=self._clock(), actor=_ACTOR)

    def _set_aside(self, session: Session, series: Series, verdict: SeriesVerdict) -> None:
        if series.state not in {SeriesState.COMPLETE, SeriesState.QUEUED}:
            return
        code = verdict.code or ReasonCode.NOT_SELECTED
        now = self._clock()
        cause = CancelCause.SET_ASIDE
        jobs.cancel_unfinished(session, series, cause, verdict.sentence, at=now, actor=_ACTOR)
        lifecycle.move_series(
            session,
            series,
            SeriesState.INELIGIBLE,
            at=now,
            actor=_ACTOR,
            reason_code=code.value,
            reason=verdict.sentence,
        )

    def _queue(self, session: Session, series: Series) -> None:
        if series.state not in {SeriesState.COMPLETE, SeriesState.INELIGIBLE}:
            return
        now, digest = self._clock(), jobs.input_digest(series)
        changed = "its instances have changed"
        jobs.cancel_unfinished(session, series, CancelCause.LATE, changed, at=now, actor=_ACTOR, but=digest)
        jobs.enqueue(
            session,
            series,
            kind=jobs.ANALYSIS,
            input_digest=digest,
            pipeline_version=self._pipeline_version,
            at=now,
            actor=_ACTOR,
        )
        lifecycle.move_series(
            session, series, SeriesState.QUEUED, at=now, actor=_ACTOR, reason_code=None, reason=None
        )

    def _withdraw_refusals(self, session: Session, study: Study, reason: str, but: str | None = None) -> None:
        """Cancel "not analysed" reports that aren't true any more and haven't been written yet."""
        for series in study.series:
            jobs.cancel_unfinished(
                session,
                series,
                CancelCause.WITHDRAWN,
                reason,
                at=self._clock(),
                actor=_ACTOR,
                kinds=[jobs.REFUSAL],
                but=but,
            )

    def _refuse(self, session: Session, study: Study, verdicts: Sequence[SeriesVerdict]) -> None:
        """Queue the report that says why the study was not analysed."""
        if not verdicts:
            return
        rows = {series.series_uid: series for series in study.series}
        first = min(verdicts, key=lambda v: (rows[v.series_uid].modality != "CT", v.series_uid))
        code, sentence = first.code or ReasonCode.NO_SUITABLE_SERIES, first.sentence
        if len(verdicts) > 1:
            code = ReasonCode.NO_SUITABLE_SERIES
            sentence = f"None of the {len(verdicts)} series of the study is suitable. First: {first.sentence}"
        digest = hashlib.sha256()
        for verdict in sorted(verdicts, key=lambda v: v.series_uid):
            digest.update(
                f"{verdict.series_uid} {jobs.input_digest(rows[verdict.series_uid])}\n".encode("ascii")
            )
        self._withdraw_refusals(session, study, "the study has changed", but=digest.hexdigest())
        jobs.enqueue(
            session,
            rows[first.series_uid],
            kind=jobs.REFUSAL,
            input_digest=digest.hexdigest(),
            pipeline_version=self._pipeline_version,
            at=self._clock(),
            actor=_ACTOR,
            reason_code=code.value,
            reason=sentence,
        )


def _is_released(session: Session, series: Series) -> bool:
    """Whether the sender has said that it is done: no association is open, and the last one was released.

    One that was aborted or lost (the node stopped) leaves a sender that will come again.
    """
    endings = session.execute(
        select(Association.ending, Association.closed_at)
        .where(
            Association.id.in_(
                select(Instance.association_id).where(Instance.series_id == series.id).distinct()
            )
        )
        .order_by(Association.id)
    ).all()
    return not endings or (
        all(closed_at is not None for _, closed_at in endings) and endings[-1].ending == "released"
    )


def _verdicts(
    candidates: Sequence[_Candidate], reader: Reader
) -> tuple[tuple[SeriesVerdict, ...], frozenset[str]]:
    """Verdicts in falling order of suitability, and which series are results of a node like this one.

    Series whose images were removed are left out.
    """
    refused = [candidate.refusal for candidate in candidates if candidate.refusal is not None]
    readings = {
        candidate.series_uid: reader.judge(candidate.series_uid, candidate.paths)
        for candidate in candidates
        if candidate.refusal is None and candidate.paths
    }
    own = frozenset(uid for uid, reading in readings.items() if reading.manufacturers == {MANUFACTURER})
    ranked = rank_series(
        [reading.verdict for reading in readings.values()],
        {uid: reading.patients for uid, reading in readings.items()},
    )
    return (*ranked, *refused), own


def _open_conflicts(study_id: int) -> Select[tuple[Conflict]]:
    return (
        select(Conflict)
        .join(Instance, Conflict.instance_id == Instance.id)
        .join(Series, Instance.series_id == Series.id)
        .where(Series.study_id == study_id, Conflict.same_content.is_(None))
    )


def _refusal(series_uid: str, code: ReasonCode, sentence: str) -> SeriesVerdict:
    return SeriesVerdict(
        series_uid=series_uid, suitable=False, code=code, sentence=sentence, score=(), facts={}
    )
