"""Asks a server for JSON objects, in bounded time and size, and says in few words what went wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import requests

from pacs_node.errors import SourceSilentError
from pacs_node.http_limits import limited_session

_SHORTEST_S = 0.05
_REDIRECTS = range(300, 400)
UNAUTHORIZED = 401


class UnauthorizedError(SourceSilentError):
    """The token isn't valid, or no longer."""


class Server:
    """Asks one server for one study.

    Parameters
    ----------
    ca_file
        Whom to trust (PEM); empty: the authorities of the system.
    seconds
        For all that is asked.
    token
        Sent with `get`.
    """

    def __init__(self, ca_file: str, seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._session = limited_session()
        # neither a proxy nor a .netrc of the environment
        self._session.trust_env = False
        self._verify: str | bool = ca_file or True
        self._monotonic, self._until = monotonic, monotonic() + seconds
        self.token = ""

    def close(self) -> None:
        """Give the connections back."""
        self._session.close()

    def get(self, url: str) -> dict[str, Any]:
        """Fetch a JSON object.

        Raises
        ------
        SourceSilentError
            There is none, in time and of a sensible size; `UnauthorizedError` for status 401.
        """
        headers = {"Accept": "application/fhir+json, application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        return self._ask("GET", url, headers=headers)

    def post(self, url: str, form: Mapping[str, str]) -> dict[str, Any]:
        """Send a form; see `get`."""
        return self._ask("POST", url, headers={"Accept": "application/json"}, data=form)

    def _ask(self, method: str, url: str, **content: Any) -> dict[str, Any]:
        left = self._until - self._monotonic()
        if left < _SHORTEST_S:
            raise SourceSilentError("no answer in time")
        try:
            answer = self._session.request(
                method, url, timeout=(left, left), allow_redirects=False, verify=self._verify, **content
            )
        except (requests.Timeout, TimeoutError):
            raise SourceSilentError("no answer in time") from None
        except OSError as error:
            # all of requests, and the file of authorities
            raise SourceSilentError(f"no answer ({type(error).__name__})") from None
        except ValueError:
            raise SourceSilentError("an address that can't be asked") from None
        if answer.status_code in _REDIRECTS:
            raise SourceSilentError("the server sends us elsewhere, which is not followed")
        if answer.status_code == UNAUTHORIZED:
            raise UnauthorizedError("the server doesn't let us in (401)")
        if answer.status_code != requests.codes.ok:
            raise SourceSilentError(f"status {answer.status_code}")
        return _object(answer.content)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise SourceSilentError("an answer that is no JSON") from None
    if not isinstance(found, dict):
        raise SourceSilentError("an answer that is no JSON object")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
