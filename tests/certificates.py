"""Certificates for tests, made by openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from pacs_node.tls import TlsFiles, read_validity


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for 127.0.0.1 and its key, as PEM files."""

    certificate: Path
    key: Path

    @property
    def sha256(self) -> str:
        """Its SHA-256, as the configuration writes it."""
        return read_validity(self.certificate).sha256

    def trusting(self, other: Certificate) -> TlsFiles:
        """This side's files, trusting only the other's certificate."""
        return TlsFiles(str(self.certificate), str(self.key), str(other.certificate))


def make_certificate(directory: Path, name: str, *, days: int = 365) -> Certificate:
    """Make one with an elliptic key."""
    made = Certificate(directory / f"{name}.pem", directory / f"{name}.key")
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", str(days)]
    names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", "-x509", *options, *names, "-keyout", made.key, "-out", made.certificate],
        check=True,
        capture_output=True,
    )
    return made
