"""A browser without a network for the tests of the page, and a result to look at."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anyio
import httpx
from sqlalchemy import event, select, update
from starlette.applications import Starlette

from pacs_node import accounts
from pacs_node.accounts import HashCost, Passwords
from pacs_node.config import Settings, parse_settings
from pacs_node.db import Artifact, Database
from pacs_node.db_accounts import Role, WebSession
from pacs_node.sessions import csrf_of
from pacs_node.web import app as web_app
from tests.node_story import START, Story

RESULT: dict[str, Any] = {
    "schema_version": "1.0",
    "status": "analysed",
    "reason": None,
    "series": {
        "analysed": {
            "shape": [133, 512, 512],
            "spacing_mm": [2.5, 0.7, 0.7],
            "slice_thickness_mm": 2.5,
            "kernel": "STANDARD",
            "scanner": "Synthetic One",
        }
    },
    "findings": [
        {
            "number": 1,
            "tracking_id": "N1",
            "site": {"words": "right upper lobe"},
            "attenuation": "part-solid",
            "measurements": {
                "long_axis_mm": 12.34,
                "short_axis_mm": 9.0,
                "mean_diameter_mm": 10.67,
                "volume_mm3": 612.4,
                "mean_hu": -312.2,
            },
            "detection_probability": 0.974,
            "malignancy": {"image_only": 0.41, "fused": None},
            "features": [{"name": "spiculation", "value": 4, "meaning": "marked", "probability": 0.8}],
            "key_image": "nodule-01.png",
        }
    ],
    "observations": [{"name": "emphysema", "value": "present", "probability": 0.7}],
    "models": [
        {
            "name": "Detector",
            "version": "1.0",
            "task": "nodule-detection",
            "summary": "Finds nodules.",
            "intended_use": "Research.",
            "limits": "Small nodules.",
            "performance": ["Sensitivity 50 % of 4."],
            "weights_sha256": "ab" * 32,
        }
    ],
    "warnings": ["Slices are thick."],
    "provenance": {"pipeline_version": "classical-1.0", "replaces": ["1.2.3"]},
    "timings_s": {"load": 1.5, "analyse": 40.25},
}


def make_settings(directory: Path, **sections: dict[str, Any]) -> Settings:
    raw: dict[str, Any] = {
        "storage": {"directory": str(directory), "reserve_mb": 1},
        "callers": [{"ae_title": "PACS", "address": "127.0.0.1"}],
        "destinations": [{"name": "pacs", "kind": "dicom", "host": "h", "port": 104, "ae_title": "A"}],
    }
    return parse_settings(raw | sections, base=directory)


CHEAP = HashCost(passes=1, memory_kib=8, lanes=1)
"""Tests hash many passwords."""

PASSWORD = "correct horse battery"
HOST = "127.0.0.1:8080"


@cache
def cheap_hash() -> str:
    return Passwords(CHEAP).hash(PASSWORD)


@dataclass
class Browser:
    """Asks the application without a network; logged in as somebody of a role, or as nobody."""

    database: Database
    settings: Settings
    now: datetime = START
    role: Role | None = Role.ADMINISTRATOR
    address: str = "127.0.0.1"
    cookies: dict[str, str] = field(default_factory=dict)
    _app: Starlette | None = None
    _clicked_at: datetime | None = None

    def __post_init__(self) -> None:
        # durability is proved elsewhere; here it would only take time
        if self.database.is_sqlite:
            event.listen(self.database.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF"))
        self.database.dispose()

    @property
    def app(self) -> Starlette:
        """One application for all requests, as in a node."""
        if self._app is None:
            self._app = web_app.make_app(self.database, self.settings, lambda: self.now, CHEAP)
        return self._app

    @property
    def csrf(self) -> str:
        """What a form of this session sends back."""
        return csrf_of(self.cookies.get(self._session_cookie, ""))

    @property
    def _session_cookie(self) -> str:
        return "__Host-session" if self.settings.web.is_https else "session"

    def log_in(self) -> None:
        """Begin a session of an account named as its role, which is made at the first time."""
        assert self.role is not None
        with self.database.write() as session:
            if not [account for account in accounts.all_accounts(session) if account.name == self.role]:
                hashed = accounts.Hashed(cheap_hash(), one_time=False)
                accounts.add(session, self.role.value, self.role, hashed, at=self.now, actor="test")
            account = accounts.find(session, self.role.value)
            token = secrets.token_urlsafe(32)
            row = WebSession(
                token_hash=hashlib.sha256(token.encode()).hexdigest(),
                account_id=account.id,
                address=self.address,
                created_at=self.now,
                last_seen_at=self.now,
            )
            session.add(row)
        self.cookies[self._session_cookie] = token

    def get(
        self,
        path: str,
        *,
        method: str = "GET",
        host: str | None = HOST,
        form: dict[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Ask for a page; a session that time has ended begins anew where a role is given."""
        if self.role is not None and not path.startswith("/health/"):
            self._stay_logged_in()
        sent = dict(headers or {})
        if host is not None:
            sent["Host"] = host
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(
                app=self.app, raise_app_exceptions=False, client=(self.address, 1234)
            )
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as client:
                return await client.request(method, path, headers=sent, data=form, content=content)

        answer = anyio.run(ask)
        for name, value in answer.cookies.items():
            self.cookies[name] = value
        return answer

    def _stay_logged_in(self) -> None:
        if self._session_cookie not in self.cookies:
            self.log_in()
        elif self._clicked_at != self.now:
            with self.database.write() as session:
                session.execute(update(WebSession).values(created_at=self.now, last_seen_at=self.now))
        self._clicked_at = self.now

    def post(self, path: str, **form: str) -> httpx.Response:
        """Send a form of a page of ours."""
        return self.get(path, method="POST", form={"csrf": self.csrf} | form)


@dataclass
class Document(HTMLParser):
    """What a browser makes of a page: elements with attributes, and the visible text."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def parse(response: httpx.Response) -> Document:
    document = Document()
    document.feed(response.text)
    document.close()
    return document


def study_path(story: Story) -> str:
    return f"/studies/{story.study_uid}"


def artifact_id(story: Story, kind: str) -> int:
    with story.database.read() as session:
        return session.execute(select(Artifact.id).where(Artifact.kind == kind)).scalars().first() or 0


def change_artifact(story: Story, which: str, **values: Any) -> None:
    with story.database.write() as session:
        session.execute(update(Artifact).where(Artifact.kind == which).values(**values))
