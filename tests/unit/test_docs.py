"""The documents are held against the code."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import identify.identify
import pytest
import yaml
from pydantic import BaseModel

import pacs_node
from pacs_node import analyze, cli, config_docs, states
from pacs_node.config import Caller, DicomDestination, DicomWebDestination, Settings

REPOSITORY = Path(__file__).resolve().parents[2]
HIDDEN = {"node_modules", "demo-output", "pacs-node-data", "build", "dist"}


def _documents() -> list[Path]:
    return [
        path
        for path in sorted(REPOSITORY.rglob("*.md"))
        if not any(part in HIDDEN or part.startswith(".") for part in path.relative_to(REPOSITORY).parts)
    ]


def _text(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def _without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


# links


def _anchors(document: Path) -> set[str]:
    """Anchors of the headings, as the code hosts make them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(document: Path, root: Path = REPOSITORY) -> list[str]:
    """Relative links, and anchors in our own documents, that lead nowhere."""
    broken = []
    for target in re.findall(
        r"!?\[[^\]]*\]\(([^)\s]+)\)", _without_code(document.read_text(encoding="utf-8"))
    ):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (document.parent / path).resolve() if path else document
        exists = place.exists() and place.is_relative_to(root)
        if not exists or (anchor and anchor not in _anchors(place)):
            broken.append(target)
    return broken


def test_there_are_documents() -> None:
    names = {str(path.relative_to(REPOSITORY)) for path in _documents()}
    assert {
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "docs/architecture.md",
        "docs/configuration.md",
        "deploy/RUNBOOK.md",
        "conformance/README.md",
    } <= names


@pytest.mark.parametrize("document", _documents(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(document: Path) -> None:
    assert broken_links(document) == []


def test_a_broken_link_would_be_noticed(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text(
        "# One two\n[a](nowhere.md) [b](#one-two) [c](#three) `[d](code.md)` [e](https://x.y)\n"
    )
    assert broken_links(document, tmp_path) == ["nowhere.md", "#three"]


def test_every_document_says_research_use_only() -> None:
    say_so = re.compile(r"research\s+(use|software)", re.IGNORECASE)
    silent = [path for path in _documents() if not say_so.search(path.read_text(encoding="utf-8"))]
    assert silent == []


# settings


def _settings() -> Iterator[tuple[str, str]]:
    """Header of the table in the file, and key."""
    tables: list[tuple[str, type[BaseModel]]] = [
        ("[[callers]]", Caller),
        ("[[destinations]]", DicomDestination),
        ("[[destinations]]", DicomWebDestination),
    ]
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            tables.append((f"[{name}]", field.annotation))
    for header, model in tables:
        yield from ((header, key) for key in model.model_fields)


@pytest.mark.parametrize(("header", "key"), sorted(set(_settings())))
def test_every_setting_is_documented(header: str, key: str) -> None:
    sections = re.split(r"^## ", _text("docs/configuration.md"), flags=re.MULTILINE)
    rows = [section for section in sections if section.startswith(f"`{header}`")]
    assert any(re.search(rf"^\| `{key}` \|.*\| \S.* \|$", section, re.MULTILINE) for section in rows)


def test_the_settings_document_is_current() -> None:
    assert _text("docs/configuration.md") == config_docs.render_configuration(), "make docs"


def test_the_settings_document_is_written_as_the_makefile_says() -> None:
    written = subprocess.run(
        [sys.executable, "-m", "pacs_node.config_docs"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert written.stdout == _text("docs/configuration.md")
    assert "-m pacs_node.config_docs" in _text("Makefile")


def test_settings_named_elsewhere_exist() -> None:
    sections = {name for name in Settings.model_fields if name not in {"callers", "destinations"}}
    defaults = Settings()
    for document in _documents():
        for section, key in re.findall(r"`([a-z]+)\.([a-z_]+)(?: = [^`]*)?`", document.read_text()):
            if section in sections:
                assert hasattr(getattr(defaults, section), key), f"{document.name}: {section}.{key}"


# commands


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_verbs_exist(name: str) -> None:
    verbs = set(re.findall(r"pacs-node ([a-z-]+)", " ".join(re.findall(r"`[^`]+`", _text(name)))))
    assert verbs <= set(cli.main.commands)


def test_the_readme_names_every_verb() -> None:
    assert set(re.findall(r"pacs-node ([a-z-]+)", _text("README.md"))) >= set(cli.main.commands)


def test_options_in_the_readme_exist() -> None:
    for verb, rest in re.findall(r"pacs-node ([a-z-]+)([^`\n]*)", _text("README.md")):
        command = cli.main.commands.get(verb)
        if isinstance(command, click.Group) and rest.split():
            command = command.commands[rest.split()[0]]
        if command is not None:
            known = {option for parameter in command.params for option in parameter.opts}
            assert set(re.findall(r"--[a-z-]+", rest)) <= known, verb


def test_exit_statuses_of_analyze() -> None:
    table = re.findall(r"^\| (\d) \| (.*) \|$", _text("README.md"), re.MULTILINE)
    documented = {int(status): meaning for status, meaning in table}
    assert set(documented) == {0, 2, 3, 4, 5}
    assert documented[analyze.ANALYSED].startswith("analysed")
    assert documented[analyze.NOT_SUITABLE].startswith("not suitable")
    assert documented[analyze.NO_IMAGES].startswith("no readable DICOM images")
    assert documented[analyze.FAILED].startswith("the analysis failed")


def test_make_targets_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", _text("Makefile"), re.MULTILINE))
    for document in _documents():
        code = " ".join(re.findall(r"`make [^`]+`|^(?:sudo )?make .*$", document.read_text(), re.MULTILINE))
        assert set(re.findall(r"make ([a-z-]+)", code)) <= targets, document.name


def test_ci_runs_the_two_commands_of_the_readme() -> None:
    steps = [line for line in _text(".ci/run").splitlines() if line.startswith("make ")]
    assert steps == ["make test-peers", "make demo", "make test"]
    assert re.findall(r"^make [a-z-]+", _text("README.md"), re.MULTILINE) == ["make demo", "make test"]


# versions and locks


def test_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[([^\]]+)\]", _text("CHANGELOG.md"), re.MULTILINE)
    assert versions[0] == pacs_node.__version__


def _pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==([^ ;\\]+)", _text(name), re.MULTILINE))


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9._-]", item)[0].lower().replace("_", "-") for item in requirements}


def test_locks_hold_every_dependency_and_agree() -> None:
    project: dict[str, Any] = tomllib.loads(_text("pyproject.toml"))
    run, dev = _pins("requirements.lock"), _pins("requirements-dev.lock")
    sources = _pins("requirements-sdist.lock")
    needed = _names(project["project"]["dependencies"]) | _names(project["build-system"]["requires"])
    assert needed <= run.keys() | sources.keys()
    assert _names(project["project"]["optional-dependencies"]["dev"]) <= set(dev)
    assert run.items() <= dev.items()
    assert not sources.keys() & dev.keys()


def test_what_is_published_as_source_only_is_built_with_what_the_locks_install() -> None:
    """No build may download tools of its own: pip would not hold those to any hash."""
    left_out = re.findall(r"^# ([a-z0-9-]+)$", _text("requirements-dev.lock"), re.MULTILINE)
    assert sorted(left_out) == sorted(_pins("requirements-sdist.lock")) != []
    assert {"setuptools", "torch"} <= _pins("requirements.lock").keys()
    makefile = _text("Makefile")
    commands = dict(re.findall(r"^(WHEELS|SDISTS) := (.+)$", makefile, re.MULTILINE))
    for command, own in (
        (commands["WHEELS"], "--only-binary :all:"),
        (commands["SDISTS"], "--no-build-isolation"),
    ):
        assert "--require-hashes" in command.split()
        assert own in command
    for lock in ("requirements.lock", "requirements-dev.lock"):
        assert f"\t$(WHEELS) -r {lock}\n\t$(SDISTS) -r requirements-sdist.lock\n" in makefile
    assert "$(PIP) check" in makefile


def test_make_lock_knows_sam2_without_building_it() -> None:
    facts: dict[str, Any] = tomllib.loads(_text(".ci/uv.toml"))
    told = {entry["name"]: entry for entry in facts["dependency-metadata"]}
    assert told["sam2"]["version"] == importlib.metadata.version("sam2")
    said = importlib.metadata.requires("sam2") or []
    assert sorted(told["sam2"]["requires-dist"]) == sorted(item for item in said if "extra ==" not in item)


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock", "requirements-sdist.lock"])
def test_locks_have_hashes_and_name_no_index(name: str) -> None:
    text = _text(name)
    requirements = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(requirements) >= len(_pins(name))
    assert all("--hash=sha256:" in requirement for requirement in requirements)
    assert "#    make lock\n" in text
    assert not re.search(r"https?://|file:|--index|--find-links|/[a-z]+/[a-z]+/", text)


# architecture


def test_modules_in_the_architecture_exist() -> None:
    text = _text("docs/architecture.md")
    named = set(re.findall(r"`((?:pacs_node|inference|dicom_sr)(?:\.[a-z0-9_]+)+)`", text))
    assert len(named) > 10
    missing = [
        name
        for name in named
        if not (REPOSITORY / (name.replace(".", "/") + ".py")).exists()
        and not (REPOSITORY / name.replace(".", "/")).is_dir()
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("heading", "changes"),
    [
        ("Series", states.SERIES_CHANGES),
        ("Job", states.JOB_CHANGES),
        ("Delivery", states.DELIVERY_CHANGES),
    ],
)
def test_state_tables_are_those_of_the_code(heading: str, changes: frozenset[tuple[str, str]]) -> None:
    section = _text("docs/architecture.md").split(f"### {heading}\n")[1].split("\n#")[0]
    rows = re.findall(r"^\| `([a-z]+)` \| `([a-z]+)` \|", section, re.MULTILINE)
    assert sorted(rows) == sorted((str(old), str(new)) for old, new in changes)


# the hooks of pre-commit


def _hooks() -> list[dict[str, Any]]:
    parsed = yaml.safe_load(_text(".pre-commit-config.yaml"))
    return [hook for repository in parsed["repos"] for hook in repository["hooks"]]


@pytest.mark.parametrize("hook", _hooks(), ids=lambda hook: str(hook["id"]))
def test_each_hook_matches_files_and_runs_what_the_lock_pins(hook: dict[str, Any]) -> None:
    sources = [
        path
        for package in ("pacs_node", "inference", "dicom_sr", "tests")
        for path in (REPOSITORY / package).rglob("*.py")
    ]
    kinds = set(hook["types_or"])
    pattern = re.compile(hook.get("files", ""))
    matched = [
        path
        for path in sources
        if pattern.search(str(path.relative_to(REPOSITORY)))
        and kinds & identify.identify.tags_from_path(str(path))
    ]
    assert matched == sources
    program = hook["entry"].split()[0]
    assert program.startswith(".venv/bin/")
    assert Path(program).name in _pins("requirements-dev.lock")


def test_make_check_runs_what_the_hooks_run() -> None:
    makefile = _text("Makefile")
    for hook in _hooks():
        command = " ".join(word for word in hook["entry"].split() if word != "--force-exclude")
        assert command.replace(".venv/bin", "$(BIN)") in makefile
