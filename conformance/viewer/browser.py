"""Headless Chromium over its debugging pipe (Chrome DevTools Protocol), with no package between.

``--remote-debugging-pipe`` speaks JSON messages that end in a zero byte on descriptors 3 and 4.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
WINDOW = (1600, 1000)

# swiftshader: WebGL without a GPU. The others keep Chromium from asking for anything outside this machine.
_FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
    f"--window-size={WINDOW[0]},{WINDOW[1]}",
)
# One socket stands for both descriptors; the wrapper becomes Chromium.
_WRAPPER = (
    "import os, sys; s = int(sys.argv[1]); os.dup2(s, 3); os.dup2(s, 4); os.execv(sys.argv[2], sys.argv[2:])"
)


class BrowserError(Exception):
    """The browser ended, did not answer, or a script in the page failed."""


class NotShownError(BrowserError):
    """The page did not come to show what was waited for."""


def find_chromium() -> str | None:
    """Path of Chromium, None where it isn't installed."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@dataclass
class Page:
    """One tab. Coordinates are CSS pixels, which are the pixels of the pictures too."""

    _socket: socket.socket
    patience_s: float
    complaints: list[str] = field(default_factory=list)
    """Errors that the page raised or logged, in their order."""
    _session: str | None = None
    _last_id: int = 0
    _buffer: bytearray = field(default_factory=bytearray)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; its result.

        Raises
        ------
        BrowserError
            No answer in `patience_s`, or the browser refused.
        """
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        deadline = time.monotonic() + self.patience_s
        self._socket.settimeout(self.patience_s)
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\0")
            while True:
                answer = self._receive(deadline)
                if answer.get("id") == self._last_id:
                    break
                self._note(answer)
        except OSError as error:
            raise BrowserError(f"{method}: no answer from the browser ({error})") from error
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error'].get('message')}")
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self, deadline: float) -> dict[str, Any]:
        while (end := self._buffer.find(b"\0")) < 0:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.01))
            part = self._socket.recv(1 << 20)
            if not part:
                raise BrowserError("the browser ended")
            self._buffer += part
        message: dict[str, Any] = json.loads(self._buffer[:end])
        del self._buffer[: end + 1]
        return message

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            said = details.get("exception", {}).get("description") or details.get("text", "")
            self.complaints.append(f"exception: {said}")
        elif event.get("method") == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            words = [str(a.get("description") or a.get("value") or "") for a in parameters["args"]]
            self.complaints.append(f"error: {' '.join(words)}")

    def attach(self) -> None:
        """Open the tab."""
        target = self.call("Target.createTarget", url="about:blank")
        session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = session["sessionId"]
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=WINDOW[0],
            height=WINDOW[1],
            deviceScaleFactor=1,
            mobile=False,
        )

    def open(self, address: str) -> None:
        """Go to an address; what it shows is waited for separately."""
        self.call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            said = details.get("exception", {}).get("description") or details.get("text")
            raise BrowserError(f"script failed: {said}")
        return answer["result"].get("value")

    def until(self, script: str, what: str) -> Any:
        """Wait until an expression is true; its value.

        Raises
        ------
        NotShownError
            It did not become true in time, or the page complained meanwhile; says `what` was waited for.
        """
        deadline = time.monotonic() + self.patience_s
        while True:
            value = self.run(script)
            if value:
                return value
            if self.complaints:
                raise NotShownError(f"not shown: {what}; {'; '.join(self.complaints)}")
            if time.monotonic() > deadline:
                raise NotShownError(f"not shown: {what}")
            time.sleep(0.2)

    def click(self, x: float, y: float, count: int = 1) -> None:
        """Press and release the left button, `count` times in quick succession."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for number in range(1, count + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=number)

    def picture(self) -> NDArray[np.uint8]:
        """The tab as it looks now: uint8, (rows, columns, 3)."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


@contextmanager
def chromium(directory: Path, *, patience_s: float) -> Iterator[Page]:
    """Run Chromium until the block ends.

    Parameters
    ----------
    directory
        For its profile and log; must exist.
    patience_s
        Limit for each command and each condition waited for.

    Raises
    ------
    BrowserError
        It isn't installed or doesn't start.
    """
    program = find_chromium()
    if program is None:
        raise BrowserError(f"no Chromium on PATH ({', '.join(PROGRAMS)})")
    flags = [*_FLAGS, f"--user-data-dir={directory / 'profile'}"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium refuses root otherwise; only our own pages are opened
    ours, theirs = socket.socketpair()
    with ours, (directory / "chromium.log").open("wb") as log:
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - our own words and a program found on PATH
                [sys.executable, "-c", _WRAPPER, str(theirs.fileno()), program, *flags],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            page = Page(ours, patience_s)
            page.attach()
            yield page
        finally:
            # the group: what Chromium started must not write into its profile any more
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
