"""Changes at an operator's word: done once for each key, told as problems where they can't be done."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from fastapi import Header
from sqlalchemy.orm import Session
from starlette.requests import Request

from pacs_node import tokens
from pacs_node.db import Database
from pacs_node.errors import StaleStateError
from pacs_node.operator_actions import (
    ActionError,
    BadReasonError,
    UnknownDestinationError,
    UnknownStudyError,
    Word,
)
from pacs_node.tokens import KeyReusedError
from pacs_node.web.api.gate import client_of
from pacs_node.web.api.problems import Code, ProblemError
from pacs_node.web.api.record_schemas import Changed, Reason
from pacs_node.web.api.values import Sent

_CODES: dict[type[ActionError], Code] = {
    BadReasonError: Code.INVALID,
    UnknownDestinationError: Code.NO_DESTINATION,
    UnknownStudyError: Code.NO_STUDY,
}
PROBLEMS = (Code.BAD_REQUEST, Code.NOTHING_TO_DO, Code.CHANGED, Code.TOO_LARGE, Code.KEY_REUSED)
"""What can be in the way of each."""

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="Of the client's making: the same request with the same key is done once in 24 hours.",
    ),
]


def word_of(request: Request, reason: str, at: datetime) -> Word:
    """The word of the client that asks."""
    who = client_of(request)
    return Word(who.actor, who.address, reason, at)


def problem_of(error: ActionError) -> ProblemError:
    """Say an action that can't be done as a problem."""
    return ProblemError(_CODES.get(type(error), Code.NOTHING_TO_DO), str(error))


def act(
    database: Database,
    request: Request,
    body: Sent,
    key: str | None,
    action: Callable[[Session, Word], int],
    *,
    at: datetime,
) -> Changed:
    """Do it in one transaction with its event and, where there is a key, its answer.

    Raises
    ------
    ProblemError
        Why not; nothing was changed.
    """
    who, word = client_of(request), word_of(request, body.reason if isinstance(body, Reason) else "", at)
    digest = hashlib.sha256(f"{request.url.path} {body.model_dump_json()}".encode()).hexdigest()
    try:
        with database.write() as session:
            before = None if key is None else tokens.answered(session, who, key, digest)
            if before is not None:
                return Changed(changed=before, repeated=True)
            changed = action(session, word)
            if key is not None:
                tokens.note_answer(session, who, key, digest, changed, at=at)
    except KeyReusedError as error:
        raise ProblemError(Code.KEY_REUSED, str(error)) from None
    except ActionError as error:
        raise problem_of(error) from None
    except StaleStateError:
        raise ProblemError(Code.CHANGED, "This study changed at the same moment.") from None
    return Changed(changed=changed, repeated=False)
