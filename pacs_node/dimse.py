"""C-STORE, C-ECHO and C-FIND as a client (SCU), over pynetdicom."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydicom import Dataset, dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import _config
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # the module makes its names at import time
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from pacs_node.association import Failure, Link, Peer, Timeouts, Tls
from pacs_node.destinations import (
    EchoResult,
    ObjectFile,
    ObjectRef,
    Outcome,
    OutcomeKind,
    UnreadableFileError,
    log_outcomes,
    outcome_of_status,
)

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (objects answered so far, objects in all)."""

DEFAULT_TIMEOUTS = Timeouts()

MAX_CONTEXTS = 128
"""Presentation contexts of one association: odd numbers 1..255 (PS3.8 9.3.2.2)."""

_QUERY_LIMIT_S = 60.0
_RELEASE_MARGIN_S = 30.0


class DimseDestination:
    """A peer that takes objects by C-STORE.

    Parameters
    ----------
    name
        The name in the configuration.
    host, port, called_ae, calling_ae, timeouts, max_pdu, tls
        See `Peer`.
    verify
        ``c-find``: `verify` asks by C-FIND at the IMAGE level (Study Root). ``none``: it answers None.

    Raises
    ------
    ValueError
        An AE title or the port is not valid.
    """

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        called_ae: str,
        calling_ae: str,
        *,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        max_pdu: int = 131072,
        verify: Literal["c-find", "none"] = "c-find",
        tls: Tls | None = None,
    ) -> None:
        self.name = name
        self.peer = Peer(host, port, called_ae, calling_ae, timeouts, max_pdu, tls)
        self._verifies = verify == "c-find"

    def send(self, paths: Sequence[Path], progress: Progress | None = None) -> tuple[Outcome, ...]:
        """Send files over one association (more only where they need over 128 contexts).

        Each file goes byte by byte as it is; one in Explicit VR Little Endian is re-encoded in Implicit VR
        Little Endian for a peer that takes only that.

        Returns
        -------
        tuple
            One outcome for each path, in their order.
        """
        _config.STORE_SEND_CHUNKED_DATASET = True  # a path is sent as its bytes, never decoded
        outcomes: dict[int, Outcome] = {}
        files: dict[int, ObjectFile] = {}
        for index, path in enumerate(paths):
            try:
                files[index] = ObjectFile.read(path)
            except UnreadableFileError as error:
                outcomes[index] = error.outcome()
        failure: Failure | None = None
        for batch in _batches(files):
            for index, outcome in self._send_batch(batch, failure):
                outcomes[index] = outcome
                if progress is not None:
                    progress(len(outcomes), len(paths))
                if outcome.status is None and outcome.kind is OutcomeKind.TRANSIENT:
                    failure = Failure(outcome.kind, outcome.detail)
        log_outcomes(self.name, outcomes.values())
        return tuple(outcomes[index] for index in range(len(paths)))

    def _send_batch(
        self, batch: dict[int, ObjectFile], failure: Failure | None
    ) -> Iterator[tuple[int, Outcome]]:
        """Yield the outcome of each file of one association; after `failure` there is nothing to try."""
        if failure is not None:
            yield from ((index, failure.outcome(file.sop_instance_uid)) for index, file in batch.items())
            return
        limit = self.peer.timeouts.object * len(batch) + _RELEASE_MARGIN_S
        pairs = {pair for file in batch.values() for pair in _pairs(file)}
        contexts = [build_context(*pair) for pair in sorted(pairs)]
        with Link(self.peer, contexts, limit) as link:
            for number, (index, file) in enumerate(batch.items()):
                if link.refused_all():
                    yield index, _no_context(file)
                elif link.failure is not None or link.association is None:
                    yield index, (link.failure or link.broken()).outcome(file.sop_instance_uid)
                else:
                    yield index, _store(link, link.association, file, number)

    def echo(self) -> EchoResult:
        """Send a C-ECHO."""
        start = time.monotonic()
        with Link(self.peer, [build_context(Verification)], _QUERY_LIMIT_S) as link:
            if link.failure is not None or link.association is None:
                detail = (link.failure or link.broken()).detail
                return EchoResult(False, time.monotonic() - start, detail)
            try:
                status = link.association.send_c_echo().get("Status")
            except (RuntimeError, ValueError):  # ended by the peer meanwhile
                status = None
            seconds = time.monotonic() - start
            if status is None:
                return EchoResult(False, seconds, link.broken().detail)
            detail = "answers" if status == 0 else f"answered with status {status:04X}H"
            return EchoResult(status == 0, seconds, detail)

    def accepted(self, pairs: Sequence[tuple[str, str]]) -> set[tuple[str, str]] | Failure:
        """Ask which pairs of SOP class and transfer syntax the peer takes, by negotiation alone.

        Parameters
        ----------
        pairs
            At most `MAX_CONTEXTS`.
        """
        with Link(self.peer, [build_context(*pair) for pair in pairs], _QUERY_LIMIT_S) as link:
            if link.refused_all():
                return set()
            if link.failure is not None or link.association is None:
                return link.failure or link.broken()
            return {
                (str(context.abstract_syntax), str(context.transfer_syntax[0]))
                for context in link.association.accepted_contexts
            }

    def verify(self, objects: Sequence[ObjectRef]) -> dict[str, bool | None]:
        """Ask for each object by C-FIND at the IMAGE level (PS3.4 C.6.2)."""
        found: dict[str, bool | None] = {item.sop_instance_uid: None for item in objects}
        if not self._verifies or not objects:
            return found
        model = build_context(StudyRootQueryRetrieveInformationModelFind)
        with Link(self.peer, [model], _QUERY_LIMIT_S) as link:
            for item in objects:
                if link.failure is not None or link.association is None:
                    break
                found[item.sop_instance_uid] = _find(link, link.association, item)
        return found


def _pairs(file: ObjectFile) -> list[tuple[str, str]]:
    """The (SOP class, transfer syntax) pairs to propose for a file, each as its own context.

    One context for each transfer syntax: an acceptor picks only one of several (PS3.8 7.1.1.14).
    """
    pairs = [(file.sop_class_uid, file.transfer_syntax_uid)]
    if file.transfer_syntax_uid == ExplicitVRLittleEndian:
        pairs.append((file.sop_class_uid, ImplicitVRLittleEndian))
    return pairs


def _batches(files: dict[int, ObjectFile]) -> Iterator[dict[int, ObjectFile]]:
    """Cut the files, in order, so that each part fits into one association."""
    batch: dict[int, ObjectFile] = {}
    proposed: set[tuple[str, str]] = set()
    for index, file in files.items():
        wanted = proposed.union(_pairs(file))
        if len(wanted) > MAX_CONTEXTS:
            yield batch
            batch, wanted = {}, set(_pairs(file))
        batch[index] = file
        proposed = wanted
    if batch:
        yield batch


def _no_context(file: ObjectFile) -> Outcome:
    sop_class, syntax = UID(file.sop_class_uid), UID(file.transfer_syntax_uid)
    detail = f"the peer accepts no presentation context for {sop_class.name} in {syntax.name}"
    return Outcome(file.sop_instance_uid, OutcomeKind.PERMANENT, None, detail)


def _store(link: Link, association: Association, file: ObjectFile, number: int) -> Outcome:
    """Send one file over an established association."""
    accepted = {
        (context.abstract_syntax, context.transfer_syntax[0]) for context in association.accepted_contexts
    }
    usable = [pair for pair in _pairs(file) if pair in accepted]
    if not usable:
        return _no_context(file)
    try:
        # A path is sent as the bytes of the file; only for the fallback they are decoded and encoded again.
        as_it_is = usable[0][1] == file.transfer_syntax_uid
        answer = association.send_c_store(file.path if as_it_is else dcmread(file.path), number % 65535 + 1)
    except RuntimeError:  # the association ended since the last object
        return link.broken().outcome(file.sop_instance_uid)
    except (OSError, ValueError, AttributeError) as error:
        logger.warning("an object can't be read or encoded (%s)", type(error).__name__)
        detail = "the file can't be read or encoded for sending"
        return Outcome(file.sop_instance_uid, OutcomeKind.PERMANENT, None, detail)
    status = answer.get("Status")
    if status is None:
        return link.broken().outcome(file.sop_instance_uid)
    return outcome_of_status(file.sop_instance_uid, int(status))


def _find(link: Link, association: Association, item: ObjectRef) -> bool | None:
    """Ask for one object; None where the answer is not clear."""
    query = Dataset()
    query.QueryRetrieveLevel = "IMAGE"
    query.StudyInstanceUID = item.study_uid
    query.SeriesInstanceUID = item.series_uid
    query.SOPInstanceUID = item.sop_instance_uid
    found = False
    status: int | None = None
    try:
        for answer, identifier in association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind):
            status = answer.get("Status")
            if identifier is not None and identifier.get("SOPInstanceUID") == item.sop_instance_uid:
                found = True
    except (RuntimeError, ValueError):  # the association ended since the last query
        status = None
    if status is None:
        link.broken()
    return found if status == 0x0000 else None


def send_files(
    host: str,
    port: int,
    called_ae: str,
    calling_ae: str,
    paths: Sequence[Path],
    *,
    progress: Progress | None = None,
) -> tuple[Outcome, ...]:
    """Send DICOM files to any C-STORE peer; see `DimseDestination.send`."""
    destination = DimseDestination(called_ae, host, port, called_ae, calling_ae, verify="none")
    return destination.send(paths, progress=progress)
