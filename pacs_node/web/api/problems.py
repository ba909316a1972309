"""What the API says when it can't: problem details (RFC 9457), each with a code that stays the same."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from enum import Enum
from typing import Any, Self

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pacs_node.web.protection import HEADERS

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_LONGEST_LIST = 20


class Code(Enum):
    """Why, for programs: code, HTTP status, and its title for people."""

    BAD_REQUEST = ("bad-request", 400, "The request can't be read.")
    NO_TOKEN = ("no-token", 401, "A bearer token is needed.")
    WRONG_TOKEN = ("wrong-token", 401, "The token is unknown, revoked or expired.")
    ROLE = ("role", 403, "The role of this token doesn't allow it.")
    NO_ADDRESS = ("no-address", 404, "There is nothing at this address.")
    NO_STUDY = ("no-study", 404, "No study with this UID has arrived here.")
    NO_RESULT = ("no-result", 404, "This study has no such result.")
    NO_FILE = ("no-file", 404, "There is no such file, or no longer.")
    NO_DESTINATION = ("no-destination", 404, "No such destination is configured.")
    NO_ACCOUNT = ("no-account", 404, "There is no such account.")
    NO_TOKEN_ROW = ("no-such-token", 404, "There is no token with this number.")
    METHOD = ("method", 405, "This address doesn't take this method.")
    NOTHING_TO_DO = ("nothing-to-do", 409, "The study is not in a state for it.")
    VERDICT = ("verdict", 409, "The verdict contradicts itself, the finding, or what was said of it.")
    CHANGED = ("changed", 409, "Somebody else changed it at the same moment.")
    FILE_DIFFERS = ("file-differs", 409, "The file on disk differs from its record.")
    ACCOUNT = ("account", 409, "The account or token can't be made or changed so.")
    RECORD = ("record", 409, "The audit record can't be checked here.")
    NO_ARCHIVE = ("no-archive", 409, "No archive is asked for its studies: see archive.list_missed.")
    TOO_LARGE = ("too-large", 413, "The request is too large.")
    INVALID = ("invalid", 422, "A value of the request is wrong.")
    KEY_REUSED = ("key-reused", 422, "The Idempotency-Key belongs to another request.")
    TOO_MANY = ("too-many", 429, "Too many requests.")
    FAILED = ("failed", 500, "This request failed. The node's log says why.")
    UNAVAILABLE = ("unavailable", 503, "The database doesn't answer.")

    @property
    def word(self) -> str:
        """The code."""
        return self.value[0]

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.value[1]

    @property
    def title(self) -> str:
        """For people."""
        return self.value[2]


class WrongValue(BaseModel):
    """One value of the request that is wrong."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    where: str
    """`query`, `path`, `header` or `body`, and the name."""
    why: str
    """What is wrong with it."""


class Problem(BaseModel):
    """A problem (RFC 9457)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """Reference to the code's line in the list of operations, relative to the node's address."""
    title: str
    """What the code means."""
    status: int
    """HTTP status."""
    detail: str
    """What happened here."""
    code: str = Field(json_schema_extra={"enum": [code.word for code in Code]})
    """The reason, for programs; doesn't change between versions."""
    errors: list[WrongValue] | None = None
    """Of `invalid`: the wrong values, at most 20."""


class ProblemError(Exception):
    """Ends a request with a problem.

    Parameters
    ----------
    detail
        What happened here; the title of the code if empty.
    """

    def __init__(self, code: Code, detail: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(detail or code.title)
        self.code, self.headers = code, headers

    @classmethod
    def wait(cls, detail: str, seconds: float) -> Self:
        """Too many requests; when to try again."""
        return cls(Code.TOO_MANY, detail, {"Retry-After": str(max(1, round(seconds)))})


def respond(
    code: Code,
    detail: str = "",
    *,
    errors: list[WrongValue] | None = None,
    headers: dict[str, str] | None = None,
    status: int | None = None,
) -> Response:
    """Return the response for a problem."""
    problem = Problem(
        type=f"/api#{code.word}",
        title=code.title,
        status=status or code.status,
        detail=detail or code.title,
        code=code.word,
        errors=errors,
    )
    content = problem.model_dump(exclude_none=True)
    return JSONResponse(content, problem.status, headers=headers, media_type=MEDIA_TYPE)


def declared(codes: Iterable[Code]) -> dict[int | str, dict[str, Any]]:
    """Return the responses of these problems for the OpenAPI document."""
    by_status: dict[int | str, list[Code]] = {}
    for code in codes:
        by_status.setdefault(code.status, []).append(code)
    return {
        status: {
            "description": " ".join(f"`{code.word}`: {code.title}" for code in found),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            **({"headers": _RETRY_AFTER} if status == Code.TOO_MANY.status else {}),
        }
        for status, found in sorted(by_status.items(), key=lambda item: int(item[0]))
    }


_RETRY_AFTER = {
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
}
_BY_STATUS = {
    400: Code.BAD_REQUEST,
    401: Code.NO_TOKEN,
    404: Code.NO_ADDRESS,
    405: Code.METHOD,
    413: Code.TOO_LARGE,
    503: Code.UNAVAILABLE,
}


async def on_problem(request: Request, error: Exception) -> Response:  # noqa: ARG001 - a handler gets it
    """Say a problem of ours."""
    if not isinstance(error, ProblemError):
        raise error
    return respond(error.code, str(error), headers=error.headers)


async def on_http(request: Request, error: Exception) -> Response:  # noqa: ARG001 - a handler gets it
    """Say what the framework found wrong: an unknown address, a method, a body that is no JSON."""
    if not isinstance(error, HTTPException):
        raise error
    code = _BY_STATUS.get(error.status_code, Code.BAD_REQUEST)
    return respond(code, headers=dict(error.headers or {}))


async def on_invalid(request: Request, error: Exception) -> Response:  # noqa: ARG001 - a handler gets it
    """Say which values are wrong, without repeating them: they may be a patient's."""
    if not isinstance(error, RequestValidationError):
        raise error
    found = [
        WrongValue(where=" ".join(_plain(part) for part in item["loc"]), why=_plain(item["msg"]))
        for item in error.errors()[:_LONGEST_LIST]
    ]
    return respond(Code.INVALID, errors=found)


async def on_unavailable(request: Request, error: Exception) -> Response:  # noqa: ARG001 - a handler gets it
    """Say that the database doesn't answer."""
    logger.error("database doesn't answer", exc_info=error)
    return respond(Code.UNAVAILABLE)


async def on_failure(request: Request, error: Exception) -> Response:  # noqa: ARG001 - a handler gets it
    """Say that it is our fault; the server logs the error."""
    return respond(Code.FAILED, headers=dict(HEADERS))


def _plain(part: object) -> str:
    """Text that JSON can carry: what a client sent as a name may hold half a character."""
    return str(part).encode("utf-8", "replace").decode("utf-8")
