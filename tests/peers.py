"""Real peers for integration tests, started and ended by context managers.

Each test that uses one carries ``@pytest.mark.peer(...)`` with the same names.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.conftest import find_free_port, find_peer

# Without it DCMTK (also inside Orthanc) waits 40 ms for a delayed ACK with each message.
_ENVIRONMENT = {"TCP_NODELAY": "1"}


class PeerDidNotStartError(Exception):
    """A peer ended, or did not listen in time; the text has its last output."""


def _await_listening(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if ready():
            return
        time.sleep(0.05)
    process.kill()
    process.wait()
    raise PeerDidNotStartError(log.read_text(errors="replace")[-2000:])


@contextmanager
def _running(
    command: Sequence[str | Path], directory: Path, ready: Callable[[], bool]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the block ends, then kill it and its children; its output goes to ``peer.log``."""
    log = directory / "peer.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=directory,
            env={**os.environ, **_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _await_listening(process, ready, log)
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also ends a stopped one
            process.wait()


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc: DICOM and HTTP ports on loopback, no password."""

    process: subprocess.Popen[bytes]
    dicom_port: int
    http_port: int
    ae_title: str
    directory: Path

    @property
    def url(self) -> str:
        """The REST root."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def dicomweb_url(self) -> str:
        """The DICOMweb root of its plugin."""
        return f"{self.url}/dicom-web"

    def get(self, path: str) -> Any:
        """GET of the REST interface, decoded JSON."""
        response = requests.get(self.url + path, timeout=10)
        response.raise_for_status()
        return response.json()

    def instances(self, study_uid: str | None = None) -> list[dict[str, str]]:
        """The main tags of each instance, of one study or of all, with the id as ``OrthancID``."""
        query = {"StudyInstanceUID": study_uid} if study_uid else {}
        found = self._find("Instance", query)
        return [{**item["MainDicomTags"], "OrthancID": item["ID"]} for item in found]

    def series(self, study_uid: str | None = None) -> list[dict[str, str]]:
        """The main tags of each series, of one study or of all, with the id as ``OrthancID``."""
        query = {"StudyInstanceUID": study_uid} if study_uid else {}
        found = self._find("Series", query)
        return [{**item["MainDicomTags"], "OrthancID": item["ID"]} for item in found]

    def _find(self, level: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        request = {"Level": level, "Query": dict(query), "Expand": True}
        response = requests.post(f"{self.url}/tools/find", json=request, timeout=30)
        response.raise_for_status()
        answer: list[dict[str, Any]] = response.json()
        return answer

    def file(self, orthanc_id: str) -> bytes:
        """The stored file of an instance."""
        response = requests.get(f"{self.url}/instances/{orthanc_id}/file", timeout=30)
        response.raise_for_status()
        return response.content

    def delete_instance(self, orthanc_id: str) -> None:
        """Forget one instance."""
        requests.delete(f"{self.url}/instances/{orthanc_id}", timeout=10).raise_for_status()

    def clear(self) -> None:
        """Forget everything."""
        for patient in self.get("/patients"):
            requests.delete(f"{self.url}/patients/{patient}", timeout=30).raise_for_status()


@contextmanager
def orthanc(
    directory: Path,
    *,
    ae_title: str = "ORTHANC",
    modalities: Mapping[str, tuple[str, str, int]] | None = None,
    settings: Mapping[str, Any] | None = None,
    user: tuple[str, str] | None = None,
    ports: tuple[int, int] | None = None,
) -> Iterator[Orthanc]:
    """Run Orthanc with its DICOMweb plugin, where that is installed.

    Parameters
    ----------
    directory
        For its configuration and database; must exist.
    modalities
        Known peers: symbolic name to (AE title, host, port), e.g. to send a study from it to a node.
    settings
        More configuration, over what stands here.
    user
        Name and password for the REST interface, where the settings ask for them.
    ports
        Of DICOM and HTTP: to start one again as it was.
    """
    dicom_port, http_port = ports or (find_free_port(), find_free_port())
    plugin = find_peer("orthanc-dicomweb")
    configuration = {
        "Name": ae_title,
        "StorageDirectory": str(directory / "storage"),
        "IndexDirectory": str(directory / "storage"),
        "DicomAet": ae_title,
        "DicomPort": dicom_port,
        "HttpPort": http_port,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "SaveJobs": False,
        "StableAge": 1,
        "OverwriteInstances": False,
        "DicomModalities": {name: list(peer) for name, peer in (modalities or {}).items()},
        "Plugins": [str(plugin)] if plugin else [],
        **(settings or {}),
    }
    file = directory / "orthanc.json"
    file.write_text(json.dumps(configuration, indent=1))

    def ready() -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{http_port}/system", timeout=1, auth=user).ok
        except requests.RequestException:
            return False

    with _running([find_peer("orthanc") or "Orthanc", file], directory, ready) as process:
        yield Orthanc(process, dicom_port, http_port, ae_title, directory)


@dataclass(frozen=True)
class Storescp:
    """A running DCMTK storescp and the folder of what it received."""

    process: subprocess.Popen[bytes]
    port: int
    received: Path

    def files(self) -> list[Path]:
        """What it has received, in order of name."""
        return sorted(path for path in self.received.iterdir() if path.is_file())


@contextmanager
def storescp(directory: Path, *options: str) -> Iterator[Storescp]:
    """Run DCMTK's storescp; `options` as on its command line, e.g. ``+xi`` for Implicit VR only."""
    received = directory / "received"
    received.mkdir(parents=True)
    port = find_free_port()
    command = [find_peer("storescp") or "storescp", *options, "-od", received, str(port)]
    with _running(command, directory, lambda: echoscu(port) == 0) as process:
        yield Storescp(process, port, received)


@contextmanager
def dcmqrscp(
    directory: Path, *options: str, ae_title: str = "QRSCP", port: int = 0, studies: int = 100
) -> Iterator[int]:
    """Run DCMTK's dcmqrscp, an archive with C-STORE, C-FIND and C-GET; gives its port.

    Parameters
    ----------
    directory
        For its configuration and archive; what an earlier one has left there stays.
    options
        As on its command line.
    port
        0 for any.
    studies
        It keeps at most so many (its own limit is 500).
    """
    port = port or find_free_port()
    storage = directory / "archive"
    storage.mkdir(parents=True, exist_ok=True)
    file = directory / "dcmqrscp.cfg"
    file.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 131072\nMaxAssociations = 16\n"
        "HostTable BEGIN\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\n{ae_title} {storage} RW ({studies}, 1024mb) ANY\nAETable END\n"
    )
    command = [find_peer("dcmqrscp") or "dcmqrscp", *options, "-c", file]
    with _running(command, directory, lambda: echoscu(port, called_ae=ae_title) == 0):
        yield port


def _dcmtk(program: str, *arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [str(find_peer(program) or program), *(str(argument) for argument in arguments)]
    environment = {**os.environ, **_ENVIRONMENT}
    return subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )


def storescu(
    port: int,
    *paths: Path,
    calling_ae: str = "STORESCU",
    called_ae: str = "ANY-SCP",
    options: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Send files or folders by DCMTK's storescu, proposing only what the files need."""
    fixed = ["-R", "+sd", "+r", "-aet", calling_ae, "-aec", called_ae]
    return _dcmtk("storescu", *fixed, *options, "127.0.0.1", str(port), *paths, timeout=300)


def echoscu(port: int, *, calling_ae: str = "ECHOSCU", called_ae: str = "ANY-SCP") -> int:
    """C-ECHO by DCMTK's echoscu; its exit code."""
    arguments = ["-to", "5", "-aet", calling_ae, "-aec", called_ae, "127.0.0.1", str(port)]
    return _dcmtk("echoscu", *arguments, timeout=20).returncode


def findscu(
    port: int, keys: Mapping[str, str], *, calling_ae: str = "FINDSCU", called_ae: str = "ANY-SCP"
) -> subprocess.CompletedProcess[str]:
    """C-FIND (Study Root) by DCMTK's findscu; `keys` by keyword; the matches stand in its output."""
    wanted = [part for keyword, value in keys.items() for part in ("-k", f"{keyword}={value}")]
    return _dcmtk(
        "findscu", "-v", "-S", "-aet", calling_ae, "-aec", called_ae, *wanted, "127.0.0.1", str(port)
    )


def getscu(
    port: int, study_uid: str, directory: Path, *, called_ae: str = "ANY-SCP"
) -> subprocess.CompletedProcess[str]:
    """C-GET (Study Root) of a study by DCMTK's getscu, its bytes as they come, into files in `directory`."""
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study_uid}"]
    return _dcmtk(
        "getscu", "-v", "-S", "+B", "-aec", called_ae, *keys, "-od", directory, "127.0.0.1", str(port)
    )
