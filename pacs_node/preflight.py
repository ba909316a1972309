"""What only this machine can tell about a configuration, asked once before anything is started.

Without it a part would die and be started again for ever, and the reason would stand in its log only.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import closing
from itertools import combinations
from pathlib import Path

from dicom_sr.wording import WordingError, read_wording
from inference.errors import ModelUnavailableError
from inference.registry import load_pipeline, profiles
from pacs_node import tls
from pacs_node.audit_syslog import client_context
from pacs_node.config import DicomWebDestination, PipelineSettings, Settings
from pacs_node.config_audit import AuditSettings
from pacs_node.delivery import make_destination
from pacs_node.errors import ConfigurationError
from pacs_node.notify_channels import open_channels
from pacs_node.oidc import read_secret

#: The parts of a node that was killed end a moment later and hold their ports until then.
_PORT_SECONDS = 5.0


def check(settings: Settings, parts: Collection[str]) -> None:
    """Look for what would keep these parts from running.

    Parameters
    ----------
    parts
        Names of parts as in `pacs_node.serve.PARTS`.

    Raises
    ------
    ConfigurationError
        One line for each problem: key, value and what is wrong with it.
    """
    problems = list(_ports_of_their_own(settings))
    if "listener" in parts:
        problems += _port("listener", settings.listener.host, settings.listener.port)
        problems += _tls(settings)
    if "syslog" in parts and settings.audit.syslog_host:
        problems += _syslog(settings.audit)
    if "web" in parts:
        problems += _port("web", settings.web.host, settings.web.port)
        problems += _page_tls(settings)
        problems += _single_sign_on(settings)
    if "mllp" in parts and settings.mllp.enabled:
        problems += _port("mllp", settings.mllp.host, settings.mllp.port)
        problems += _mllp_tls(settings)
    if "worker" in parts or "schedule" in parts:
        problems += _pipeline(settings.pipeline, computes="worker" in parts)
    if "notify" in parts:
        problems += _notifications(settings)
    if "delivery" in parts:
        problems += _destinations(settings)
    if problems:
        raise ConfigurationError("\n".join(problems))


def _page_tls(settings: Settings) -> Iterator[str]:
    if settings.web.tls_certificate_file:
        try:
            tls.page_context(settings.web.tls_certificate_file, settings.web.tls_key_file)
        except ConfigurationError as error:
            yield str(error)


def _mllp_tls(settings: Settings) -> Iterator[str]:
    files = settings.mllp.tls_files()
    if files is not None:
        try:
            tls.server_context(files, "mllp")
        except ConfigurationError as error:
            yield str(error)


def _single_sign_on(settings: Settings) -> Iterator[str]:
    try:
        read_secret(settings.oidc)
    except ConfigurationError as error:
        yield str(error)


def _notifications(settings: Settings) -> Iterator[str]:
    try:
        open_channels(settings.notify, settings.listener.ae_title)
    except ConfigurationError as error:
        yield str(error)


def _ports_of_their_own(settings: Settings) -> Iterator[str]:
    """Two doors at one port: whichever came second would be started again for ever."""
    doors = {"listener.port": (settings.listener.host, settings.listener.port)}
    if settings.web.enabled:
        doors["web.port"] = (settings.web.host, settings.web.port)
    if settings.mllp.enabled:
        doors["mllp.port"] = (settings.mllp.host, settings.mllp.port)
    if settings.priors.retrieve == "c-move":
        doors["priors.move_port"] = (settings.priors.move_host, settings.priors.move_port)
    for (first, (host, port)), (second, (other, same)) in combinations(doors.items(), 2):
        if port == same and (host == other or {host, other} & {"0.0.0.0", "::"}):  # noqa: S104 - not bound here
            yield f"{second} = {port}: is {first} too; give each a port of its own"


def _port(section: str, host: str, port: int) -> Iterator[str]:
    deadline = time.monotonic() + _PORT_SECONDS
    while problem := _bind(section, host, port):
        if "in use" not in problem or time.monotonic() > deadline:
            yield problem
            return
        time.sleep(0.1)


def _bind(section: str, host: str, port: int) -> str:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        return f"{section}.host = {host!r}: is no address of this machine ({error.strerror})"
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        # as the servers do: a connection that was closed just now is no obstacle, a listener is
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            # never listen: whoever waits for the node would connect to this socket
            probe.bind(address)
        except PermissionError:
            return f"{section}.port = {port}: this user may not listen on it; from 1024 up anybody may"
        except OSError as error:
            if "in use" in str(error.strerror):
                return f"{section}.port = {port}: is in use on {host}; end what listens there or take another"
            return f"{section}.host = {host!r}: can't be listened on ({error.strerror})"
    return ""


def _tls(settings: Settings) -> Iterator[str]:
    files = settings.listener.tls_files()
    if files is None:
        return
    try:
        tls.server_context(files, "listener")
    except ConfigurationError as error:
        yield str(error)


def _syslog(audit: AuditSettings) -> Iterator[str]:
    try:
        client_context(audit.syslog_ca_file, audit.syslog_certificate_file, audit.syslog_key_file)
    except ConfigurationError as error:
        yield str(error)


def _pipeline(pipeline: PipelineSettings, *, computes: bool) -> Iterator[str]:
    try:
        load_pipeline(pipeline.profile, models=Path(pipeline.models))
    except ModelUnavailableError as error:
        yield f"pipeline.profile = {pipeline.profile!r}: {error}; known: {', '.join(profiles())}"
    if pipeline.wording:
        try:
            read_wording(Path(pipeline.wording))
        except WordingError as error:
            yield f"pipeline.wording = {pipeline.wording!r}: {error}"
    if computes and pipeline.device == "cuda" and not _has_cuda():
        yield "pipeline.device = 'cuda': PyTorch finds no CUDA device here; write \"cpu\""


def _has_cuda() -> bool:
    """Ask in another process: this one stays light."""
    question = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    command = [sys.executable, "-c", question]
    answer = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - a constant question
    return answer.returncode == 0


def _destinations(settings: Settings) -> Iterator[str]:
    for item in settings.destinations:
        if isinstance(item, DicomWebDestination) and item.ca_file and not os.access(item.ca_file, os.R_OK):
            missing = "no such file" if not Path(item.ca_file).exists() else "not readable"
            yield f"destinations ({item.name}).ca_file = {item.ca_file!r}: can't be read ({missing})"
            continue
        try:
            make_destination(item, settings)
        except ConfigurationError as error:
            yield str(error)
