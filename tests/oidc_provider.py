"""An OpenID Connect provider on this machine: real HTTP, real keys, and answers as wrong as a test wants."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from tests.serving import serving

CLIENT, SECRET = "ct-node", "a secret: with %, + and ü"


def key(number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    """The same key for the same number: making one takes a while."""
    return _made(number, bits)


@cache
def _made(_number: int, bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def public_pem(number: int = 0) -> bytes:
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return key(number).public_key().public_bytes(serialization.Encoding.PEM, kind)


def jwk(number: int, kid: str | None, bits: int = 2048) -> dict[str, Any]:
    values: dict[str, Any] = RSAAlgorithm.to_jwk(key(number, bits).public_key(), as_dict=True)
    return values | {"use": "sig"} | ({"kid": kid} if kid else {})


@dataclass
class Provider:
    """What it does can be changed while it runs."""

    port: int = 0
    host: str = "127.0.0.1"
    #: claims of whoever logs in
    person: dict[str, Any] = field(
        default_factory=lambda: {"sub": "4711", "preferred_username": "Ada@ct.example"}
    )
    groups: list[str] = field(default_factory=lambda: ["ct-readers"])
    #: changes claims before they are signed
    forge: Callable[[dict[str, Any]], dict[str, Any]] = field(default=lambda claims: claims)
    #: signs; by default with key 0 as its key id says
    sign: Callable[[dict[str, Any]], str] | None = None
    keys: list[dict[str, Any]] = field(default_factory=lambda: [jwk(0, "k0")])
    metadata: dict[str, Any] = field(default_factory=dict)
    #: path -> status and body instead of the answer
    instead: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def issuer(self) -> str:
        return f"http://{self.host}:{self.port}"

    def answer(
        self, path: str, query: dict[str, str], form: dict[str, str], basic: str
    ) -> tuple[int, Any, str]:
        """Status, JSON or bytes, and where to go."""
        self.asked.append(path)
        if path in self.instead:
            status, body = self.instead[path]
            return status, body, f"{self.issuer}/elsewhere" if status in {301, 302, 307} else ""
        match path:
            case "/.well-known/openid-configuration":
                return 200, self._describe(), ""
            case "/keys":
                return 200, {"keys": self.keys}, ""
            case "/authorize":
                return 303, b"", self.log_in(query)
            case "/token":
                return *self._redeem(form, basic), ""
            case _:
                return 404, b"", ""

    def _describe(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "end_session_endpoint": f"{self.issuer}/logout",
            "id_token_signing_alg_values_supported": ["RS256"],
            "code_challenge_methods_supported": ["S256"],
        } | self.metadata

    def log_in(self, query: dict[str, str]) -> str:
        """What the provider does once it knows the person: the address that the browser goes back to."""
        code = secrets.token_urlsafe(16)
        self._codes[code] = query
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state']})}"

    def _redeem(self, form: dict[str, str], basic: str) -> tuple[int, Any]:
        begun = self._codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        named = base64.b64decode(basic.removeprefix("Basic ")).decode()
        if [unquote_plus(part) for part in named.split(":")] != [CLIENT, SECRET]:
            return 401, {"error": "invalid_client"}
        if begun is None or begun["code_challenge"] != challenge or begun["code_challenge_method"] != "S256":
            return 400, {"error": "invalid_grant", "error_description": "<script>alert(1)</script>"}
        if form.get("redirect_uri") != begun["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        now = int(time.time())
        claims = self.person | {
            "iss": self.issuer, "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": begun["nonce"],
            "groups": self.groups,
        }  # fmt: skip
        sign = self.sign or (lambda values: jwt.encode(values, key(0), "RS256", {"kid": "k0"}))
        return 200, {"access_token": "x", "token_type": "Bearer", "id_token": sign(self.forge(claims))}


def _handler(provider: Provider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            form = {name: values[0] for name, values in parse_qs(self.rfile.read(length).decode()).items()}
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            basic = self.headers.get("Authorization", "")
            status, body, place = provider.answer(parts.path, query, form, basic)
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            if place:
                self.send_header("Location", place)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def running() -> Iterator[Provider]:
    """A provider that answers until the block ends."""
    provider = Provider()
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), _handler(provider))) as server:
        provider.port = server.server_address[1]
        yield provider
