"""Operations on accounts of the page and on tokens of client programs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path as InPath
from sqlalchemy.orm import Session
from starlette.requests import Request

from pacs_node import accounts, tokens
from pacs_node.account_admin import add_account, reset_account
from pacs_node.accounts import AccountError, Passwords, Permission
from pacs_node.clock import Clock
from pacs_node.db import Database
from pacs_node.db_accounts import Account
from pacs_node.web.api import record_schemas as schemas
from pacs_node.web.api.gate import client_of
from pacs_node.web.api.operation import Operation
from pacs_node.web.api.problems import Code, ProblemError
from pacs_node.web.api.values import Name, RowId

AccountName = Annotated[Name, InPath(description="Name of the account.")]
_OF_BODIES = (Code.BAD_REQUEST, Code.TOO_LARGE)


class People:
    """The operations and what they need."""

    def __init__(self, database: Database, passwords: Passwords, clock: Clock) -> None:
        self._database, self._passwords, self._clock = database, passwords, clock

    def operations(self) -> tuple[Operation, ...]:
        """Return all of them."""
        manage = Permission.MANAGE
        return (
            Operation("GET", "/users", manage, self.list_users),
            Operation("POST", "/users", manage, self.add_user, (*_OF_BODIES, Code.ACCOUNT), 201),
            Operation(
                "PATCH",
                "/users/{name}",
                manage,
                self.change_user,
                (*_OF_BODIES, Code.NO_ACCOUNT, Code.ACCOUNT),
            ),
            Operation(
                "POST", "/users/{name}/reset", manage, self.reset_user, (Code.NO_ACCOUNT, Code.ACCOUNT)
            ),
            Operation("GET", "/tokens", manage, self.list_tokens),
            Operation("POST", "/tokens", manage, self.add_token, (*_OF_BODIES, Code.ACCOUNT), 201),
            Operation("DELETE", "/tokens/{token_id}", manage, self.revoke_token, (Code.NO_TOKEN_ROW,)),
        )

    def list_users(self) -> schemas.Accounts:
        """All accounts of the page."""
        with self._database.read() as session:
            rows = accounts.all_accounts(session)
        return schemas.Accounts(accounts=tuple(schemas.Account.model_validate(row) for row in rows))

    def add_user(self, request: Request, body: schemas.NewAccount) -> schemas.OneTimePassword:
        """Add an account with a one-time password, which is shown this once."""
        try:
            name, password = add_account(
                self._database,
                self._passwords,
                body.name,
                body.role,
                at=self._clock(),
                actor=client_of(request).actor,
            )
        except AccountError as error:
            raise ProblemError(Code.ACCOUNT, str(error)) from None
        return schemas.OneTimePassword(name=name, password=password)

    def change_user(
        self, request: Request, name: AccountName, body: schemas.AccountChange
    ) -> schemas.Account:
        """Change the role of an account, disable or enable it; what is so already stays as it is."""
        at, actor = self._clock(), client_of(request).actor
        try:
            with self._database.write() as session:
                account = _account(session, name)
                if body.role is not None and body.role != account.role:
                    accounts.set_role(session, account, body.role, at=at, actor=actor)
                if body.disabled is True and account.disabled_at is None:
                    accounts.disable(session, account, at=at, actor=actor)
                if body.disabled is False and account.disabled_at is not None:
                    accounts.enable(session, account, at=at, actor=actor)
        except AccountError as error:
            raise ProblemError(Code.ACCOUNT, str(error)) from None
        return schemas.Account.model_validate(account)

    def reset_user(self, request: Request, name: AccountName) -> schemas.OneTimePassword:
        """Give an account a one-time password, which is shown this once, and unlock it."""
        with self._database.read() as session:
            _account(session, name)
        try:
            name, password = reset_account(
                self._database, self._passwords, name, at=self._clock(), actor=client_of(request).actor
            )
        except AccountError as error:
            raise ProblemError(Code.ACCOUNT, str(error)) from None
        return schemas.OneTimePassword(name=name, password=password)

    def list_tokens(self) -> schemas.Tokens:
        """All tokens of client programs, the revoked among them."""
        with self._database.read() as session:
            rows = tokens.all_tokens(session)
        return schemas.Tokens(tokens=tuple(schemas.Token.model_validate(row) for row in rows))

    def add_token(self, request: Request, body: schemas.NewToken) -> schemas.MadeToken:
        """Make a token for a client program; it is shown this once."""
        try:
            with self._database.write() as session:
                made = tokens.add(
                    session,
                    body.client,
                    body.role,
                    at=self._clock(),
                    actor=client_of(request).actor,
                    expires_at=body.expires_at,
                )
        except AccountError as error:
            raise ProblemError(Code.ACCOUNT, str(error)) from None
        return schemas.MadeToken.model_validate(made)

    def revoke_token(
        self, request: Request, token_id: Annotated[RowId, InPath(description="Number of the token.")]
    ) -> schemas.Token:
        """Let nobody in by a token any more; once more changes nothing."""
        with self._database.write() as session:
            try:
                row = tokens.find(session, token_id)
            except AccountError as error:
                raise ProblemError(Code.NO_TOKEN_ROW, str(error)) from None
            tokens.revoke(session, row, at=self._clock(), actor=client_of(request).actor)
        return schemas.Token.model_validate(row)


def _account(session: Session, name: str) -> Account:
    try:
        return accounts.find(session, name)
    except AccountError as error:
        raise ProblemError(Code.NO_ACCOUNT, str(error)) from None
