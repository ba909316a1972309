"""A loopback server that offers files as model hosts do, well or badly."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_BLOCK = 2**16


@dataclass
class Offer:
    """One file and the server's manners.

    Parameters
    ----------
    content
        Bytes, or the file that has them.
    cuts
        For one request after the other: close the connection after so many bytes of the body.
    """

    content: bytes | Path
    etag: str = '"one"'
    modified: str = ""
    ranges: bool = True
    length: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    encoding: str = ""
    wrong_range: bool = False

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def read(self, start: int, length: int) -> bytes:
        if isinstance(self.content, bytes):
            return self.content[start : start + length]
        with self.content.open("rb") as stream:
            stream.seek(start)
            return stream.read(length)


class ModelServer(ThreadingHTTPServer):
    """Offers by path; `asked` has the path, Range and If-Range of every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.offers: dict[str, Offer] = {}
        self.redirects: dict[str, str] = {}
        self.asked: list[tuple[str, str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def ranges(self) -> list[str]:
        return [item[1] for item in self.asked]


class _Handler(BaseHTTPRequestHandler):
    server: ModelServer

    def do_GET(self) -> None:
        # a proxy is asked with the whole URL
        path = urlsplit(self.path).path if self.path.startswith("http") else self.path
        wanted, condition = self.headers.get("Range", ""), self.headers.get("If-Range", "")
        self.server.asked.append((self.path, wanted, condition))
        if path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[path])
            self.end_headers()
            return
        offer = self.server.offers.get(path)
        if offer is None or (offer.statuses and (status := offer.statuses.pop(0)) != 200):
            self.send_error(404 if offer is None else status)
            return
        self._answer(offer, wanted, condition)

    def _answer(self, offer: Offer, wanted: str, condition: str) -> None:
        start, match = 0, re.fullmatch(r"bytes=(\d+)-", wanted)
        if offer.ranges and match and condition in {"", offer.etag, offer.modified}:
            start = int(match[1])
            if start >= offer.size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{offer.size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            shown = 0 if offer.wrong_range else start
            self.send_header("Content-Range", f"bytes {shown}-{offer.size - 1}/{offer.size}")
        else:
            self.send_response(200)
        for name, value in (
            ("ETag", offer.etag),
            ("Last-Modified", offer.modified),
            ("Content-Encoding", offer.encoding),
            ("Content-Length", str(offer.size - start) if offer.length else ""),
        ):
            if value:
                self.send_header(name, value)
        self.end_headers()
        end = min(offer.size, start + offer.cuts.pop(0)) if offer.cuts else offer.size
        while start < end:
            block = offer.read(start, min(_BLOCK, end - start))
            self.wfile.write(block)
            start += len(block)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # name of the base class
        pass
