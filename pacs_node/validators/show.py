"""The validators on the console: a bar while they run, what stands against the objects, the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from pacs_node.validators.subjects import KINDS, Subject
from pacs_node.validators.survey import Finding, Survey, run_survey
from pacs_node.validators.tool import Tool
from pacs_node.validators.waivers import Waivers

PASSED, FAILED, NOT_INSTALLED = 0, 1, 3
_SHOWN = 20


def survey_with_progress(
    subjects: Sequence[Subject], waivers: Waivers, tools: Sequence[Tool], console: Console
) -> Survey:
    """Run the validators with a bar on the console."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("validators", total=None)
        return run_survey(
            subjects,
            waivers,
            tools,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def show(survey: Survey, console: Console, *, require_all: bool = False, require_used: bool = False) -> int:
    """Print what stands against the objects, then the table.

    Parameters
    ----------
    require_all
        A missing validator is a failure, but one that the waivers allow to be absent.
    require_used
        A waiver that covered nothing is a failure.

    Returns
    -------
    int
        0 passed; 1 a validator complains, or a waiver is unused; 3 a validator is missing.
    """
    for finding in survey.failed:
        console.print(f"[bold]{finding.tool}[/] on {escape(str(finding.path))}")
        for message in finding.messages[:_SHOWN]:
            console.print(f"  {message}", markup=False)
        if len(finding.messages) > _SHOWN:
            console.print(f"  and {len(finding.messages) - _SHOWN} more")
    console.print(_table(survey))
    for tool in survey.tools:
        if tool.name not in survey.missing:
            continue
        allowed = survey.waivers.absent.get(tool.name)
        rest = f"may be absent: {allowed}" if allowed else f"to install it: {tool.install}"
        console.print(f"{tool.name}: {survey.missing[tool.name]}; {rest}", markup=False)
    unused = survey.unused if require_used else ()
    for waiver in unused:
        console.print(f"unused waiver: {waiver.tool}: {waiver.pattern.pattern}", markup=False)
    if survey.failed or unused:
        return FAILED
    return NOT_INSTALLED if require_all and survey.absent else PASSED


def _table(survey: Survey) -> Table:
    table = Table(title="Validators", caption="Research use only, not for primary diagnosis.")
    heading, *rows = result_rows(survey)
    for text in heading:
        table.add_column(text)
    for row in rows:
        table.add_row(*row, style="red" if row[-1] in {"FAILED", "not installed"} else "")
    return table


def result_rows(survey: Survey) -> Iterator[tuple[str, ...]]:
    """Give the cells of the table, its heading first.

    One row for each tool: name, a cell for each kind of object that was seen, waived messages, verdict.
    """
    kinds = [kind for kind in KINDS if any(finding.kind == kind for finding in survey.findings)]
    yield "validator", *kinds, "waived", "verdict"
    for tool in survey.tools:
        own = [finding for finding in survey.findings if finding.tool == tool.name]
        if tool.name in survey.missing:
            allowed = tool.name in survey.waivers.absent
            yield tool.name, *("" for _ in kinds), "", "not run" if allowed else "not installed"
            continue
        cells = (_cell([finding for finding in own if finding.kind == kind]) for kind in kinds)
        yield tool.name, *cells, str(sum(len(finding.used) for finding in own)), _verdict(own)


def _verdict(findings: Sequence[Finding]) -> str:
    if any(finding.messages for finding in findings):
        return "FAILED"
    return "passed" if findings else "nothing to check"


def _cell(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    bad = sum(1 for finding in findings if finding.messages)
    return f"{bad} of {len(findings)} bad" if bad else f"{len(findings)} ok"
