"""Pages from templates, with what stands on every one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from dicom_sr.context import RESEARCH_USE
from pacs_node import __version__
from pacs_node.clock import Clock
from pacs_node.config import Settings
from pacs_node.sessions import Visitor
from pacs_node.web.text import make_environment


def visitor_of(request: Request) -> Visitor | None:
    """Who asks, None for somebody who isn't logged in."""
    found = getattr(request.state, "visitor", None)
    return found if isinstance(found, Visitor) else None


class Renderer:
    """Renders templates.

    Parameters
    ----------
    settings
        Names the node.
    clock
        Source of the time in "waiting for 3 min".
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._ae_title = settings.listener.ae_title
        self.clock = clock
        self._templates = make_environment()

    def page(
        self, request: Request, template: str, *, status: int = 200, form: str = "", **values: Any
    ) -> Response:
        """Render a page.

        Parameters
        ----------
        status
            Of the response.
        form
            What the page's forms send back; that of the visitor if there is one.
        """
        now, who = self.clock(), visitor_of(request)
        values = {"refresh": None, "now": now, "search": "", "here": ""} | values
        text = self._templates.get_template(template).render(
            zone=now.astimezone().tzname(),
            research_use=RESEARCH_USE,
            version=__version__,
            ae_title=self._ae_title,
            visitor=who,
            csrf=form if who is None else who.csrf,
            **values,
        )
        return HTMLResponse(text, status)

    def error(
        self, request: Request, status: int, sentence: str, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Render the page for what can't be done."""
        response = self.page(request, "error.html", status=status, code=status, sentence=sentence)
        response.headers.update(headers or {})
        return response
