"""What an OpenID Connect provider says of itself: its discovery document and its keys.

Everything is fetched by TLS, without following redirects, in bounded time and size.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any

import jwt
import requests
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from pacs_node.config_web import is_safe_url
from pacs_node.errors import NodeError

ALGORITHMS = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
"""Signatures that are taken, by the type of the key: never none, never one with a shared secret."""

_ALL = frozenset(name for names in ALGORITHMS.values() for name in names)
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
_SHORTEST_RSA = 2048
_LARGEST = 512 * 1024
_CONNECT_S, _READ_S, _WHOLE_S = 3.0, 5.0, 10.0


class OidcError(NodeError):
    """A login can't be done.

    Parameters
    ----------
    sentence
        For the person.
    reason
        For the audit record: short, without anything that a peer wrote.
    """

    def __init__(self, sentence: str, reason: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class ProviderAwayError(OidcError):
    """The provider does not answer."""

    def __init__(self, reason: str) -> None:
        super().__init__("Single sign-on does not answer now. Accounts of this page can log in.", reason)


class AnswerError(Exception):
    """The provider answered with an error; `code` is one of RFC 6749 5.2 or ``http NNN``."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Fetcher:
    """Asks for JSON objects.

    Parameters
    ----------
    ca_file
        Whom to trust (PEM); empty: the authorities of the system.
    """

    def __init__(self, ca_file: str = "") -> None:
        self._verify: str | bool = ca_file or True

    def get(self, url: str) -> dict[str, Any]:
        """Fetch a document.

        Raises
        ------
        ProviderAwayError
            No answer in time, or one that is no JSON object.
        """
        try:
            return self._ask("GET", url)
        except AnswerError as error:
            raise ProviderAwayError(error.code) from None

    def post(self, url: str, form: dict[str, str], basic: tuple[str, str] | None) -> dict[str, Any]:
        """Send a form.

        Raises
        ------
        ProviderAwayError
            As for `get`.
        AnswerError
            It was refused.
        """
        return self._ask("POST", url, data=form, auth=basic)

    def _ask(self, method: str, url: str, **content: Any) -> dict[str, Any]:
        deadline = time.monotonic() + _WHOLE_S
        try:
            with requests.Session() as session:
                # neither a proxy nor a .netrc of the environment
                session.trust_env = False
                answer = session.request(
                    method,
                    url,
                    headers={"Accept": "application/json", "Accept-Encoding": "identity"},
                    timeout=(_CONNECT_S, _READ_S),
                    allow_redirects=False,
                    verify=self._verify,
                    stream=True,
                    **content,
                )
                body = _read(answer, deadline)
        except OSError as error:
            # all of requests, and the file of authorities
            raise ProviderAwayError(type(error).__name__) from None
        return _object(answer.status_code, body)


def _read(answer: requests.Response, deadline: float) -> bytes:
    body = b""
    for piece in answer.iter_content(8192):
        body += piece
        if len(body) > _LARGEST:
            raise ProviderAwayError("answer too large")
        if time.monotonic() > deadline:
            raise ProviderAwayError("answer too slow")
    return body


def _object(status: int, body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if status == 200 and isinstance(found, dict):
        return found
    if 400 <= status < 500:
        code = found.get("error") if isinstance(found, dict) else None
        known = isinstance(code, str) and re.fullmatch(r"[a-z_]{1,40}", code)
        raise AnswerError(str(code) if known else f"http {status}")
    raise ProviderAwayError(f"http {status}" if status != 200 else "no JSON object")


@dataclass(frozen=True, slots=True)
class Metadata:
    """A discovery document, as far as it is used (OpenID Connect Discovery 1.0, 3).

    Parameters
    ----------
    takes_basic
        Whether the client's secret goes by HTTP basic authentication; otherwise in the form.
    names_itself
        Whether each answer must have ``iss`` (RFC 9207).
    knows_pkce
        Whether it says that it knows the method S256 of RFC 7636.
    """

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    end_session_endpoint: str | None
    takes_basic: bool
    names_itself: bool
    knows_pkce: bool


def read_metadata(fetcher: Fetcher, issuer: str) -> Metadata:
    """Fetch and check the discovery document.

    Raises
    ------
    OidcError
        It can't be had, is another provider's, or names an address that is not reached by TLS.
    """
    found = fetcher.get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    if found.get("issuer") != issuer:
        raise OidcError("Single sign-on is not set up rightly: the provider has another name.", "issuer")
    signed = found.get("id_token_signing_alg_values_supported")
    if isinstance(signed, list) and not _ALL.intersection(item for item in signed if isinstance(item, str)):
        raise OidcError("The provider signs in no way that is taken here.", "algorithms")
    ways = found.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
    methods = found.get("code_challenge_methods_supported")
    return Metadata(
        issuer,
        _address(found, "authorization_endpoint"),
        _address(found, "token_endpoint"),
        _address(found, "jwks_uri"),
        _address(found, "end_session_endpoint") if found.get("end_session_endpoint") else None,
        takes_basic="client_secret_basic" in ways,
        names_itself=found.get("authorization_response_iss_parameter_supported") is True,
        knows_pkce=isinstance(methods, list) and "S256" in methods,
    )


def _address(found: dict[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or not is_safe_url(value.partition("?")[0]) or not value.isprintable():
        raise OidcError(f"Single sign-on is not set up rightly: {name} can't be used.", name)
    return value


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key of the provider (RFC 7517)."""

    values: dict[str, Any]

    def fits(self, header: dict[str, Any]) -> bool:
        """Whether a token with this header may be signed by it."""
        algorithm = header.get("alg")
        return (
            isinstance(algorithm, str)
            and algorithm in ALGORITHMS[self.values["kty"]]
            and self.values.get("alg", algorithm) == algorithm
            and _CURVES.get(algorithm) in {None, self.values.get("crv")}
            and header.get("kid") in {None, self.values.get("kid")}
        )

    def made(self, algorithm: str) -> jwt.PyJWK:
        """Return the key for one algorithm that fits.

        Raises
        ------
        jwt.PyJWTError
            It is no key, or too short.
        """
        made = jwt.PyJWK(self.values, algorithm)
        if isinstance(made.key, RSAPublicKey) and made.key.key_size < _SHORTEST_RSA:
            raise jwt.InvalidKeyError(f"RSA of {made.key.key_size} bits")
        return made


def read_keys(fetcher: Fetcher, address: str) -> tuple[SigningKey, ...]:
    """Fetch the keys that sign; those of unknown types are left out.

    Raises
    ------
    OidcError
        They can't be had, or there is none.
    """
    found = fetcher.get(address).get("keys")
    keys = tuple(
        SigningKey(item)
        for item in (found if isinstance(found, list) else [])
        if isinstance(item, dict)
        and item.get("kty") in ALGORITHMS
        and item.get("use", "sig") == "sig"
        and isinstance(item.get("kid", ""), str)
        and "d" not in item
    )
    if not keys:
        raise OidcError("The provider has no key that can be used here.", "keys")
    return keys
