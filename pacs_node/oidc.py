"""Log in by an OpenID Connect provider: authorization code with PKCE (OpenID Connect Core 1.0, 3.1).

What one login needs to remember stands in a cookie of the browser that began it; state, nonce and code
verifier are derived from it, so an answer that another browser got fits nowhere. Of the answer only the ID
token counts: signed by a key of the provider, for this client, for this login, now.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any
from urllib.parse import quote_plus, urlencode

import jwt
from jwt.utils import base64url_decode, base64url_encode

from pacs_node.clock import Clock, utc_now
from pacs_node.config_web import OidcSettings
from pacs_node.errors import ConfigurationError
from pacs_node.oidc_metadata import (
    AnswerError,
    Fetcher,
    Metadata,
    OidcError,
    ProviderAwayError,
    SigningKey,
    read_keys,
    read_metadata,
)

logger = logging.getLogger(__name__)

RANK = ("administrator", "operator", "auditor", "reader", "viewer")
"""Who is in groups of several roles gets the first of these."""

LOGIN_TIME = timedelta(minutes=10)
SKEW = timedelta(seconds=60)
"""How far the provider's clock may be from ours."""

_KNOWN_FOR_S = 600.0
_AWAY_FOR_S = 10.0
_AT_ONCE = 4
#: what the library raises for JSON that no provider writes
_MALFORMED = (ValueError, TypeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One login that a browser has begun.

    Parameters
    ----------
    secret
        256 random bits, known to the browser only.
    following
        Path of the page that was asked for.
    """

    secret: str
    started_at: datetime
    following: str

    @classmethod
    def begin(cls, following: str, at: datetime) -> Attempt:
        """Return a new one."""
        return cls(secrets.token_urlsafe(32), at.replace(microsecond=0), following[:1500])

    @classmethod
    def of_cookie(cls, value: str, at: datetime) -> Attempt:
        """Read a cookie.

        Raises
        ------
        OidcError
            There is none, or it is older than `LOGIN_TIME`.
        """
        secret, _, rest = value.partition(".")
        seconds, _, following = rest.partition(".")
        try:
            started_at = datetime.fromtimestamp(int(seconds), UTC)
            path = base64url_decode(following.encode("ascii")).decode("ascii")
        except (ValueError, OverflowError, OSError):
            raise OidcError(
                "This login was not begun in this browser, or too long ago.", "no cookie"
            ) from None
        if not timedelta(0) <= at - started_at + SKEW <= LOGIN_TIME + SKEW:
            raise OidcError("This login was begun too long ago.", "too late")
        return cls(secret, started_at, path)

    @property
    def cookie(self) -> str:
        """What the browser keeps."""
        following = _text(self.following.encode("ascii"))
        return f"{self.secret}.{int(self.started_at.timestamp())}.{following}"

    def _derived(self, purpose: str) -> str:
        return _text(hashlib.sha256(f"{purpose} {self.cookie}".encode("ascii")).digest())

    @property
    def state(self) -> str:
        """Tells that an answer belongs to this browser."""
        return self._derived("state")

    @property
    def nonce(self) -> str:
        """Tells that an ID token belongs to this login."""
        return self._derived("nonce")

    @property
    def verifier(self) -> str:
        """Code verifier of RFC 7636."""
        return self._derived("verifier")

    @property
    def challenge(self) -> str:
        """Code challenge of RFC 7636, method S256."""
        return _text(hashlib.sha256(self.verifier.encode("ascii")).digest())


def _text(value: bytes) -> str:
    return base64url_encode(value).decode("ascii")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who somebody is, by the provider's word.

    Parameters
    ----------
    subject
        The provider's name for the person, which never changes.
    name
        For a new account; may be any text.
    role
        None: no group of theirs has one, so they get no way in.
    """

    issuer: str
    subject: str
    name: str
    role: str | None


class Provider:
    """The provider of the settings. What it says of itself is kept for ten minutes.

    Parameters
    ----------
    settings
        With an issuer.
    clock
        Source of time.
    """

    def __init__(
        self,
        settings: OidcSettings,
        clock: Clock = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._clock, self._monotonic = settings, clock, monotonic
        self._fetcher = Fetcher(settings.ca_file)
        self._lock = Lock()
        # the page has few threads, and a provider that hangs must not have all of them
        self._free = BoundedSemaphore(_AT_ONCE)
        self._metadata: tuple[float, Metadata] | None = None
        self._keys: tuple[float, tuple[SigningKey, ...]] | None = None
        self._away_until = 0.0

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._monotonic() < self._away_until or not self._free.acquire(blocking=False):
            raise ProviderAwayError("not asked")
        try:
            yield
        except ProviderAwayError as error:
            logger.warning("the provider of logins does not answer", extra={"reason": error.reason})
            self._away_until = self._monotonic() + _AWAY_FOR_S
            raise
        finally:
            self._free.release()

    def metadata(self) -> Metadata:
        """Return what the provider says of itself.

        Raises
        ------
        OidcError
            It does not answer, or its answer can't be used.
        """
        with self._lock:
            known = self._metadata
        if known is None or self._monotonic() - known[0] > _KNOWN_FOR_S:
            with self._turn():
                fresh = read_metadata(self._fetcher, self._settings.issuer)
            known = (self._monotonic(), fresh)
            with self._lock:
                self._metadata = known
        return known[1]

    def keys(self, *, anew: bool = False) -> tuple[SigningKey, ...]:
        """Return the keys that it signs with; errors as for `metadata`."""
        with self._lock:
            known = None if anew else self._keys
        if known is None or self._monotonic() - known[0] > _KNOWN_FOR_S:
            address = self.metadata().jwks_uri
            with self._turn():
                fresh = read_keys(self._fetcher, address)
            known = (self._monotonic(), fresh)
            with self._lock:
                self._keys = known
        return known[1]

    def authorization_url(self, attempt: Attempt) -> str:
        """Return where the browser goes to log in; errors as for `metadata`."""
        endpoint = self.metadata().authorization_endpoint
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._settings.redirect_uri,
            "scope": " ".join(self._settings.scopes),
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": attempt.challenge,
            "code_challenge_method": "S256",
        }
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"

    def logout_url(self) -> str | None:
        """Return where the browser ends the provider's own session, None where that can't be done so."""
        endpoint = self.metadata().end_session_endpoint
        if endpoint is None:
            return None
        query = {
            "client_id": self._settings.client_id,
            "post_logout_redirect_uri": f"{self._settings.page_url.rstrip('/')}/login",
        }
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"

    def identity(self, attempt: Attempt, code: str, issuer: str | None = None) -> Identity:
        """Redeem the code of an answer and check the ID token.

        Parameters
        ----------
        issuer
            Parameter ``iss`` of the answer (RFC 9207), None where it has none.

        Raises
        ------
        OidcError
            Anything is not as it must be.
        """
        metadata = self.metadata()
        if issuer != metadata.issuer and (issuer is not None or metadata.names_itself):
            raise OidcError("The answer came from another provider.", "issuer of the answer")
        token = self._redeem(metadata, attempt, code)
        return identity_of(self._settings, self._claims(token, attempt))

    def _redeem(self, metadata: Metadata, attempt: Attempt, code: str) -> str:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._settings.redirect_uri,
            "code_verifier": attempt.verifier,
            "client_id": self._settings.client_id,
        }
        secret = read_secret(self._settings)
        # encoded as RFC 6749 2.3.1 asks for
        named = (quote_plus(self._settings.client_id), quote_plus(secret))
        basic = named if secret and metadata.takes_basic else None
        if secret and basic is None:
            form["client_secret"] = secret
        with self._turn():
            try:
                answer = self._fetcher.post(metadata.token_endpoint, form, basic)
            except AnswerError as error:
                sentence = "The provider did not accept this login. Begin again."
                raise OidcError(sentence, f"code refused: {error.code}") from None
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise OidcError("The provider sent no ID token.", "no ID token")
        return token

    def _claims(self, token: str, attempt: Attempt) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key(token),
                audience=self._settings.client_id,
                issuer=self._settings.issuer,
                leeway=SKEW,
                options={"require": ["iss", "sub", "aud", "exp", "iat", "nonce"]},
            )
        except (jwt.PyJWTError, *_MALFORMED) as error:
            raise OidcError("The provider's ID token is not valid.", type(error).__name__) from None
        if not secrets.compare_digest(str(claims["nonce"]).encode(), attempt.nonce.encode()):
            raise OidcError("The provider's ID token is of another login.", "nonce")
        party, several = claims.get("azp"), isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if (several or party is not None) and party != self._settings.client_id:
            raise OidcError("The provider's ID token is for another client.", "azp")
        if int(claims["iat"]) < (attempt.started_at - SKEW).timestamp():
            raise OidcError("The provider's ID token is older than this login.", "iat")
        return claims

    def _key(self, token: str) -> jwt.PyJWK:
        """Find the key of a token; one that isn't known may be new: then the keys are asked for once more."""
        header = jwt.get_unverified_header(token)
        for anew in (False, True):
            fitting = [key for key in self.keys(anew=anew) if key.fits(header)]
            if len(fitting) == 1:
                return fitting[0].made(str(header["alg"]))
        raise OidcError("The provider's ID token is signed by no key of the provider.", "unknown key")


def read_secret(settings: OidcSettings) -> str:
    """Return the client's secret, empty for a public client.

    Raises
    ------
    ConfigurationError
        The file can't be read or is empty.
    """
    path = settings.client_secret_file
    if not path:
        return ""
    try:
        secret = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise ConfigurationError(f"oidc.client_secret_file = {path!r}: can't be read ({why})") from None
    if not secret:
        raise ConfigurationError(f"oidc.client_secret_file = {path!r}: is empty")
    return secret


def identity_of(settings: OidcSettings, claims: dict[str, Any]) -> Identity:
    """Read the person out of the claims of an ID token that was checked.

    Raises
    ------
    OidcError
        The subject is not one (Core 2: at most 255 ASCII characters), or an address nobody has verified.
    """
    subject = claims["sub"]
    if not isinstance(subject, str) or not re.fullmatch(r"[\x20-\x7e]{1,255}", subject):
        raise OidcError("The provider's ID token names nobody.", "sub")
    if settings.role_claim == "email" and claims.get("email_verified") is not True:
        raise OidcError("The provider has not verified this e-mail address.", "email_verified")
    groups = _groups(claims, settings.role_claim)
    found = {role for group, role in settings.roles.items() if group in groups}
    role = next((role for role in RANK if role in found), None)
    return Identity(settings.issuer, subject, str(claims.get(settings.name_claim) or ""), role)


def _groups(claims: dict[str, Any], name: str) -> set[str]:
    value: Any = claims
    if name in claims:
        value = claims[name]
    else:
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, str):
        return {value}
    return {item for item in value if isinstance(item, str)} if isinstance(value, list) else set()
