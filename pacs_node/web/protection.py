"""What stands between the page and other pages in the same browser."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE_POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""For a report.html: its own style and embedded pictures, an origin of its own, no script, no network."""

HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class ProtectiveHeaders:
    """Adds `HEADERS` to each response that doesn't set them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, protected)


class KnownHosts:
    """Refuses requests that name another host: a foreign page may have its name point at this machine.

    Without it, DNS rebinding would let any web page that an administrator opens read this one. The port
    is free, so that an SSH tunnel works.

    Parameters
    ----------
    names
        Further host names that are ours, beside ``localhost`` and loopback addresses.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] = ()) -> None:
        self._app = app
        self._names = frozenset({"localhost", *(name.lower() for name in names)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] == "http" and not self._is_ours(Headers(scope=scope).getlist("host")):
            sentence = "This page answers to localhost and loopback addresses only. Use an SSH tunnel.\n"
            await PlainTextResponse(sentence, status_code=421)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_ours(self, values: list[str]) -> bool:
        if len(values) != 1:
            return False
        host, _, port = values[0].rpartition(":")
        if not port.isdigit() or not host:
            host = values[0]
        if host.lower() in self._names:
            return True
        if host.startswith("[") != host.endswith("]"):
            return False
        try:
            return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
        except ValueError:
            return False
