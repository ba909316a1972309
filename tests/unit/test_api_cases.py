"""Generated requests against the OpenAPI document: no failure of the server, nothing that it doesn't declare.

Some for each operation; ``PACS_NODE_API_CASES=2000`` makes so many for each (`docs/api.md`).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import ignored_auth
from sqlalchemy import update

from pacs_node import accounts
from pacs_node.db import Database, sqlite_url
from pacs_node.db_accounts import Role
from pacs_node.db_tokens import ApiToken
from tests.api_client import ADDRESS, Program
from tests.node_story import Story, analysed
from tests.web_browser import RESULT, Browser, cheap_hash, make_settings

CASES = int(os.environ.get("PACS_NODE_API_CASES", "5"))
OWN_TOKEN = 2_000_000_011
"""No case hits upon this number: the token that it works with would be revoked."""

logger = logging.getLogger(__name__)


def names() -> list[str]:
    """All operations, of an application without a node behind it."""
    app = Browser(Database("sqlite://"), make_settings(Path())).app
    return [f"{item.method} {item.path}" for item in app.state.api.state.operations]


def _scope(fixture_name: str, config: pytest.Config) -> Literal["module", "function"]:
    """A node for all, or one for each operation: many cases write a long record, which exports read whole."""
    return "module" if CASES < 100 else "function"


@pytest.fixture(scope=_scope)
def program(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A node with one study in each stage and a token that may do everything."""
    directory = tmp_path_factory.mktemp("api")
    shutil.copyfile(migrated, directory / "node.db")
    database = Database(sqlite_url(directory))
    story = analysed(Story(database, directory, "done"), RESULT)
    story = Story(database, directory, "queued", story.now).receive().close().queue()
    with database.write() as session:
        hashed = accounts.Hashed(cheap_hash(), one_time=False)
        accounts.add(session, "alice", Role.VIEWER, hashed, at=story.now, actor="test")
    web = {"api_requests_per_minute": 0, "names": ["testserver"]}
    program = Program(Browser(database, make_settings(directory, web=web), story.now))
    program.secrets[Role.ADMINISTRATOR] = program.token("cases", Role.ADMINISTRATOR)
    with database.write() as session:
        session.execute(update(ApiToken).values(id=OWN_TOKEN))
    # asking a peer takes its time
    monkeypatch = pytest.MonkeyPatch()
    for name in ("echo_destination", "look_at_destination"):
        monkeypatch.setattr(f"pacs_node.web.api.exchange.{name}", lambda *_: [])
    yield program
    monkeypatch.undo()
    database.dispose()


@pytest.fixture(scope=_scope)
def document(program: Program) -> Any:
    schemathesis.openapi.format("one-line", st.text(min_size=1).map(str.strip).filter(_is_one_line))
    return schemathesis.openapi.from_asgi(f"{ADDRESS}/openapi.json", program.browser.app)


def _is_one_line(text: str) -> bool:
    return 0 < len(text) <= 200 and text.isprintable()


def _is_lost(value: object) -> bool:
    """Whether an address can't say it: nothing, or a list of one, which looks like what is in it."""
    return value in (None, [], {}) or (isinstance(value, list) and len(value) == 1)


@pytest.mark.parametrize("name", names())
def test_generated_requests(program: Program, document: Any, name: str) -> None:
    method, path = name.split()
    studies = [Story(program.browser.database, Path(), story).study_uid for story in ("done", "queued")]
    known: dict[str, Sequence[object]] = {
        "study_uid": studies,
        "name": ["alice"],
        "destination": ["pacs"],
        "artifact_id": [1, 2, 3],
    }
    headers = {"Authorization": f"Bearer {program.secrets[Role.ADMINISTRATOR]}"}
    statuses, operation = Counter[int](), document[path][method]

    @seed(CASES)
    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(*map(operation.as_strategy, GenerationMode)), pick=st.integers(0, 3))
    def ask(case: Any, pick: int) -> None:
        if case.meta.generation.mode is GenerationMode.POSITIVE:
            for parameter in known.keys() & case.path_parameters.keys():
                # what there is would hardly be hit upon
                if pick < len(known[parameter]):
                    case.path_parameters[parameter] = known[parameter][pick]
            if "Idempotency-Key" in (case.headers or {}):
                # a key that comes with another request is refused, and rightly
                case.headers["Idempotency-Key"] = (
                    f"{case.headers['Idempotency-Key'][:150]}-{statuses.total()}"
                )
            if isinstance(case.body, dict) and "job_id" in case.body:
                case.body["job_id"] = 1
        # not sent, or not as it is: then the request is not as wrong as it is meant to be
        assume(not any(_is_lost(value) for value in (case.query or {}).values()))
        answer = case.call(headers=headers)
        statuses[answer.status_code] += 1
        # who gets in is the matter of test_api.py
        case.validate_response(answer, excluded_checks=[ignored_auth])

    ask()
    logger.info("%s: %s", name, dict(sorted(statuses.items())))
    assert sum(statuses.values()) >= min(CASES, 2)
    assert not [status for status in statuses if status >= 500]
