"""Asks the sources of clinical records about the patient of a study, and holds it no longer than set."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from threading import Event, Thread
from typing import Protocol

from inference.record import RecordCode
from inference.record_person import SourcedRecord, silent
from pacs_node.clock import Clock, utc_now
from pacs_node.config_record import RecordSettings
from pacs_node.record_facts import day_of
from pacs_node.record_fhir import SOURCE as FHIR
from pacs_node.record_fhir import FhirSource

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom the images of a study are of.

    Parameters
    ----------
    study_date
        ``YYYYMMDD`` as the images have it; where it is no date the study counts as of today.
    """

    patient_id: str
    accession_number: str
    study_date: str


class MessageSource(Protocol):
    """What was told by messages; see `pacs_node.clinical_facts`."""

    def of_order(self, patient_id: str, accession_number: str, seen: date) -> Sequence[SourcedRecord]:
        """Return what was told with the order of the study."""
        ...

    def of_patient(self, patient_id: str, accession_number: str, seen: date) -> Sequence[SourcedRecord]:
        """Return what was told of the patient otherwise."""
        ...


class RecordSources:
    """All sources of the settings: messages with the order, the FHIR server, other messages.

    Parameters
    ----------
    settings
        Section ``[record]``.
    messages
        None where no messages are taken.
    """

    def __init__(
        self, settings: RecordSettings, messages: MessageSource | None = None, clock: Clock = utc_now
    ) -> None:
        self._settings, self._messages, self._clock = settings, messages, clock
        self._fhir = FhirSource(settings, clock) if settings.fhir_url else None
        self._asking: Thread | None = None

    def ask(self, subject: Subject, interrupted: Callable[[], bool]) -> tuple[SourcedRecord, ...]:
        """Return what each source told, in the order in which they count.

        Parameters
        ----------
        interrupted
            Whether nobody wants the answer any more.
        """
        seen = (day_of(subject.study_date) if len(subject.study_date) == 8 else None) or self._clock().date()
        told: list[SourcedRecord] = []
        whose = subject.patient_id, subject.accession_number, seen
        if self._messages is not None:
            told += self._messages.of_order(*whose)
        if self._fhir is not None:
            told.append(self._in_time(self._fhir, subject.patient_id, seen, interrupted))
        if self._messages is not None:
            told += self._messages.of_patient(*whose)
        return tuple(told)

    def _in_time(
        self, source: FhirSource, patient_id: str, seen: date, interrupted: Callable[[], bool]
    ) -> SourcedRecord:
        """Ask in a thread: neither a resolver of names nor a library's retry holds the study then."""
        if self._asking is not None and self._asking.is_alive():
            return silent(FHIR, RecordCode.NO_ANSWER, "FHIR gave no answer: it still owes an earlier one.")
        answers: list[SourcedRecord] = []
        done = Event()

        def work() -> None:
            try:
                answers.append(source.ask(patient_id, seen))
            except Exception:
                # a thread's loop: whatever it dies of, the study is analysed, and the result says so
                logger.exception("a source of clinical records failed")
            done.set()

        self._asking = Thread(target=work, name="fhir", daemon=True)
        self._asking.start()
        until = time.monotonic() + self._settings.wait_seconds
        while not done.wait(_POLL_SECONDS) and time.monotonic() < until and not interrupted():
            pass
        if done.is_set() and not answers:
            return silent(FHIR, RecordCode.NO_ANSWER, "FHIR's answer could not be read.")
        if not answers:
            return silent(FHIR, RecordCode.NO_ANSWER, "FHIR gave no answer: no answer in time.")
        return answers[0]


def salt_of(told: Sequence[SourcedRecord]) -> str:
    """Tell results apart that were made of the same images with other records; "" where nothing was asked."""
    return hashlib.sha256(repr(told).encode("utf-8")).hexdigest() if told else ""
