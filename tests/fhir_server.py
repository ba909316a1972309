"""A FHIR R4 server on this machine: real HTTP, SMART backend services, answers as wrong as a test wants."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt

from tests.serving import serving

SYSTEM = "urn:oid:1.2.276.0.99"
LOINC, SNOMED = "http://loinc.org", "http://snomed.info/sct"
CLIENT = "ct-node"


def concept(system: str, code: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}]}


def patient(
    number: str = "P-17", *, key: str = "a1", born: str = "1958-05-04", **more: Any
) -> dict[str, Any]:
    identifier = [{"system": SYSTEM, "value": number}]
    of = {
        "resourceType": "Patient",
        "id": key,
        "identifier": identifier,
        "birthDate": born,
        "gender": "female",
    }
    return of | more


def observation(code: str, *, system: str = LOINC, day: str = "2026-01-10", **value: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": concept(system, code),
        "subject": {"reference": "Patient/a1"},
        "effectiveDateTime": day,
    } | value


def condition(system: str, code: str, onset: str = "2012-03-04", **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Condition",
        "code": concept(system, code),
        "subject": {"reference": "Patient/a1"},
        "onsetDateTime": onset,
    } | more


def family(relative: str = "MTH", code: str = "C34.9") -> dict[str, Any]:
    return {
        "resourceType": "FamilyMemberHistory",
        "status": "completed",
        "patient": {"reference": "Patient/a1"},
        "relationship": concept("http://terminology.hl7.org/CodeSystem/v3-RoleCode", relative),
        "condition": [{"code": concept("http://hl7.org/fhir/sid/icd-10-cm", code)}],
    }


def smoker(code: str = "8517006", day: str = "2026-01-10") -> dict[str, Any]:
    return observation("72166-2", day=day, valueCodeableConcept=concept(SNOMED, code))


def full() -> list[dict[str, Any]]:
    """A patient of whom all is known."""
    years = {"value": 40, "unit": "pack years", "system": "http://unitsofmeasure.org", "code": "{PackYears}"}
    return [
        patient(),
        smoker(),
        observation("401201003", system=SNOMED, valueQuantity=years),
        observation("74010-0", valueDateTime="2018-03-01"),
        condition("http://hl7.org/fhir/sid/icd-10-cm", "C50.9"),
        condition(SNOMED, "87433001", "2020-01-01"),
        family(),
    ]


@dataclass
class FhirServer:
    """What it holds and does can be changed while it runs."""

    port: int = 0
    resources: list[dict[str, Any]] = field(default_factory=full)
    #: kind of resource, or path -> status, body and header fields instead of the answer
    instead: dict[str, tuple[int, bytes, dict[str, str]]] = field(default_factory=dict)
    #: kinds that are never answered, until the server ends
    silent: set[str] = field(default_factory=set)
    #: whether the search parameters are heeded
    heeds: bool = True
    page_size: int = 100
    #: changes a Bundle before it goes out
    change: Callable[[dict[str, Any]], dict[str, Any]] = field(default=lambda bundle: bundle)
    #: verifies assertions; None: no token is needed
    public_key: Any = None
    #: tokens that are taken
    valid: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    assertions: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    ended: Event = field(default_factory=Event)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/fhir"

    def answer(self, path: str, query: dict[str, str], token: str) -> tuple[int, bytes, dict[str, str]]:
        kind = path.removeprefix("/fhir/")
        self.asked.append(kind)
        self.authorizations.append(token)
        if kind in self.silent:
            self.ended.wait(30)
        if kind in self.instead:
            return self.instead[kind]
        if kind == ".well-known/smart-configuration":
            return 200, json.dumps({"token_endpoint": f"http://127.0.0.1:{self.port}/token"}).encode(), {}
        if self.public_key is not None and token.removeprefix("Bearer ") not in self.valid:
            return 401, b"", {}
        if kind == "metadata":
            return 200, b'{"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1"}', {}
        return 200, json.dumps(self.change(self._bundle(kind, query))).encode(), {}

    def _bundle(self, kind: str, query: dict[str, str]) -> dict[str, Any]:
        found = [one for one in self.resources if one["resourceType"] == kind and self._fits(one, query)]
        start = int(query.get("page", 0))
        links = []
        if len(found) > start + self.page_size:
            following = "&".join(
                [f"page={start + self.page_size}", *(f"{k}={v}" for k, v in query.items() if k != "page")]
            )
            links = [{"relation": "next", "url": f"{self.base}/{kind}?{following}"}]
        entries = [
            {"resource": one, "search": {"mode": "match"}} for one in found[start : start + self.page_size]
        ]
        return {"resourceType": "Bundle", "type": "searchset", "link": links, "entry": entries}

    def _fits(self, resource: dict[str, Any], query: dict[str, str]) -> bool:
        if not self.heeds:
            return True
        if resource["resourceType"] == "Patient":
            parts = re.split(r"(?<!\\)\|", query["identifier"])
            system, value = (re.sub(r"\\(.)", r"\1", part) for part in parts)
            return {"system": system, "value": value} in resource["identifier"]
        of = resource.get("subject") or resource.get("patient") or {}
        return str(of.get("reference", "")).endswith(f"Patient/{query['patient']}")

    def token(self, form: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        self.asked.append("token")
        if "token" in self.instead:
            return self.instead["token"]
        try:
            claims = jwt.decode(
                form["client_assertion"],
                self.public_key,
                ["RS384", "ES384"],
                audience=f"http://127.0.0.1:{self.port}/token",
                issuer=CLIENT,
                options={"require": ["exp", "jti", "sub"]},
            )
        except jwt.PyJWTError:
            return 401, b'{"error": "invalid_client"}', {}
        self.assertions.append(claims | jwt.get_unverified_header(form["client_assertion"]) | form)
        made = f"token-{len(self.assertions)}"
        self.valid.add(made)
        answer = {"access_token": made, "token_type": "bearer", "expires_in": 300}
        return 200, json.dumps(answer).encode(), {}


@contextmanager
def running(**options: Any) -> Iterator[FhirServer]:
    """Run one until the end of the block."""
    made = FhirServer(**options)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            self._send(*made.answer(parts.path, query, self.headers.get("Authorization", "")))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode("ascii")
            self._send(*made.token({name: values[0] for name, values in parse_qs(body).items()}))

        def _send(self, status: int, body: bytes, fields: dict[str, str]) -> None:
            try:
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | fields).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        made.port = server.server_address[1]
        try:
            yield made
        finally:
            made.ended.set()
