"""The page in Debian's headless Chromium, driven by Playwright; accessibility by axe-core."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, ConsoleMessage, Page, sync_playwright

from conformance.viewer.browser import find_chromium
from pacs_node.config import Settings
from pacs_node.web import app as web_app

WIDE, PHONE = (1280, 900), (390, 844)
LONG = "PACS_NODE_AXE"
#: each page is looked at like this, and asked for what can differ there: () is everything, None nothing but
#: its width; with PACS_NODE_AXE=long everything everywhere
_RULES: tuple[tuple[str, tuple[int, int], tuple[str, ...] | None], ...] = (
    ("light", WIDE, ()),
    ("dark", WIDE, ("color-contrast", "link-in-text-block")),
    ("dark", PHONE, None),
    ("light", PHONE, None),
)
LOOKS = tuple(
    (scheme, size, () if os.environ.get(LONG) == "long" else rules) for scheme, size, rules in _RULES
)


@cache
def _axe() -> str:
    return files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """Serve the page of a node; where it is."""
    stop = threading.Event()
    server = threading.Thread(target=web_app.run, args=(settings, stop))
    server.start()
    try:
        yield f"http://127.0.0.1:{settings.web.port}"
    finally:
        stop.set()
        server.join()


@contextmanager
def chromium() -> Iterator[BrowserContext]:
    """A browser of somebody in New York."""
    with sync_playwright() as playwright:
        # root can't be confined by it; only pages of ours are opened
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield browser.new_context(
            viewport={"width": WIDE[0], "height": WIDE[1]}, timezone_id="America/New_York"
        )
        browser.close()


@dataclass
class Visitor:
    """Somebody at the page, who counts clicks and notes what the browser complains of.

    Parameters
    ----------
    pictures
        Folder for screenshots, None for none.
    """

    page: Page
    origin: str
    pictures: Path | None = None
    clicks: int = 0
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._note)

    def _note(self, message: ConsoleMessage) -> None:
        # a page that says "not found" is asked for on purpose
        if message.type == "error" and "the server responded with a status of 4" not in message.text:
            self.complaints.append(message.text)

    def log_in(self, name: str, password: str, then: str = "/") -> None:
        """Log in as a person does; the page that comes then."""
        self.page.goto(f"{self.origin}/login")
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Log in").click()
        self.page.wait_for_url(f"{self.origin}{then}")

    def open(self, path: str) -> None:
        """Type an address."""
        self.page.goto(self.origin + path)

    def click(self, role: Any, name: str) -> None:
        """Click on something by what it says."""
        self.page.get_by_role(role, name=name).first.click()
        self.page.wait_for_load_state()
        self.clicks += 1

    def says(self, *words: str) -> bool:
        """Whether the page shows each of these; a folded part of it doesn't count."""
        text = " ".join(self.page.inner_text("main").split())
        return all(word in text for word in words)

    def shoot(self, name: str, *, whole: bool = True) -> None:
        """Keep a picture of the whole page, or of what its window shows."""
        if self.pictures is not None:
            self.pictures.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=self.pictures / f"{name}.png", full_page=whole)

    def look(self, scheme: Any, size: tuple[int, int]) -> None:
        """See the present page in other colours and at another width."""
        self.page.emulate_media(color_scheme=scheme)
        self.page.set_viewport_size({"width": size[0], "height": size[1]})

    def barriers(self, *rules: str) -> list[str]:
        """Serious and critical findings of axe on the present page as it looks now; of some rules or all."""
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(_axe())
        options: dict[str, Any] = {"resultTypes": ["violations"]}
        if rules:
            options["runOnly"] = rules
        found = self.page.evaluate("options => axe.run(options)", options)
        return [
            f"{row['id']}: {node['html'][:120]} {node['failureSummary'].splitlines()[-1].strip()}"
            for row in found["violations"]
            if row["impact"] in {"serious", "critical"}
            for node in row["nodes"][:3]
        ]

    def overflows(self) -> bool:
        """Whether the page is wider than the window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))

    def unreached(self) -> list[str]:
        """What can be used with a mouse, but not be reached by the tab key with a visible focus."""
        self.page.evaluate(_WATCH)
        # a day has a stop for each of its parts
        stops = self.page.evaluate("usable.length + 4 * usable.filter(e => e.type === 'date').length")
        for _ in range(int(stops) + 2):
            self.page.keyboard.press("Tab")
        missed: list[str] = self.page.evaluate("usable.filter(e => !seen.has(e)).map(e => e.outerHTML)")
        return missed


_WATCH = """(() => {
  window.seen = new Set();
  const all = "a[href], button, input, select, textarea, summary, [tabindex='0']";
  const folded = "details:not([open]) > :not(summary)";
  window.usable = [...document.querySelectorAll(all)].filter(
    e => e.type !== "hidden" && !e.disabled && e.getClientRects().length && e.closest(folded) === null);
  document.activeElement.blur();
  document.addEventListener("focusin", event => {
    const style = getComputedStyle(event.target);
    if (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2) seen.add(event.target);
  });
})()"""
