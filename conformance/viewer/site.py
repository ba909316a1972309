"""One web server for viewer and archive: OHIF's files, and Orthanc's DICOMweb below the same origin."""

from __future__ import annotations

import json
import logging
import mimetypes
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import requests

logger = logging.getLogger(__name__)

DICOMWEB = "/dicom-web"
_PASSED_ON = ("Accept", "Content-Type", "Range")
_PASSED_BACK = ("Content-Type", "Content-Range")
_ARCHIVE_SECONDS = 120
_CHUNK = 1 << 16

CONFIGURATION = {
    "routerBasename": "/",
    "extensions": [],
    "modes": [],
    "customizationService": {},
    "showStudyList": True,
    "maxNumberOfWebWorkers": 1,
    "showLoadingIndicator": True,
    "showErrorDetails": "always",
    "strictZSpacingForVolumeViewport": True,
    "investigationalUseDialog": {"option": "never"},
    "defaultDataSourceName": "orthanc",
    "dataSources": [
        {
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "orthanc",
            "configuration": {
                "friendlyName": "Orthanc",
                "name": "orthanc",
                "wadoUriRoot": f"{DICOMWEB}/wado",
                "qidoRoot": DICOMWEB,
                "wadoRoot": DICOMWEB,
                "qidoSupportsIncludeField": False,
                "imageRendering": "wadors",
                "thumbnailRendering": "wadors",
                "enableStudyLazyLoad": True,
                "supportsFuzzyMatching": False,
                "supportsWildcard": True,
                "omitQuotationForMultipartRequest": True,
                "bulkDataURI": {"enabled": True},
            },
        }
    ],
}
"""OHIF's configuration (docs.ohif.org, Configuration): one DICOMweb source, and nothing switched off that
would check or show results."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    build: Path
    archive: str
    session: requests.Session

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == DICOMWEB or path.startswith(DICOMWEB + "/"):
            self._pass_on()
        elif path == "/app-config.js":
            self._answer(f"window.config = {json.dumps(CONFIGURATION)};".encode(), "text/javascript")
        else:
            self._file(path)

    def _file(self, path: str) -> None:
        file = (self.build / path.lstrip("/")).resolve()
        if not (file.is_relative_to(self.build) and file.is_file()):
            if Path(path).suffix:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            file = self.build / "index.html"  # the paths of the application itself, such as /viewer
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        self._answer(file.read_bytes(), kind)

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        # without these two a page gets no shared memory, which OHIF's volumes want
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.end_headers()
        self.wfile.write(body)

    def _pass_on(self) -> None:
        headers = {name: self.headers[name] for name in _PASSED_ON if name in self.headers}
        # Orthanc builds its absolute links (bulk data) from these
        host = self.headers["Host"]
        headers |= {"Host": host, "Forwarded": f"host={host};proto=http", "Accept-Encoding": "identity"}
        answer = self.session.get(self.archive + self.path, headers=headers, timeout=_ARCHIVE_SECONDS)
        body = answer.content
        self.send_response(answer.status_code)
        for name in _PASSED_BACK:
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        logger.debug("%s %s %s", code, size, self.path)


@contextmanager
def site(build: Path, archive: str, *, port: int = 0) -> Iterator[str]:
    """Serve until the block ends; gives the address of the viewer.

    Parameters
    ----------
    build
        Folder of OHIF's ``index.html``.
    archive
        Root of Orthanc's HTTP server, e.g. ``http://127.0.0.1:8042``; DICOMweb is at `DICOMWEB` below it.
    port
        On loopback; 0 for a free one.
    """
    with requests.Session() as session:
        handler = type(
            "Handler", (_Handler,), {"build": build.resolve(), "archive": archive, "session": session}
        )
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
