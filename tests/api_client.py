"""A program that uses the JSON API without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx

from pacs_node import tokens
from pacs_node.db_accounts import Role
from tests.web_browser import HOST, Browser

ADDRESS = "/api/v1"


@dataclass
class Program:
    """Asks with a token of a role, which is made at the first time, or with none."""

    browser: Browser
    role: Role | None = Role.ADMINISTRATOR
    secrets: dict[str, str] = field(default_factory=dict)

    def token(self, client: str, role: Role, expires_at: datetime | None = None) -> str:
        with self.browser.database.write() as session:
            made = tokens.add(session, client, role, at=self.browser.now, actor="test", expires_at=expires_at)
        return made.secret

    def ask(
        self,
        path: str,
        body: Any = None,
        *,
        method: str | None = None,
        token: str | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        host: str = HOST,
    ) -> httpx.Response:
        """Ask; with a body it is a POST unless a method is given."""
        sent = dict(headers or {})
        if token is None and self.role is not None:
            if self.role not in self.secrets:
                self.secrets[self.role] = self.token(f"{self.role}-program", self.role)
            token = self.secrets[self.role]
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if body is not None:
            content = json.dumps(body).encode()
        if content is not None:
            sent.setdefault("Content-Type", "application/json")
        self.browser.role = None
        return self.browser.get(
            ADDRESS + path,
            method=method or ("GET" if content is None else "POST"),
            content=content,
            headers=sent,
            host=host,
        )
