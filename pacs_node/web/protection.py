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


HTTPS_HEADERS = {"Strict-Transport-Security": "max-age=31536000"}


class ProtectiveHeaders:
    """Adds `HEADERS` to each response that doesn't set them itself.

    Parameters
    ----------
    https
        Whether browsers come by HTTPS; they then shall come no other way.
    """

    def __init__(self, app: ASGIApp, *, https: bool = False) -> None:
        self._app = app
        self._headers = HEADERS | (HTTPS_HEADERS if https else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
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
            sentence = (
                "This page answers to localhost, loopback addresses and the configured web.names only.\n"
            )
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


class OnlyProxy:
    """Takes connections from the reverse proxy only, and its word on where browsers are.

    Others get the health pages. The proxy appends the browser's address to X-Forwarded-For, so the last one
    is what it saw; those before it may be made up.

    Parameters
    ----------
    address
        Of the proxy; empty: there is none, anybody may connect and nobody's word is taken.
    """

    def __init__(self, app: ASGIApp, address: str = "") -> None:
        self._app = app
        self._address = address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or not self._address or scope["path"].startswith("/health/"):
            await self._app(scope, receive, send)
            return
        seen = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).rpartition(",")[2].strip()
        client = scope.get("client")
        if client is None or client[0] != self._address or not _is_address(seen):
            sentence = "This page is reached through its proxy only.\n"
            await PlainTextResponse(sentence, status_code=403)(scope, receive, send)
            return
        await self._app(dict(scope) | {"client": (seen, 0)}, receive, send)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
