"""One operation of the API, as its route and the OpenAPI document need it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pacs_node.accounts import Permission
from pacs_node.web.api.problems import Code


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Parameters
    ----------
    permission
        What it takes.
    view
        Answers; the first line of its docstring says what it is for.
    problems
        What can be in the way, beside what can be everywhere.
    status
        Of success.
    responses
        What the framework can't know of the responses.
    """

    method: str
    path: str
    permission: Permission
    view: Callable[..., Any]
    problems: tuple[Code, ...] = ()
    status: int = 200
    responses: dict[int | str, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its ``operationId``."""
        return self.view.__name__

    @property
    def summary(self) -> str:
        """What it is for, in one line."""
        return (self.view.__doc__ or "").strip().partition("\n")[0]

    @property
    def tag(self) -> str:
        """The group that it stands in."""
        return self.path.split("/")[1].removesuffix(".json")
