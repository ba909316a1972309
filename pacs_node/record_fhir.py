"""Asks a FHIR R4 server about one patient: exactly one must be meant, and all that comes must be of that one.

Patients are found by the identifier of the images in the system of the settings. Every other resource is
searched by the patient, and its subject is checked all the same: a server that ignores a search parameter
answers with everybody.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any
from urllib.parse import urlencode

from inference.record import RecordCode, RecordIssue
from inference.record_person import SourcedRecord, silent
from pacs_node.clock import Clock, utc_now
from pacs_node.config_record import RecordSettings
from pacs_node.errors import ConfigurationError, SourceSilentError
from pacs_node.record_codes import OBSERVATIONS, Coding
from pacs_node.record_facts import Told, reading_of
from pacs_node.record_fhir_read import (
    Resource,
    element,
    elements,
    facts_of,
    has_identifier,
    is_replaced,
    person_of,
    subject_of,
    word,
)
from pacs_node.record_http import Server, UnauthorizedError
from pacs_node.smart import SmartTokens, read_token

SOURCE = "FHIR"
_PAGES, _PER_PAGE = 5, 100
_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")
_EMPHYSEMA = "http://snomed.info/sct|87433001,http://hl7.org/fhir/sid/icd-10|J43.9"


class WrongPatientError(Exception):
    """The server doesn't tell of exactly the patient that was asked about."""

    def __init__(self, code: RecordCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code, self.sentence = code, sentence


class FhirSource:
    """A FHIR server as a source of clinical records.

    Parameters
    ----------
    settings
        With `fhir_url`.
    clock
        The time of the assertions for tokens.
    """

    def __init__(self, settings: RecordSettings, clock: Clock = utc_now) -> None:
        self._settings = settings
        self._base = settings.fhir_url.rstrip("/")
        self._site = {Coding.of(*_split(code)): str(item) for code, item in settings.codes.items()}
        self._tokens = SmartTokens(settings, clock) if settings.smart_client_id else None

    def ask(self, patient_id: str, seen: date) -> SourcedRecord:
        """Return what the server knows of a patient at the time of a study; never raises for what it answers.

        Parameters
        ----------
        patient_id
            As the images have it.
        seen
            Day of the study.
        """
        if not patient_id.strip():
            return silent(SOURCE, RecordCode.NO_MATCH, "FHIR was not asked: the images have no patient ID.")
        server = Server(self._settings.fhir_ca_file, self._settings.wait_seconds)
        try:
            return self._of(self._authorized(server), patient_id.strip(), seen)
        except WrongPatientError as error:
            return silent(SOURCE, error.code, error.sentence)
        except (SourceSilentError, ConfigurationError) as error:
            reason = "a setting can't be used" if isinstance(error, ConfigurationError) else str(error)
            return silent(SOURCE, RecordCode.NO_ANSWER, f"FHIR gave no answer: {reason}.")
        finally:
            server.close()

    def capabilities(self) -> str:
        """Ask the server what it is.

        Returns
        -------
        str
            Its FHIR version, such as ``4.0.1``.

        Raises
        ------
        SourceSilentError
            It doesn't answer, or is no FHIR server; with tokens, none is given.
        ConfigurationError
            Key or token can't be read.
        """
        server = Server(self._settings.fhir_ca_file, self._settings.wait_seconds)
        try:
            found = self._authorized(server).get(f"{self._base}/metadata")
        finally:
            server.close()
        if found.get("resourceType") != "CapabilityStatement":
            raise SourceSilentError("an answer that is no CapabilityStatement")
        return word(found, "fhirVersion") or "unknown"

    def _authorized(self, server: Server) -> Server:
        if self._tokens is not None:
            server.token = self._tokens.token(server)
        elif self._settings.fhir_token_file:
            server.token = read_token(self._settings.fhir_token_file)
        return server

    def _of(self, server: Server, patient_id: str, seen: date) -> SourcedRecord:
        patient = self._patient(server, patient_id)
        person = person_of(patient, patient_id)
        told: list[Told] = []
        for kind, query in self._searches(word(patient, "id")).items():
            try:
                found, all_of_it = self._search(server, kind, query)
            except SourceSilentError as error:
                words = f"FHIR gave no answer about {kind}: {error}."
                told.append(RecordIssue(RecordCode.NO_ANSWER, "", words))
                continue
            if not all_of_it:
                words = f"FHIR has more of {kind} than was read."
                told.append(RecordIssue(RecordCode.NO_ANSWER, "", words))
            for resource in found:
                self._must_be_of(resource, word(patient, "id"))
                told += facts_of(resource, self._site)
        return SourcedRecord(SOURCE, person, reading_of(told, person, seen, SOURCE))

    def _patient(self, server: Server, patient_id: str) -> Resource:
        system = self._settings.fhir_patient_system
        query = {"identifier": f"{_escaped(system)}|{_escaped(patient_id)}", "_count": "5"}
        found, _ = self._search(server, "Patient", query)
        if any(not has_identifier(one, system, patient_id) for one in found):
            words = "FHIR answered with a patient of another identifier than was asked for; nothing was used."
            raise WrongPatientError(RecordCode.MISMATCH, words)
        if len(found) > 1:
            words = f"FHIR has {len(found)} patients with the ID of the images; nothing was used."
            raise WrongPatientError(RecordCode.AMBIGUOUS, words)
        if not found:
            raise WrongPatientError(RecordCode.NO_MATCH, "FHIR has no patient with the ID of the images.")
        if is_replaced(found[0]):
            words = "FHIR's patient with the ID of the images is no longer in use; nothing was used."
            raise WrongPatientError(RecordCode.MISMATCH, words)
        if not _ID.fullmatch(word(found[0], "id")):
            raise SourceSilentError("a patient without a usable id")
        return found[0]

    def _searches(self, logical_id: str) -> dict[str, dict[str, str]]:
        observed = {*OBSERVATIONS, *self._site}
        codes = ",".join(sorted(f"{_escaped(one.system)}|{_escaped(one.code)}" for one in observed))
        of = {"patient": logical_id, "_count": str(_PER_PAGE)}
        return {
            "Observation": {**of, "code": codes},
            "Condition": of,
            "FamilyMemberHistory": of,
            "DiagnosticReport": {**of, "conclusion": _EMPHYSEMA},
        }

    def _search(self, server: Server, kind: str, query: Mapping[str, str]) -> tuple[list[Resource], bool]:
        """What a search found, and whether that is all of it."""
        address = f"{self._base}/{kind}?{urlencode(query)}"
        found: list[Resource] = []
        for _ in range(_PAGES):
            bundle = self._get(server, address)
            if bundle.get("resourceType") != "Bundle":
                raise SourceSilentError("an answer that is no Bundle")
            found += _matches(bundle, kind)
            following = _next(bundle)
            if not following:
                return found, True
            # the token goes to the server of the settings and to nobody else
            if not following.startswith((f"{self._base}/", f"{self._base}?")):
                return found, False
            address = following
        return found, False

    def _get(self, server: Server, address: str) -> dict[str, Any]:
        try:
            return server.get(address)
        except UnauthorizedError:
            if self._tokens is None:
                raise
        # it may have been withdrawn before its time
        server.token = self._tokens.token(server, anew=True)
        return server.get(address)

    def _must_be_of(self, resource: Resource, logical_id: str) -> None:
        subject = subject_of(resource).partition("/_history/")[0]
        if subject not in {f"Patient/{logical_id}", f"{self._base}/Patient/{logical_id}"}:
            kind = str(resource.get("resourceType"))
            words = f"FHIR answered with the {kind} of another patient; nothing of FHIR was used."
            raise WrongPatientError(RecordCode.MISMATCH, words)


def _split(code: str) -> tuple[str, str]:
    system, _, rest = code.rpartition("|")
    return system, rest


def _matches(bundle: Resource, kind: str) -> Iterator[Resource]:
    for entry in elements(bundle, "entry"):
        resource = element(entry, "resource")
        mode = word(element(entry, "search"), "mode")
        if resource.get("resourceType") == kind and mode in {"", "match"}:
            yield resource


def _next(bundle: Resource) -> str:
    links = elements(bundle, "link")
    return next((str(one.get("url")) for one in links if word(one, "relation") == "next"), "")


def _escaped(text: str) -> str:
    """A value of a search parameter (FHIR R4 3.1.1.4.0.1)."""
    return re.sub(r"([\\$,|])", r"\\\1", text)
