"""A browser without a network for the tests of the page, and a result to look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anyio
import httpx
from sqlalchemy import select, update

from pacs_node.config import Settings, parse_settings
from pacs_node.db import Artifact, Database
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


@dataclass
class Browser:
    """Asks the application without a network."""

    database: Database
    settings: Settings
    now: datetime = START

    def get(self, path: str, *, method: str = "GET", host: str | None = "127.0.0.1:8080") -> httpx.Response:
        app = web_app.make_app(self.database, self.settings, clock=lambda: self.now)
        headers = {} if host is None else {"Host": host}

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
                return await client.request(method, path, headers=headers)

        return anyio.run(ask)


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
