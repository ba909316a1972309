"""Real peers, real data and free ports for every test."""

from __future__ import annotations

import os
import random
import shutil
import socket
import socketserver
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from pacs_node.validators.tool import find_program

ORTHANC_PATHS = (Path("/usr/sbin/Orthanc"),)
ORTHANC_DICOMWEB_PATHS = (
    Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"),
    Path("/usr/local/share/orthanc/plugins/libOrthancDicomWeb.so"),
)
PIXELMED_PATHS = (Path("/usr/share/java/pixelmed.jar"),)
POSTGRESQL_PROGRAMS = ("initdb", "pg_ctl")
REPOSITORY = Path(__file__).resolve().parent.parent


def find_peer(name: str) -> Path | None:
    """Where the peer called `name` is installed, None where it isn't.

    ``orthanc``, ``orthanc-dicomweb`` (its DICOMweb plugin) and ``pixelmed`` (the jar, and java to run it)
    are known by name; every other name is a program on PATH or beside Python. What is beside Python comes
    last, also in an activated environment: pynetdicom has programs of the same names as DCMTK.
    """
    if name == "orthanc":
        found = shutil.which("Orthanc")
        return Path(found) if found else _first_existing(ORTHANC_PATHS)
    if name == "orthanc-dicomweb":
        return _first_existing(ORTHANC_DICOMWEB_PATHS)
    if name in POSTGRESQL_PROGRAMS:
        # Debian keeps them off PATH, one folder for each version
        kept = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
        return kept[-1] if kept else find_program(name)
    if name == "pixelmed":
        return _first_existing(PIXELMED_PATHS) if shutil.which("java") else None
    beside = Path(sys.executable).parent
    elsewhere = [part for part in os.get_exec_path() if Path(part) != beside]
    found = shutil.which(name, path=os.pathsep.join(elsewhere))
    return Path(found) if found else find_program(name)


def _first_existing(paths: tuple[Path, ...]) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def find_shared_data() -> Path | None:
    """The optional collection of real CT, None where it isn't present."""
    named = os.environ.get("PACS_NODE_SHARED_DATA")
    path = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    return path if (path / "ct").is_dir() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test a second try, which the summary lists as RERUN.

    On a busy machine a peer, also one of this process, can starve past a deadline of the protocol. A test
    that needs its second try more than once is a fault to mend. Long forms have none.
    """
    if os.environ.get("PACS_NODE_FAULTS") == "long" or "PACS_NODE_SOAK_SECONDS" in os.environ:
        return
    for item in items:
        item.add_marker(pytest.mark.flaky(reruns=1))


def _required(variable: str) -> bool:
    return os.environ.get(variable) == "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or fail where they are required, the tests whose peers or data are missing."""
    names = [name for mark in item.iter_markers("peer") for name in mark.args]
    missing = [name for name in names if find_peer(name) is None]
    if missing:
        reason = f"needs {', '.join(missing)} (make test-peers)"
        if _required("PACS_NODE_REQUIRE_PEERS"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    if item.get_closest_marker("shared_data") and find_shared_data() is None:
        _no_shared_data()


def _no_shared_data() -> NoReturn:
    reason = "needs the collection of real CT (set PACS_NODE_SHARED_DATA, or put it at ../shared/data)"
    if _required("PACS_NODE_REQUIRE_SHARED_DATA"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def short_poll() -> Iterator[None]:
    """A server of pynetdicom looks every 20 ms, instead of 0.5 s, whether it is to stop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socketserver.BaseServer.serve_forever, "__defaults__", (0.02,))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the optional collection of real CT."""
    found = find_shared_data()
    if found is None:
        _no_shared_data()
    return found


@pytest.fixture(scope="session")
def real_ct(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Unpack a series of the collection, once per session: ``real_ct("LIDC-IDRI-0001")`` is its folder."""
    unpacked: dict[str, Path] = {}

    def unpack(name: str) -> Path:
        if name not in unpacked:
            directory = tmp_path_factory.mktemp(name)
            with tarfile.open(shared_data / "ct" / f"{name}.tar.xz") as archive:
                archive.extractall(directory, filter="data")
            unpacked[name] = directory
        return unpacked[name]

    return unpack


def find_free_port() -> int:
    """A loopback TCP port that was free a moment ago, and that no outgoing connection takes meanwhile."""
    while True:
        port = random.randrange(10_000, 32_768)  # beneath Linux's range of ephemeral ports
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture
def free_port() -> int:
    """One free loopback TCP port."""
    return find_free_port()


@pytest.fixture
def free_ports() -> Callable[[int], list[int]]:
    """Ask for several different free loopback TCP ports: ``free_ports(2)``."""

    def ask(count: int) -> list[int]:
        # All are held open until all are chosen: otherwise the kernel may name one twice.
        probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        ports = [probe.getsockname()[1] for probe in probes]
        for probe in probes:
            probe.close()
        return ports

    return ask
