"""Write the table of requirements, hazards and tests: ``python -m conformance.traceability``.

``--soup`` prints the software of unknown provenance (IEC 62304, 8.1.2) instead: what the lock files pin, with
the licence that each package states.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
REQUIREMENTS = FOLDER / "requirements.toml"
TABLE = FOLDER / "traceability.md"
LOCK = ROOT / "requirements.lock"

_HEAD = """\
# Requirements, hazards and tests

Written by `python -m conformance.traceability` from [requirements.toml](requirements.toml); a test fails
where a hazard has no requirement, a requirement no test, or a test isn't there. What each test last gave:
[docs/reliability.md](../docs/reliability.md). Research software, not a medical device: this is a habit taken
from IEC 62304 and ISO 14971, and no claim of conformity with either. The software of others that the lock
file pins, with its licences: `python -m conformance.traceability --soup`.
"""
_PINNED = re.compile(r"^([A-Za-z0-9_.-]+)==([^ ;\\]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Requirement:
    """What the node promises, what goes wrong without it, and what holds it.

    Parameters
    ----------
    tests
        A file, or a file, ``::`` and a word that names of its test functions have.
    """

    id: str
    text: str
    hazards: tuple[str, ...]
    tests: tuple[str, ...]


def read(path: Path = REQUIREMENTS) -> tuple[dict[str, str], tuple[Requirement, ...]]:
    """Read hazards and requirements."""
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    rows = (
        Requirement(row["id"], row["text"], tuple(row["hazards"]), tuple(row["tests"]))
        for row in found["requirement"]
    )
    return found["hazards"], tuple(rows)


def gaps(hazards: Mapping[str, str], requirements: Sequence[Requirement]) -> Iterator[str]:
    """What is missing: hazards without a requirement, requirements without a test, tests that are lost."""
    controlled = {hazard for row in requirements for hazard in row.hazards}
    yield from (f"{hazard}: no requirement controls it" for hazard in hazards.keys() - controlled)
    yield from (f"{hazard}: no such hazard" for hazard in controlled - hazards.keys())
    ids = [row.id for row in requirements]
    yield from (f"{name}: twice" for name in sorted({name for name in ids if ids.count(name) > 1}))
    for row in requirements:
        if not row.tests:
            yield f"{row.id}: no test"
        for test in row.tests:
            file, _, word = test.partition("::")
            if not any(word in name for name in _functions(file)):
                yield f"{row.id}: there is no test {test}"


@cache
def _functions(file: str) -> tuple[str, ...]:
    """Names of the test functions of a file; none if it isn't there."""
    path = ROOT / file
    if not path.is_file():
        return ()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = (node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return tuple(name for name in found if name.startswith("test_"))


def render(hazards: Mapping[str, str], requirements: Sequence[Requirement]) -> str:
    """Return the tables as Markdown."""
    lines = [_HEAD, "| | hazard | controlled by |", "| --- | --- | --- |"]
    for name, text in hazards.items():
        control = ", ".join(row.id for row in requirements if name in row.hazards)
        lines.append(f"| {name} | {text} | {control} |")
    lines += ["", "| | requirement | hazards | tests |", "| --- | --- | --- | --- |"]
    for row in requirements:
        tests = ", ".join(map(_link, row.tests))
        lines.append(f"| {row.id} | {row.text} | {', '.join(row.hazards)} | {tests} |")
    return "\n".join(lines) + "\n"


def _link(test: str) -> str:
    file, _, word = test.partition("::")
    name = file.removeprefix("tests/")
    return f"[{name}](../{file})" + (f" `-k {word}`" if word else "")


def soup(lock: Path = LOCK) -> Iterator[tuple[str, str, str]]:
    """Name, version and stated licence of each package of the lock file."""
    for name, version in _PINNED.findall(lock.read_text(encoding="utf-8")):
        try:
            stated = metadata(name)
        except PackageNotFoundError:
            yield name, version, "not installed"
            continue
        trove = [line.rpartition(" :: ")[2] for line in stated.get_all("Classifier", []) if "License" in line]
        said = [*stated.get_all("License-Expression", []), "; ".join(trove), *stated.get_all("License", [])]
        yield name, version, next((words.partition("\n")[0] for words in said if words), "not stated")


def main() -> None:
    """Write the table, or print the list."""
    if "--soup" in sys.argv[1:]:
        sys.stdout.writelines(f"{name}\t{version}\t{licence}\n" for name, version, licence in soup())
        return
    TABLE.write_text(render(*read()), encoding="utf-8")


if __name__ == "__main__":
    main()
