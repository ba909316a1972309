"""``pacs-node guidelines``: categories, risks and growth of a table of facts, each with its rules."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from inference.guidelines.fact_row import FactError
from inference.guidelines.table import ASKS, answer

NOTICE = "Research use only, not for primary diagnosis. Made by software, not reviewed by a physician."
_EXPECTED = "expected"
_TOLERANCE = 5e-4
_SHOWN = ("category", "probability", "days")


@click.command(epilog=NOTICE)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--ask", type=click.Choice(list(ASKS)), help='Of rows without an own "ask".')
def guidelines(file: Path, ask: str | None) -> None:
    """Answer FILE: JSON (an object or a list), JSON lines or CSV, a nodule or an examination a row.

    Prints one JSON object a row with the category or probability, what the guideline recommends, the rules
    that held and what is missing; docs/guidelines.md names the facts. A row may have the "expected" answer:
    then it says whether they agree, and the exit status is 1 where one doesn't. Exit status 2: a row can't be
    read.
    """
    differ = wrong = 0
    for number, row in enumerate(_rows(file), 1):
        found = _answer(row, ask)
        wrong += "error" in found
        differ += found.get("agrees") is False
        click.echo(json.dumps({"row": number, **found}, ensure_ascii=False, allow_nan=False))
    click.echo(NOTICE, err=True)
    sys.exit(2 if wrong else 1 if differ else 0)


def _answer(row: dict[str, Any], ask: str | None) -> dict[str, Any]:
    facts = {name: value for name, value in row.items() if name != _EXPECTED}
    facts = {"ask": ask, **facts} if ask else facts
    try:
        found = answer(facts)
    except FactError as error:
        return {"error": str(error)}
    if _EXPECTED in row:
        found["expected"] = row[_EXPECTED]
        found["agrees"] = _agrees(
            next((found[name] for name in _SHOWN if name in found), None), row[_EXPECTED]
        )
    return found


def _agrees(found: object, expected: object) -> bool:
    """A category by its words, a number to three digits; null and nothing are "can't be determined"."""
    if found is None or expected in {None, ""}:
        return found is None and expected in {None, "", "cannot be determined"}
    if isinstance(found, float):
        try:
            return math.isclose(found, float(str(expected)), rel_tol=1e-3, abs_tol=_TOLERANCE)
        except ValueError:
            return False
    return str(found).casefold() == str(expected).strip().casefold()


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".csv":
            yield from csv.DictReader(text.splitlines())
            return
        content = (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if (file.suffix == ".jsonl")
            else json.loads(text)
        )
    except (OSError, UnicodeDecodeError, ValueError, RecursionError, csv.Error) as error:
        raise click.ClickException(f"{file} can't be read: {error}") from None
    for row in content if isinstance(content, list) else [content]:
        if not isinstance(row, dict):
            raise click.ClickException(f"{file}: a row is no JSON object")
        yield row
