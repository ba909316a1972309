"""Run the validators over files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import TimeoutExpired

from pacs_node.validators import dcmqi, libraries, programs
from pacs_node.validators.subjects import Subject
from pacs_node.validators.tool import Tool
from pacs_node.validators.waivers import Waiver, Waivers, sort_messages

TOOLS: Mapping[str, Tool] = {tool.name: tool for tool in (*programs.TOOLS, *dcmqi.TOOLS, *libraries.TOOLS)}
"""All validators by name, in the order of the table."""

_PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """What one tool said about one object.

    Parameters
    ----------
    messages
        What stands against it; empty where it passed.
    used
        The waiver of each message that was accepted.
    """

    tool: str
    path: Path
    kind: str
    messages: tuple[str, ...]
    used: tuple[Waiver, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """Everything that was said.

    Parameters
    ----------
    tools
        Those that were asked for.
    findings
        One for each tool and object that it can read.
    missing
        Reason by name of the tools that could not run.
    waivers
        What was accepted.
    """

    tools: tuple[Tool, ...]
    findings: tuple[Finding, ...]
    missing: Mapping[str, str]
    waivers: Waivers

    @property
    def failed(self) -> tuple[Finding, ...]:
        """Findings with a message that no waiver covers."""
        return tuple(finding for finding in self.findings if finding.messages)

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the missing tools that no entry of the waivers allows to be absent."""
        return tuple(name for name in self.missing if name not in self.waivers.absent)

    @property
    def unused(self) -> tuple[Waiver, ...]:
        """Waivers that covered nothing, of the tools that ran."""
        used = {waiver for finding in self.findings for waiver in finding.used}
        ran = {tool.name for tool in self.tools} - self.missing.keys()
        return tuple(w for w in self.waivers.accepted if w not in used and w.tool in ran)


def run_survey(
    subjects: Sequence[Subject],
    waivers: Waivers,
    tools: Sequence[Tool] = tuple(TOOLS.values()),
    progress: Callable[[int, int], None] | None = None,
) -> Survey:
    """Run every tool on every object that it can read.

    Parameters
    ----------
    progress
        Called with the number of checks done and of all.
    """
    missing = {tool.name: reason for tool in tools if (reason := tool.missing()) is not None}
    ready = [tool for tool in tools if tool.name not in missing]
    checks = [(tool, group) for tool in ready for group in _groups(tool, subjects)]
    findings: list[Finding] = []

    def add(done: Finding) -> None:
        findings.append(done)
        if progress is not None:
            progress(len(findings), len(checks))

    with ThreadPoolExecutor(_PROCESSES) as pool:
        outside = [(tool, group) for tool, group in checks if not tool.in_process]
        running = pool.map(lambda check: _examine(check[0], check[1], waivers), outside)
        for tool, group in checks:
            if tool.in_process:
                add(_examine(tool, group, waivers))
        for done in running:
            add(done)
    return Survey(tuple(tools), tuple(findings), missing, waivers)


def _groups(tool: Tool, subjects: Sequence[Subject]) -> Iterator[tuple[Subject, ...]]:
    """Cut the subjects into what the tool is given at once; the first one of each names the finding."""
    if not tool.together:
        yield from ((subject,) for subject in subjects if subject.kind in tool.kinds and not subject.context)
        return
    studies: dict[str, list[Subject]] = {}
    for subject in (subject for subject in subjects if subject.kind in tool.kinds):
        studies.setdefault(str(subject.header.get("StudyInstanceUID", "")), []).append(subject)
    for study in studies.values():
        own = [subject for subject in study if not subject.context]
        if own and len(study) > 1:
            yield (*own, *(subject for subject in study if subject.context))


def _examine(tool: Tool, group: tuple[Subject, ...], waivers: Waivers) -> Finding:
    try:
        said = tool.check(group)
    except TimeoutExpired:
        said = ["took too long"]
    except OSError as error:
        said = [f"can't be run: {error}"]
    messages, used = sort_messages(tool.name, group[0], said, waivers.accepted)
    return Finding(tool.name, group[0].path, group[0].kind, messages, used)
