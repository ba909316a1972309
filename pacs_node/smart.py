"""Access tokens by SMART backend services: client credentials with a signed assertion (private_key_jwt).

SMART App Launch 2.2, "Backend Services" and "Client Authentication: Asymmetric"; RFC 7523.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from pacs_node.clock import Clock
from pacs_node.config_record import RecordSettings
from pacs_node.config_web import is_safe_url
from pacs_node.errors import ConfigurationError, SourceSilentError

_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ASSERTION_SECONDS = 240
_EARLY_SECONDS = 30.0
_SHORTEST_RSA = 2048
_LONGEST_TOKEN = 16_384
_SHORTEST_LIFE, _LONGEST_LIFE = 0.0, 3600.0


class Asks(Protocol):
    """What fetches JSON objects; see `pacs_node.record_fhir.Server`."""

    def get(self, url: str) -> dict[str, Any]:
        """Fetch one."""
        ...

    def post(self, url: str, form: Mapping[str, str]) -> dict[str, Any]:
        """Send a form and take what comes back."""
        ...


class SmartTokens:
    """Keeps one token as long as it is valid.

    Parameters
    ----------
    settings
        With `smart_client_id`.
    clock
        The time of the assertions.
    """

    def __init__(
        self, settings: RecordSettings, clock: Clock, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._clock, self._monotonic = settings, clock, monotonic
        self._token, self._until = "", 0.0

    def token(self, server: Asks, *, anew: bool = False) -> str:
        """Return a token.

        Parameters
        ----------
        anew
            The last one was refused.

        Raises
        ------
        SourceSilentError
            The authorization server gives none.
        ConfigurationError
            The key can't be used.
        """
        if anew or self._monotonic() >= self._until:
            address = self._settings.smart_token_url or self._discover(server)
            begun = self._monotonic()
            answer = server.post(address, self._form(address))
            token = answer.get("access_token")
            kind = str(answer.get("token_type", "")).lower()
            if not _is_token(token) or kind != "bearer":
                raise SourceSilentError("the authorization server gave no bearer token")
            self._token = str(token)
            self._until = begun + _seconds(answer.get("expires_in")) - _EARLY_SECONDS
        return self._token

    def _discover(self, server: Asks) -> str:
        base = self._settings.fhir_url.rstrip("/")
        found = server.get(f"{base}/.well-known/smart-configuration").get("token_endpoint")
        if not isinstance(found, str) or not is_safe_url(found):
            raise SourceSilentError("the server names no token endpoint that can be used")
        return found

    def _form(self, address: str) -> dict[str, str]:
        key, algorithm = read_key(self._settings)
        now = int(self._clock().timestamp())
        claims = {
            "iss": self._settings.smart_client_id,
            "sub": self._settings.smart_client_id,
            "aud": address,
            "exp": now + _ASSERTION_SECONDS,
            "iat": now,
            "jti": secrets.token_urlsafe(24),
        }
        headers = {"kid": self._settings.smart_key_id} if self._settings.smart_key_id else {}
        return {
            "grant_type": "client_credentials",
            "scope": self._settings.smart_scope,
            "client_assertion_type": _ASSERTION,
            "client_assertion": jwt.encode(claims, key, algorithm, headers=headers),
        }


def read_key(settings: RecordSettings) -> tuple[RSAPrivateKey | EllipticCurvePrivateKey, str]:
    """Read the private key and the algorithm that it signs with.

    Raises
    ------
    ConfigurationError
        It can't be read, or is none of the two kinds.
    """
    path = settings.smart_key_file
    try:
        key = load_pem_private_key(Path(path).read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"record.smart_key_file: {path!r}: {type(error).__name__}") from None
    if isinstance(key, RSAPrivateKey) and key.key_size >= _SHORTEST_RSA:
        return key, "RS384"
    if isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP384R1):
        return key, "ES384"
    raise ConfigurationError(
        f"record.smart_key_file: {path!r}: neither RSA of at least {_SHORTEST_RSA} bits nor P-384"
    )


def read_token(path: str) -> str:
    """Read a bearer token from its file.

    Raises
    ------
    ConfigurationError
        It can't be read, or isn't one line of printable characters.
    """
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"record.fhir_token_file: {path!r}: {type(error).__name__}") from None
    if not _is_token(token):
        raise ConfigurationError(f"record.fhir_token_file: {path!r} holds no token")
    return token


def _is_token(found: object) -> bool:
    return (
        isinstance(found, str)
        and 0 < len(found) <= _LONGEST_TOKEN
        and found.isascii()
        and found.isprintable()
        and " " not in found
    )


def _seconds(found: object) -> float:
    if isinstance(found, bool) or not isinstance(found, int | float):
        return _SHORTEST_LIFE
    return float(min(max(found, _SHORTEST_LIFE), _LONGEST_LIFE))
