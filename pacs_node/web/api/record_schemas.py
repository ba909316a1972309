"""What the API says of the audit record, of accounts and of tokens, and what it takes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from pacs_node.accounts import ONE_TIME
from pacs_node.db_accounts import Role
from pacs_node.operator_actions import LONGEST_REASON
from pacs_node.web.api.values import (
    Answer,
    Asked,
    AskedPage,
    Moment,
    Name,
    Objects,
    Place,
    Plain,
    Sent,
    Text,
    Uid,
)

Exact = Annotated[str | None, Plain, Field(max_length=200)]


class Reason(Sent):
    """Why an operator does something; it stands in the audit record."""

    reason: Annotated[
        str, Field(min_length=1, max_length=LONGEST_REASON, json_schema_extra={"format": "one-line"})
    ]
    """One line of characters that can be seen, without spaces around it."""


class SendAgain(Reason):
    """Where to send results again, and why."""

    destination: Place | None = None
    """Name of the destination; without it all of them."""


class FailedBy(Reason):
    """What failed, and why it is to be tried again."""

    place: Place
    """Name of the destination, or `analysis`."""
    cause: Annotated[str, Plain, Field(max_length=2000)]
    """As `/failures` says it."""


class Changed(Answer):
    """What a change did."""

    changed: int
    """Jobs, or objects to send, that it touched."""
    repeated: bool
    """The same request came before: nothing was done again."""


class AuditFilter(Asked):
    """Which rows of the audit record."""

    study_uid: Uid | None = None
    """Study Instance UID."""
    actor: Exact = None
    """Part of the node, or user, exactly."""
    event: Exact = None
    """Name of the event, exactly."""
    since: Moment | None = None
    """From this time on."""
    until: Moment | None = None
    """Before this time."""
    failures: bool = False
    """Only rows whose outcome is a failure."""


class AuditQuery(AuditFilter, AskedPage):
    """Which rows, and how many of them."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class AuditExport(AuditFilter):
    """Which rows, and in what form."""

    format: Literal["jsonl", "csv", "dicom", "fhir"]
    """As of `pacs-node audit export`."""


class AuditEvent(Answer):
    """One row of the audit record; no patient data, only UIDs."""

    seq: int
    at: datetime
    actor: Text
    """A part of the node, `user:`, `cli:` or `client:` with a name."""
    event: str
    code: str
    """DCM code of the event type, PS3.15 A.5.3."""
    outcome: int
    """0 success, 4 minor, 8 serious, 12 major failure (PS3.15 A.5.2)."""
    study_uid: str | None
    objects: Objects
    previous_hash: str
    hash: str


class AuditPage(Answer):
    """Rows, the newest first."""

    events: tuple[AuditEvent, ...]
    next_cursor: str | None
    """`cursor` of the next page; null on the last."""
    last_seq: int | None
    """Number of the last row of the whole record."""
    last_hash: str | None


class ChainCheck(Answer):
    """Whether the record is whole."""

    whole: bool
    first: int
    """Number of the first row that was checked: of a long record only the last rows are."""
    rows: int
    """How many fit, from the first that was checked."""
    heads: int
    """Heads noted earlier that fit; without one, rows cut off at the end don't show."""
    first_bad: int | None
    why: str


class Account(Answer):
    """An account of the page."""

    name: str
    role: Role
    created_at: datetime
    last_login_at: datetime | None
    disabled_at: datetime | None
    one_time_until: datetime | None
    """Until when the one-time password may be used, while it isn't changed."""


class Accounts(Answer):
    """All accounts by name."""

    accounts: tuple[Account, ...]


class NewAccount(Sent):
    """An account to add."""

    name: Name
    role: Annotated[Role, Field(strict=False)]


class OneTimePassword(Answer):
    """A password that is shown this once."""

    name: str
    password: str
    hours: int = round(ONE_TIME.total_seconds() / 3600)
    """It must be changed within so many hours, at the first login."""


class AccountChange(Sent):
    """What to change of an account; null changes nothing."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    role: Annotated[Role | None, Field(strict=False)] = None
    disabled: bool | None = None

    @model_validator(mode="after")
    def _says_something(self) -> AccountChange:
        if not self.model_fields_set:
            raise ValueError("nothing to change: role or disabled is needed")
        return self


class Token(Answer):
    """A token of a client program."""

    id: int
    client: str
    role: Role
    prefix: str
    """Its first characters."""
    created_at: datetime
    created_by: Text
    expires_at: datetime | None
    last_used_at: datetime | None
    """To the minute."""
    last_address: str | None
    revoked_at: datetime | None


class Tokens(Answer):
    """All tokens by client, the revoked among them."""

    tokens: tuple[Token, ...]


class NewToken(Sent):
    """A token to make."""

    client: Name
    role: Annotated[Role, Field(strict=False)]
    expires_at: Annotated[Moment | None, Field(strict=False)] = None
    """Without it the token is valid until it is revoked."""


class MadeToken(Answer):
    """A token that is shown this once."""

    id: int = Field(validation_alias="number")
    secret: str
    """For the header `Authorization: Bearer`."""
