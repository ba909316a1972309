"""How messages leave the node: a signed webhook, and e-mail. Nothing here waits for long."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import smtplib
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from typing import Protocol

import requests

from pacs_node.clock import Clock, utc_now
from pacs_node.config_notify import NotifySettings
from pacs_node.errors import ConfigurationError
from pacs_node.notify_messages import Message

_SHORTEST_SECRET = 24
_WEBHOOK_S = (5.0, 10.0)
_MAIL_S = 20.0


class NotTakenError(Exception):
    """A channel did not take a message.

    Parameters
    ----------
    status
        Why, in words of our own.
    taken
        How many of the messages it took before.
    """

    def __init__(self, status: str, taken: int = 0) -> None:
        super().__init__(status)
        self.status, self.taken = status, taken


class Channel(Protocol):
    """A way out."""

    def send(self, messages: Sequence[Message]) -> str:
        """Hand messages over; return what came of it.

        Raises
        ------
        NotTakenError
            Not all of them were taken.
        """


def secret_of(path: str, key: str, shortest: int = 1) -> str:
    """Read a secret.

    Raises
    ------
    ConfigurationError
        The file can't be read, or the secret is too short.
    """
    try:
        secret = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise ConfigurationError(f"notify.{key} = {path!r}: can't be read ({why})") from None
    if len(secret) < shortest:
        raise ConfigurationError(f"notify.{key} = {path!r}: needs at least {shortest} characters")
    return secret


def _key(secret: str) -> bytes:
    """What signs: a secret with the prefix of Standard Webhooks is base64, any other is taken as it is."""
    if secret.startswith("whsec_"):
        try:
            return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            raise ConfigurationError("notify.webhook_secret_file: whsec_ is not followed by base64") from None
    return secret.encode("utf-8")


def signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of ``webhook-signature`` (Standard Webhooks 1.0.0): HMAC-SHA256 in base64."""
    signed = f"{message_id}.{timestamp}.".encode("ascii") + body
    return f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode('ascii')}"


class Webhook:
    """Posts each message as JSON, with ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature``.

    Parameters
    ----------
    settings
        With a ``webhook_url``.

    Raises
    ------
    ConfigurationError
        The secret can't be used.
    """

    def __init__(self, settings: NotifySettings, clock: Clock = utc_now) -> None:
        self._url, self._verify = settings.webhook_url, settings.webhook_ca_file or True
        self._key = _key(secret_of(settings.webhook_secret_file, "webhook_secret_file", _SHORTEST_SECRET))
        self._clock = clock

    def send(self, messages: Sequence[Message]) -> str:
        """Post them one after the other, until one is not taken."""
        status = ""
        for number, message in enumerate(messages):
            try:
                status = self._post(message)
            except NotTakenError as error:
                raise NotTakenError(error.status, number) from None
        return status

    def _post(self, message: Message) -> str:
        body, timestamp = message.body.encode("ascii"), int(self._clock().timestamp())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "pacs-node",
            "webhook-id": message.message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._key, message.message_id, timestamp, body),
        }
        try:
            with requests.Session() as session:
                session.trust_env = False
                # the body of the answer is never read
                answer = session.post(
                    self._url,
                    body,
                    headers=headers,
                    timeout=_WEBHOOK_S,
                    verify=self._verify,
                    allow_redirects=False,
                    stream=True,
                )
        except OSError as error:
            raise NotTakenError(type(error).__name__) from None
        if not 200 <= answer.status_code < 300:
            raise NotTakenError(f"http {answer.status_code}")
        return f"http {answer.status_code}"


class Mail:
    """Sends all messages of a batch in one mail.

    Parameters
    ----------
    settings
        With a ``mail_host``.
    node
        Stands in the subject.

    Raises
    ------
    ConfigurationError
        A file can't be used.
    """

    def __init__(self, settings: NotifySettings, node: str, clock: Clock = utc_now) -> None:
        self._settings, self._node, self._clock = settings, node, clock
        self._password = (
            secret_of(settings.mail_password_file, "mail_password_file") if settings.mail_user else ""
        )
        try:
            self._context = ssl.create_default_context(cafile=settings.mail_ca_file or None)
        except OSError as error:
            why = error.strerror or error
            raise ConfigurationError(f"notify.mail_ca_file = {settings.mail_ca_file!r}: {why}") from None
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2

    def send(self, messages: Sequence[Message]) -> str:
        """Send one mail."""
        mail = mail_of(messages, self._node, self._clock())
        mail["From"] = self._settings.mail_from
        mail["To"] = ", ".join(self._settings.mail_to)
        with self._server() as server:
            refused = server.send_message(mail)
        count = len(self._settings.mail_to) - len(refused)
        return f"accepted for {count} of {len(self._settings.mail_to)} recipients"

    def probe(self) -> str:
        """Connect and log in, and send nothing.

        Raises
        ------
        NotTakenError
            That can't be done.
        """
        with self._server() as server:
            server.noop()
        return f"{self._settings.mail_host} would take our mail"

    @contextmanager
    def _server(self) -> Iterator[smtplib.SMTP]:
        chosen = self._settings
        made: Callable[..., smtplib.SMTP] = smtplib.SMTP
        options: dict[str, object] = {"timeout": _MAIL_S, "local_hostname": socket.gethostname()}
        if chosen.mail_tls == "tls":
            made, options["context"] = smtplib.SMTP_SSL, self._context
        try:
            with made(chosen.mail_host, chosen.mail_port, **options) as server:
                if chosen.mail_tls == "starttls":
                    server.starttls(context=self._context)
                if chosen.mail_user:
                    server.login(chosen.mail_user, self._password)
                yield server
        except smtplib.SMTPResponseException as error:
            raise NotTakenError(f"smtp {error.smtp_code}") from None
        except OSError as error:
            # all of smtplib
            raise NotTakenError(type(error).__name__) from None


def mail_of(messages: Sequence[Message], node: str, at: datetime) -> EmailMessage:
    """Word a mail. Its Message-ID is that of the first message and their number."""
    mail = EmailMessage()
    several = len(messages) > 1
    mail["Subject"] = f"[{node}] {f'{len(messages)} events' if several else messages[0].topic}"
    mail["Date"] = format_datetime(at)
    mail["Message-ID"] = f"<{messages[0].message_id}.{len(messages)}@pacs-node.invalid>"
    mail["Auto-Submitted"] = "auto-generated"
    lines = []
    for message in messages:
        data = message.data
        lines += [f"{json.loads(message.body)['timestamp']}  {message.topic}", f"  {data['sentence']}"]
        lines += [f"  {data['link']}"] if "link" in data else []
        lines += [f"  study {data['study_uid']}"] if "study_uid" in data and "link" not in data else []
        lines += [f"  event {message.message_id}", ""]
    lines += ["An event may come twice, with the same number.", str(messages[0].data["notice"])]
    mail.set_content("\n".join(lines) + "\n")
    return mail


def open_channels(settings: NotifySettings, node: str) -> dict[str, Channel]:
    """Make the channels of the settings.

    Raises
    ------
    ConfigurationError
        A file can't be used.
    """
    found: dict[str, Channel] = {}
    if settings.webhook_url:
        found["webhook"] = Webhook(settings)
    if settings.mail_host:
        found["mail"] = Mail(settings, node)
    return found
