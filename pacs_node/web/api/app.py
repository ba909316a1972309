"""The API as an application of its own, mounted beside the pages and behind the same protection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache, partial
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dicom_sr.context import RESEARCH_USE
from pacs_node.accounts import Passwords
from pacs_node.clock import Clock
from pacs_node.config import Settings
from pacs_node.db import Database
from pacs_node.examination import Examinations
from pacs_node.web.api import problems
from pacs_node.web.api.amiss import Amiss
from pacs_node.web.api.exchange import Exchange
from pacs_node.web.api.gate import Gate
from pacs_node.web.api.models import Models
from pacs_node.web.api.node import Node
from pacs_node.web.api.operation import Operation
from pacs_node.web.api.people import People
from pacs_node.web.api.problems import Code, Problem, ProblemError, declared
from pacs_node.web.api.record import Record
from pacs_node.web.api.studies import Studies
from pacs_node.web.api.verdicts import Verdicts
from pacs_node.web.guard import Looks

Handler = Callable[[Request, Exception], Awaitable[Response]]

ADDRESS = "/api/v1"
_VERSION = "1.0.0"
_DESCRIPTION = f"""The questions and actions of the page, for programs. {RESEARCH_USE}

Each request shows a token of its client (`Authorization: Bearer`), which `pacs-node tokens add NAME --role \
ROLE` makes; cookies mean nothing. What shows patient data is recorded in the audit record with the client's \
name. Problems are `application/problem+json` (RFC 9457) with a `code`. Texts of DICOM origin are as the \
sender wrote them: whoever shows them must escape them."""
_BYTES = {"type": "string", "format": "binary"}
_EVERYWHERE = (
    Code.NO_TOKEN,
    Code.WRONG_TOKEN,
    Code.ROLE,
    Code.INVALID,
    Code.TOO_MANY,
    Code.FAILED,
    Code.UNAVAILABLE,
)


def make_api(
    database: Database,
    settings: Settings,
    clock: Clock,
    looks: Looks,
    *,
    passwords: Passwords,
    examinations: Examinations,
) -> FastAPI:
    """Build the API over a database.

    Parameters
    ----------
    looks, passwords, examinations
        Shared with the pages.

    Returns
    -------
    FastAPI
        ``state.operations`` holds the operations with the permission of each, ``state.document`` makes the
        OpenAPI document.
    """
    gate = Gate(database, settings.web, clock)
    operations = (
        *Node(database, settings, clock).operations(),
        *Models(database, settings, clock).operations(),
        *Exchange(database, settings, clock, examinations).operations(),
        *Amiss(database, settings, clock, looks).operations(),
        *Studies(database, settings, clock, looks).operations(),
        *Verdicts(database, clock, looks).operations(),
        *Record(database, settings, clock, looks).operations(),
        *People(database, passwords, clock).operations(),
    )
    api = FastAPI(
        title="pacs-node",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            ProblemError: problems.on_problem,
            HTTPException: problems.on_http,
            RequestValidationError: problems.on_invalid,
            OperationalError: problems.on_unavailable,
            Exception: problems.on_failure,
        },
    )
    for operation in operations:
        api.include_router(_router(operation, gate))
    # made when it is asked for: it takes as long as all else that a page needs to start
    document = cache(partial(_document, api))

    def openapi(request: Request) -> JSONResponse:  # noqa: ARG001 - a route gets it
        return JSONResponse(document())

    api.router.routes.append(Route("/openapi.json", openapi, methods=["GET"]))
    api.state.operations, api.state.document = operations, document
    return api


def _router(operation: Operation, gate: Gate) -> APIRouter:
    router = APIRouter(route_class=gate.route_class(operation.permission))
    router.add_api_route(
        operation.path,
        operation.view,
        methods=[operation.method],
        operation_id=operation.name,
        summary=operation.summary,
        description=f"{operation.summary}\n\nPermission: `{operation.permission}`.",
        tags=[operation.tag],
        status_code=operation.status,
        responses=declared((*_EVERYWHERE, *operation.problems)) | _of_files(operation),
        response_description=operation.answer,
        response_class=Response if operation.files else JSONResponse,
    )
    return router


def _of_files(operation: Operation) -> dict[int | str, dict[str, Any]]:
    """The response with a file, which the framework can't know of."""
    if not operation.files:
        return {}
    content: dict[str, Any] = {kind: {"schema": _BYTES} for kind in operation.files}
    if "application/json" in content:
        content["application/json"] = {"schema": {"type": "object"}}
    return {operation.status: {"description": "A file.", "content": content}}


def _document(api: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with what the framework doesn't know of."""
    found = get_openapi(
        title="pacs-node",
        version=_VERSION,
        description=_DESCRIPTION,
        routes=api.routes,
        servers=[{"url": ADDRESS}],
    )
    components = found["components"]
    schemas = components["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs") | {"Problem": problem}
    components["schemas"] = dict(sorted(schemas.items()))
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "pacs-node tokens add NAME --role ROLE"}
    }
    found["security"] = [{"token": []}]
    return found


def or_problem(page: Callable[[Request, Exception], Response]) -> Handler:
    """Return what answers an address that leads nowhere: a problem under that of the API, else a page.

    A line feed in an address keeps it from the API, as a mount's pattern doesn't take one.
    """

    async def answer(request: Request, error: Exception) -> Response:
        if request.url.path.startswith(f"{ADDRESS}/"):
            return await problems.on_http(request, error)
        return await run_in_threadpool(page, request, error)

    return answer
