"""A loopback server of the form of NBIA's REST interface."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

IMAGES, SIZE = "getImageWithMD5Hash", "getSeriesSize"
LICENCE = b"Synthetic, no licence needed."


class Nbia(ThreadingHTTPServer):
    """Answers by call name: (HTTP status, body), the body cut off where `cut` names the call."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.cut = ""
        self.calls: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/nbia-api/services/v1"


class Handler(BaseHTTPRequestHandler):
    server: Nbia

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        call = parts.path.rpartition("/")[2]
        self.server.calls.append((call, parse_qs(parts.query)["SeriesInstanceUID"][0]))
        status, body = self.server.answers.get(call, (404, b"<html>not here</html>"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if call == self.server.cut else body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # name of the base class
        pass


def packed(members: dict[str, bytes], *, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def named(images: list[bytes]) -> dict[str, bytes]:
    return {f"{number:08d}.dcm": content for number, content in enumerate(images, 1)}


def hashes(members: dict[str, bytes]) -> bytes:
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(["Filename", "MD5Hash"])
    rows.writerows((name, hashlib.md5(content).hexdigest()) for name, content in members.items())
    return out.getvalue().encode()


def size(images: list[bytes]) -> tuple[int, bytes]:
    row = {"TotalSizeInBytes": f"{sum(map(len, images))}.000000", "ObjectCount": len(images)}
    return 200, json.dumps([row]).encode()


def offer(nbia: Nbia, images: list[bytes]) -> None:
    members = named(images)
    nbia.answers = {
        SIZE: size(images),
        IMAGES: (200, packed({"LICENSE": LICENCE, **members, "md5hashes.csv": hashes(members)})),
    }
