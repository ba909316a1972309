"""STOW-RS and QIDO-RS as a client, over dicomweb-client.

Success of the request is not success of an object: every SOP Instance UID must stand in the
Referenced SOP Sequence of the answer (PS3.18 10.5, PS3.18 Annex I), whatever the HTTP status says.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

import requests
from dicomweb_client.web import DICOMwebClient

from pacs_node.archive import ArchiveError
from pacs_node.destinations import (
    EchoResult,
    ObjectFile,
    ObjectRef,
    Outcome,
    OutcomeKind,
    UnreadableFileError,
    classify_status,
    log_outcomes,
)
from pacs_node.http_limits import (
    MAX_ANSWER_BYTES,
    AnswerEncodedError,
    AnswerTooLargeError,
    limited_session,
)

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 2**20
"""A request carries several objects up to this size; a larger object goes alone."""

_CHUNK_BYTES = 256 * 1024
_NOBODY = "2.25.0"
"""A study that no archive has: the echo must not fetch patient data."""

_FAILED_SOP_SEQUENCE = "00081198"
_REFERENCED_SOP_SEQUENCE = "00081199"
_REFERENCED_SOP_INSTANCE_UID = "00081155"
_WARNING_REASON = "00081196"
_FAILURE_REASON = "00081197"
_SOP_INSTANCE_UID = "00080018"

_TRANSIENT_HTTP = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_EARLY,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
        HTTPStatus.INSUFFICIENT_STORAGE,
    }
)
_ONE_BAD_PART = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)
"""A refusal of the whole request that may be about one of its objects."""


class _FileClient(DICOMwebClient):
    """Sends and gets the bytes of files as they are; the library's own methods decode and encode them."""

    def post_parts(self, parts: Sequence[bytes]) -> requests.Response:
        """POST PS3.10 files to ``/studies``; the response, whatever its status."""
        content_type = f'multipart/related; type="application/dicom"; boundary="{_boundary(parts)}"'
        body = self._encode_multipart_message(parts, content_type)
        try:
            return self._http_post(f"{self.base_url}/studies", body, {"Content-Type": content_type})
        except requests.HTTPError as error:
            if error.response is None:
                raise
            return error.response

    def get_file(self, address: str) -> bytes:
        """GET one instance as the PS3.10 file that it comes in, unread; ValueError for anything else."""
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        response = self._http_get(f"{self.base_url}/{address}", headers={"Accept": accept})
        if response.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "application/dicom":
            return response.content
        (part,) = self._decode_multipart_message(response, stream=False)
        return bytes(part)


def _boundary(parts: Sequence[bytes]) -> str:
    """Return a boundary that occurs in no part."""
    number = 0
    while any(f"--pacs-node-{number}".encode() in part for part in parts):
        number += 1
    return f"pacs-node-{number}"


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came for a request.

    Parameters
    ----------
    http
        HTTP status, None where no response came.
    stored, failed
        Warning or failure reason (0 or 0110H where none is given) by SOP Instance UID.
    trouble
        What happened where no response came.
    """

    http: int | None
    stored: dict[str, int]
    failed: dict[str, int]
    trouble: _Trouble | None = None

    @classmethod
    def read(cls, response: requests.Response) -> _Answer:
        """Read the Store Instances Response (PS3.18 I.2); a body that can't be read confirms nothing."""
        try:
            body = response.json()
        except (ValueError, RecursionError):
            body = None
        dataset = body[0] if isinstance(body, list) and body else body
        stored = dict(_references(dataset, _REFERENCED_SOP_SEQUENCE, _WARNING_REASON, 0))
        failed = dict(_references(dataset, _FAILED_SOP_SEQUENCE, _FAILURE_REASON, 0x0110))
        return cls(response.status_code, stored, failed)

    def names(self, uid: str) -> bool:
        """Whether it says anything about this object."""
        return uid in self.stored or uid in self.failed

    def outcome(self, uid: str) -> Outcome:
        """Return the outcome for one object of the request."""
        if uid in self.failed:
            return _failed(uid, self.failed[uid])
        if uid in self.stored:
            return _stored(uid, self.stored[uid])
        if self.trouble is not None or self.http is None:
            trouble = self.trouble or _Trouble(OutcomeKind.TRANSIENT, "no answer came")
            return Outcome(uid, trouble.kind, None, trouble.sentence)
        if self.http < HTTPStatus.MULTIPLE_CHOICES:
            sentence = "the receiver did not confirm the object"
            return Outcome(uid, OutcomeKind.TRANSIENT, self.http, sentence)
        kind = OutcomeKind.TRANSIENT if self.http in _TRANSIENT_HTTP else OutcomeKind.PERMANENT
        return Outcome(uid, kind, self.http, f"the receiver answered with HTTP {self.http}")


def _stored(uid: str, warning: int) -> Outcome:
    if not warning:
        return Outcome(uid, OutcomeKind.STORED, 0, "stored")
    kind, clause = classify_status(warning)
    if not kind.stored:
        clause = "stored with a warning"
    return Outcome(uid, OutcomeKind.WARNING_STORED, warning, f"{clause} (reason {warning:04X}H)")


def _failed(uid: str, reason: int) -> Outcome:
    kind, clause = classify_status(reason)
    if kind.stored and reason != 0x0111:  # it stands in the list of the failed
        kind, clause = OutcomeKind.PERMANENT, "the receiver did not store it"
    return Outcome(uid, kind, reason, f"{clause} (reason {reason:04X}H)")


def _references(dataset: Any, sequence: str, reason: str, default: int) -> Iterator[tuple[str, int]]:
    """Yield (SOP Instance UID, reason) of a sequence in DICOM JSON; skips what is malformed."""
    for item in _values(dataset, sequence):
        uid = next(_values(item, _REFERENCED_SOP_INSTANCE_UID), None)
        code = next(_values(item, reason), default)
        if isinstance(uid, str):
            yield uid, code if isinstance(code, int) else default


def _values(dataset: Any, tag: str) -> Iterator[Any]:
    """Yield the values of an element in DICOM JSON (PS3.18 F.2); nothing where it is absent or malformed."""
    element = dataset.get(tag) if isinstance(dataset, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    if isinstance(values, list):
        yield from values


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why no usable response came."""

    kind: OutcomeKind
    sentence: str

    @classmethod
    def of(cls, error: Exception) -> _Trouble:
        """Classify what requests raised: its errors are OSErrors, but a header may raise a ValueError."""
        if isinstance(error, requests.HTTPError) and error.response is not None:
            answer = _Answer(error.response.status_code, {}, {}).outcome("")
            return cls(answer.kind, answer.detail)
        for named, kind, sentence in _TROUBLES:
            if isinstance(error, named):
                return cls(kind, sentence)
        return cls(OutcomeKind.TRANSIENT, f"the request failed ({type(error).__name__})")


_REDIRECTS = "the receiver redirects us, which is not followed; correct the URL"
_TROUBLES = (  # the first that fits: SSLError and ConnectTimeout are ConnectionErrors too
    (requests.TooManyRedirects, OutcomeKind.PERMANENT, _REDIRECTS),
    (
        requests.exceptions.SSLError,
        OutcomeKind.TRANSIENT,
        "TLS failed; look at the certificate and the CA file",
    ),
    (requests.Timeout, OutcomeKind.TRANSIENT, "the receiver did not answer in time"),
    (AnswerTooLargeError, OutcomeKind.TRANSIENT, "the receiver sent more than any answer has"),
    (AnswerEncodedError, OutcomeKind.TRANSIENT, "the receiver compressed its answer unasked"),
    (requests.exceptions.ChunkedEncodingError, OutcomeKind.TRANSIENT, "the answer broke off"),
    (requests.exceptions.JSONDecodeError, OutcomeKind.TRANSIENT, "the answer is not DICOM JSON"),
    (requests.ConnectionError, OutcomeKind.TRANSIENT, "the connection was refused or broke"),
)


class DicomWebDestination:
    """A peer that takes objects by STOW-RS.

    Parameters
    ----------
    name
        The name in the configuration.
    url
        The DICOMweb root, e.g. ``https://pacs.example/dicom-web``.
    user, password
        For HTTP basic authentication.
    headers
        More request headers, e.g. an ``Authorization`` with a bearer token.
    ca
        File with the certificate authority to trust; None means the usual ones.
    verify
        ``qido``: `verify` asks by QIDO-RS. ``none``: it answers None.
    connect_timeout, read_timeout
        Seconds for the connection and for each 256 KiB sent, and for the answer from its first byte to its
        last.

    Raises
    ------
    ValueError
        The URL is not one of HTTP.

    Notes
    -----
    No redirect is followed and no proxy is taken from the environment: objects go to `url` or nowhere.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        user: str | None = None,
        password: str | None = None,
        headers: dict[str, str] | None = None,
        ca: Path | None = None,
        verify: Literal["qido", "none"] = "qido",
        connect_timeout: float = 10.0,
        read_timeout: float = 30.0,
    ) -> None:
        self.name = name
        if not url.startswith(("http://", "https://")):
            raise ValueError("a DICOMweb URL starts with http:// or https://")
        self.url = url.rstrip("/")
        self._user = user
        self._password = password
        self._headers = dict(headers or {})
        self._ca = ca
        self._verifies = verify == "qido"
        self._timeout = (connect_timeout, read_timeout)

    def _session(self, most: int = MAX_ANSWER_BYTES) -> requests.Session:
        session = limited_session(most)
        session.trust_env = False
        session.hooks["response"].append(_refuse_redirect)
        if self._user is not None:
            session.auth = (self._user, self._password or "")
        if self._ca is not None:
            session.verify = str(self._ca)
        session.headers.update({"Accept": "application/dicom+json", **self._headers})
        return session

    def _client(self, session: requests.Session, seconds: float | None = None) -> _FileClient:
        timeout = self._timeout if seconds is None else tuple(min(one, seconds) for one in self._timeout)
        client = _FileClient(self.url, session=session, chunk_size=_CHUNK_BYTES, timeout=timeout)
        # Its retry sends an empty body the second time and reports success; retrying is the outbox's job.
        client.set_http_retry_params(retry=False)
        return client

    def send(self, paths: Sequence[Path]) -> tuple[Outcome, ...]:
        """Send files in as few requests as `MAX_BODY_BYTES` allows; one outcome for each path, in order."""
        outcomes: dict[int, Outcome] = {}
        files: dict[int, ObjectFile] = {}
        for index, path in enumerate(paths):
            try:
                files[index] = ObjectFile.read(path)
            except UnreadableFileError as error:
                outcomes[index] = error.outcome()
        with self._session() as session:
            client = self._client(session)
            for batch in _batches(files):
                outcomes.update(self._send_batch(client, batch))
        log_outcomes(self.name, outcomes.values())
        return tuple(outcomes[index] for index in range(len(paths)))

    def _send_batch(self, client: _FileClient, batch: dict[int, ObjectFile]) -> dict[int, Outcome]:
        """Send one request; a refusal that names no object is asked again for each object alone."""
        try:
            parts = [file.path.read_bytes() for file in batch.values()]
            answer = _Answer.read(client.post_parts(parts))
        except (OSError, ValueError) as error:
            answer = _Answer(None, {}, {}, _Trouble.of(error))
        named = any(answer.names(file.sop_instance_uid) for file in batch.values())
        if len(batch) > 1 and answer.http in _ONE_BAD_PART and not named:
            alone = (self._send_batch(client, {index: file}) for index, file in batch.items())
            return {index: outcome for one in alone for index, outcome in one.items()}
        return {index: answer.outcome(file.sop_instance_uid) for index, file in batch.items()}

    def echo(self) -> EchoResult:
        """Search for a study that nobody has: DICOMweb has no C-ECHO."""
        start = time.monotonic()
        try:
            with self._session() as session:
                self._client(session).search_for_studies(
                    limit=1, search_filters={"StudyInstanceUID": _NOBODY}
                )
        except (OSError, ValueError) as error:
            return EchoResult(False, time.monotonic() - start, _Trouble.of(error).sentence)
        except (TypeError, RecursionError):
            return EchoResult(False, time.monotonic() - start, "the answer is not DICOM JSON")
        return EchoResult(True, time.monotonic() - start, "answers")

    def verify(self, objects: Sequence[ObjectRef]) -> dict[str, bool | None]:
        """Search for each object by QIDO-RS at the instance level of its series."""
        found: dict[str, bool | None] = {item.sop_instance_uid: None for item in objects}
        if not self._verifies:
            return found
        with self._session() as session:
            client = self._client(session)
            for item in objects:
                found[item.sop_instance_uid] = self._search(client, item)
        return found

    def search(
        self,
        what: str,
        *,
        filters: dict[str, str],
        study_uid: str | None = None,
        series_uid: str | None = None,
        fields: Sequence[str] = (),
        limit: int,
        offset: int = 0,
    ) -> list[dict[str, Any]]:
        """Search for ``studies``, ``series`` or ``instances`` by QIDO-RS; one page of matches, DICOM JSON.

        Raises
        ------
        ArchiveError
            No usable answer came.
        """
        options: dict[str, Any] = {"limit": limit, "search_filters": filters, "fields": list(fields) or None}
        if offset:
            options["offset"] = offset
        with self._session() as session:
            client = self._client(session)
            try:
                if what == "studies":
                    found = client.search_for_studies(**options)
                elif what == "series":
                    found = client.search_for_series(study_uid, **options)
                else:
                    found = client.search_for_instances(study_uid, series_uid, **options)
                matches: list[object] = list(found)  # what the peer sent, whatever the client promises
            except OSError as error:
                answer = error.response if isinstance(error, requests.HTTPError) else None
                if answer is not None and answer.status_code == HTTPStatus.NOT_FOUND:
                    return []
                trouble = _Trouble.of(error)
                raise ArchiveError(trouble.kind, trouble.sentence) from error
            except (ValueError, TypeError, RecursionError) as error:
                raise ArchiveError(OutcomeKind.PERMANENT, "the answer is not DICOM JSON") from error
        return [match for match in matches if isinstance(match, dict)]

    @contextmanager
    def retrieving(self, most: int, seconds: float) -> Iterator[Callable[[str], bytes]]:
        """Give a function that retrieves one instance by WADO-RS (PS3.18 10.4), over one connection.

        It takes the instance's address below the DICOMweb root and returns its file as the archive sent it,
        unread, in the transfer syntax in which it is stored there; it raises `ArchiveError`.

        Parameters
        ----------
        most
            Bytes of one answer.
        seconds
            For one answer, where that is less than the destination's limit.
        """
        with self._session(most) as session:
            client = self._client(session, seconds)

            def retrieve(address: str) -> bytes:
                try:
                    return client.get_file(address)
                except OSError as error:
                    trouble = _Trouble.of(error)
                    raise ArchiveError(trouble.kind, trouble.sentence) from error
                except ValueError as error:
                    raise ArchiveError(OutcomeKind.PERMANENT, "the answer is no DICOM file") from error

            yield retrieve

    def _search(self, client: _FileClient, item: ObjectRef) -> bool | None:
        try:
            matches = client.search_for_instances(
                item.study_uid, item.series_uid, search_filters={"SOPInstanceUID": item.sop_instance_uid}
            )
            return any(item.sop_instance_uid in _values(match, _SOP_INSTANCE_UID) for match in matches)
        except requests.HTTPError as error:
            missing = error.response is not None and error.response.status_code == HTTPStatus.NOT_FOUND
            return False if missing else None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            logger.warning("%s: the search failed (%s)", self.name, type(error).__name__)
            return None


def _refuse_redirect(response: requests.Response, **_options: object) -> None:
    """Raise before anybody reads where to; not to be followed isn't enough, the address is read even so."""
    if HTTPStatus.MULTIPLE_CHOICES <= response.status_code < HTTPStatus.BAD_REQUEST:
        raise requests.TooManyRedirects("a redirect is not followed", response=response)


def _batches(files: dict[int, ObjectFile]) -> Iterator[dict[int, ObjectFile]]:
    """Cut the files, in order, into request bodies of at most `MAX_BODY_BYTES`, but at least one file."""
    batch: dict[int, ObjectFile] = {}
    total = 0
    for index, file in files.items():
        size = file.path.stat().st_size if file.path.exists() else 0
        if batch and total + size > MAX_BODY_BYTES:
            yield batch
            batch, total = {}, 0
        batch[index] = file
        total += size
    if batch:
        yield batch
