"""One operation of the API, as its route and the OpenAPI document need it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

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
    files
        Media types of the file that comes back; empty where JSON does.
    """

    method: str
    path: str
    permission: Permission
    view: Callable[..., Any]
    problems: tuple[Code, ...] = ()
    status: int = 200
    files: tuple[str, ...] = ()

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
        return self.path.split("/")[1]

    @property
    def answer(self) -> str:
        """What comes back on success, in one line."""
        found = get_type_hints(self.view)["return"]
        return (found.__doc__ or "").strip().partition("\n")[0]
