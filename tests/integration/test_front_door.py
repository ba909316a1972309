"""The front door against DCMTK: TLS on both sides, and what a sender sees of each refusal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset

from pacs_node.config import Caller, ListenerSettings
from pacs_node.db import Database, sqlite_url
from pacs_node.listener import Listener
from pacs_node.spool import Spool
from tests.certificates import Certificate, make_certificate
from tests.conftest import find_free_port
from tests.ct_factory import make_ct_series
from tests.peers import storescu

CALLERS = (Caller(ae_title="STORESCU", address="127.0.0.0/8"),)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificate, Certificate]:
    directory = tmp_path_factory.mktemp("certificates")
    return make_certificate(directory, "node"), make_certificate(directory, "pacs")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    (tmp_path / "storage").mkdir()
    opened = Database(sqlite_url(tmp_path / "storage"))
    opened.upgrade()
    yield opened
    opened.dispose()


@pytest.fixture
def spool(tmp_path: Path, database: Database) -> Spool:
    return Spool(tmp_path / "storage", 1)


def write(tmp_path: Path, *datasets: Dataset) -> list[Path]:
    paths = [tmp_path / f"{number}.dcm" for number in range(len(datasets))]
    for ds, path in zip(datasets, paths, strict=True):
        ds.save_as(path, enforce_file_format=True)
    return paths


@pytest.mark.peer("storescu", "openssl")
def test_dcmtk_by_tls(
    tmp_path: Path, database: Database, spool: Spool, certificates: tuple[Certificate, Certificate]
) -> None:
    node, pacs = certificates
    settings = ListenerSettings(
        port=find_free_port(),
        tls_certificate_file=str(node.certificate),
        tls_key_file=str(node.key),
        tls_client_ca_file=str(pacs.certificate),
    )
    listener = Listener(settings, CALLERS, database, spool)
    port = listener.start()
    paths = write(tmp_path, *make_ct_series(4, matrix=64))
    known = ["+tls", str(pacs.key), str(pacs.certificate), "+cf", str(node.certificate)]
    done = storescu(port, *paths, called_ae="CTNODE", options=known)
    assert done.returncode == 0, done.stderr
    anonymous = ["+tla", "+cf", str(node.certificate)]
    assert storescu(port, *paths, called_ae="CTNODE", options=anonymous).returncode != 0
    assert storescu(port, *paths, called_ae="CTNODE").returncode != 0
    listener.stop()
    assert len(list((spool.directory / "instances").rglob("*.dcm"))) == 4


@pytest.mark.peer("storescu")
def test_what_a_sender_sees_of_a_refusal(tmp_path: Path, database: Database, spool: Spool) -> None:
    """DCMTK names the class of each status (PS3.4 table B.2-1)."""
    listener = Listener(ListenerSettings(port=find_free_port()), CALLERS, database, spool)
    port = listener.start()
    first, second = make_ct_series(2, matrix=64)
    second.SOPInstanceUID = first.SOPInstanceUID
    second.file_meta.MediaStorageSOPInstanceUID = first.SOPInstanceUID
    second.SeriesInstanceUID = "1.2.3"
    taken, elsewhere = write(tmp_path, first, second)
    assert "0x0000" in _status(port, taken)
    assert "0xa900" in _status(port, elsewhere)
    spool._reserve_bytes = 1 << 60
    assert "0xa700" in _status(port, taken)
    listener.stop()


def _status(port: int, path: Path) -> str:
    """What storescu says about the response, in lower case; the numbers stand in its debug output."""
    done = storescu(port, path, called_ae="CTNODE", options=["-d"])
    return (done.stdout + done.stderr).lower()
