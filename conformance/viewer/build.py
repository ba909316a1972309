"""OHIF's published build: fetched from the npm registry by exact version and hash, unpacked once.

The build is one package of finished JavaScript (MIT licence); ``npm pack`` only downloads it, and nothing of
it is run outside the browser.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@ohif/app"
VERSION = "3.13.2"
INTEGRITY = "sha512-WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
"""Subresource integrity of the package's archive, as the registry and every lock file of npm states it."""

CACHE = Path(__file__).resolve().parent / "cache"
ARCHIVE = f"ohif-app-{VERSION}.tgz"
_FETCH_SECONDS = 300


# How npm says that it can't get through to its registry at all.
_UNREACHABLE = re.compile(
    r"\b(EAI_AGAIN|ECONNREFUSED|ECONNRESET|EHOSTUNREACH|ENETUNREACH|ENOTFOUND|ERR_SOCKET_TIMEOUT|ETIMEDOUT)\b"
)


class BuildUnavailableError(Exception):
    """OHIF's build can't be had; the text says why."""


class RegistryUnreachableError(BuildUnavailableError):
    """The npm registry can't be reached from here."""


def integrity(path: Path) -> str:
    """SHA-512 of a file as subresource integrity (W3C SRI): ``sha512-`` and base64."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    return "sha512-" + base64.b64encode(digest).decode("ascii")


def ohif_build(cache: Path = CACHE) -> Path:
    """The folder with OHIF's ``index.html``, fetched at the first call.

    Parameters
    ----------
    cache
        Holds the archive and the unpacked build. An archive put there by hand saves the download.

    Raises
    ------
    RegistryUnreachableError
        npm can't reach its registry.
    BuildUnavailableError
        npm is missing or refuses, or the archive isn't the one that `INTEGRITY` names.
    """
    build = cache / f"ohif-{VERSION}"
    if build.is_dir():
        return build
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / ARCHIVE
    if not archive.exists():
        _fetch(archive)
    found = integrity(archive)
    if found != INTEGRITY:
        raise BuildUnavailableError(f"{archive} is not {PACKAGE} {VERSION}: {found} instead of {INTEGRITY}")
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        with tarfile.open(archive) as package:
            package.extractall(scratch, filter="data")
        try:
            (Path(scratch) / "package" / "dist").rename(build)
        except OSError:
            # another process unpacked it meanwhile; both are the same
            if not build.is_dir():
                raise
    return build


def _fetch(archive: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise BuildUnavailableError(
            f"npm is needed once, to download {PACKAGE} {VERSION} (or put the archive at {archive})"
        )
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        command = [npm, "pack", "--loglevel=error", "--ignore-scripts", "--fetch-retries=1"]
        command.append(f"{PACKAGE}@{VERSION}")
        try:
            subprocess.run(  # noqa: S603 - fixed words
                command, cwd=scratch, check=True, capture_output=True, text=True, timeout=_FETCH_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            words = f"no answer from the npm registry in {error.timeout:.0f} s"
            raise RegistryUnreachableError(words) from None
        except subprocess.CalledProcessError as error:
            said = " ".join(f"{error.stdout} {error.stderr}".split())[-400:]
            kind = RegistryUnreachableError if _UNREACHABLE.search(said) else BuildUnavailableError
            raise kind(f"npm could not fetch {PACKAGE} {VERSION}: {said}") from None
        (Path(scratch) / ARCHIVE).rename(archive)
