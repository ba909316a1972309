"""docs/api.md against the API: its examples are asked, its table is compared."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from pacs_node.accounts import ALLOWED
from pacs_node.states import DeliveryState
from tests.api_client import ADDRESS, Program
from tests.node_story import Story, analysed
from tests.web_browser import RESULT, Browser, artifact_id

TEXT = (Path(__file__).parents[2] / "docs/api.md").read_text(encoding="utf-8")


@dataclass
class Command:
    """A call of curl."""

    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    url: str = ""

    @classmethod
    def parse(cls, line: str, variables: dict[str, str]) -> Command:
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        found, words = cls(), iter(shlex.split(line)[1:])
        for word in words:
            if word == "-X":
                found.method = next(words)
            elif word == "-H":
                name, _, value = next(words).partition(": ")
                found.headers[name] = value
            elif word == "-d":
                found.body = next(words).encode()
            elif word == "-o":
                next(words)
            else:
                found.url = word
        return found


def test_the_examples_work(browser: Browser, story: Story) -> None:
    analysed(story, RESULT).deliver(DeliveryState.COMMITTED)
    browser.now = story.now
    program = Program(browser)
    assert program.ask("/me").status_code == 200
    variables = {
        "NODE": ADDRESS,
        "TOKEN": next(iter(program.secrets.values())),
        "STUDY": story.study_uid,
        "FILE": str(artifact_id(story, "sr")),
    }
    program.role = None
    lines = [line for line in TEXT.splitlines() if line.startswith("curl ")]
    assert len(lines) == 11
    for line in lines:
        command = Command.parse(line, variables)
        path = command.url.removeprefix(ADDRESS)
        answer = program.ask(path, method=command.method, content=command.body, headers=command.headers)
        assert answer.status_code == 200, (line, answer.text)


def test_the_table_has_all_operations(browser: Browser) -> None:
    rows = re.findall(r"^\| `([A-Z]+ /\S+)` \| (.+) \| (\w+) \|$", TEXT, re.MULTILINE)
    operations = browser.app.state.api.state.operations
    assert rows == [
        (f"{item.method} {item.path}", item.summary, item.permission.value) for item in operations
    ]


def test_the_table_of_permissions(browser: Browser) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?)(?:;[^|]*)? \|$", TEXT, re.MULTILINE))
    for permission in {permission for allowed in ALLOWED.values() for permission in allowed}:
        roles = [role.value for role, allowed in ALLOWED.items() if permission in allowed]
        said = rows[permission.value]
        assert said == ("each token" if len(roles) == len(ALLOWED) else ", ".join(roles)), permission
