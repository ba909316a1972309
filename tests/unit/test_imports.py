"""Which module may import which: the contract of docs/architecture.md.

The tables say it; the tests read the imports of all modules, those inside functions too. A new module
must be put into a layer. A module imports from the layers above its own in the table only.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

#: Packages and what each may import of the other two.
PACKAGES: dict[str, tuple[str, ...]] = {
    "inference": (),
    "dicom_sr": (
        "inference.types",
        "inference.change",
        "inference.uids",
        "inference.errors",
        "inference.certainty",
    ),
    "pacs_node": ("inference", "dicom_sr"),
}

#: Layers from the ground up. Modules of one layer don't import each other, but those of one row
#: with ``*`` (a package of its own) do.
LAYERS: dict[str, tuple[str, ...]] = {
    "inference": (
        "change certainty",
        "errors types uids headers decode_probes digest durable mesh prompts cards",
        "boxes",
        (
            "datasets datasets.* intensity decode geometry lungs segment weights catalogue download"
            " torchscript risk radiomics record_codes same_patient phantom phantom.*"
        ),
        "record",
        "record_header",
        (
            "compare select cade measure retinanet pull inventory record_files record_person pleura views"
            " descriptors"
            " guidelines guidelines.*"
        ),
        "load registry openclip_model",
        "windows sam2_model lora insertion cadx_network fusion fusion.* published extent",
        "prompted detector cadx convert full",
        "full_detector",
        "stack",
        "priors priors.*",
        "analyse",
        "evaluate evaluate.*",
        "train train.*",
    ),
    "dicom_sr": (
        "charset codes narrative_samples pages part10 profiles source wording",
        "template",
        "context narrative",
        "header keyimages comparison",
        "content verify_seg verify_comparison stacks",
        "evaluations narrative_sr pairimages earlier",
        "conclusion seg verify",
        "compared",
        "report summary paper",
        "capture pdf",
    ),
    "pacs_node": (
        "returned_files",
        (
            "errors clock gpu states logs destinations peer present tcia request models_cli validators"
            " validators.* gate_pdu gate_wire dataset_head commitment hl7_ack"
            " confinement reader_tasks ballast file_meta doctor_findings http_limits record_codes"
        ),
        "tls gate_message gate_visitor archive reader reader_process record_facts record_http priors_store",
        "config_listener",
        "config_archive config_audit config_drift config_storage config_web",
        "config_notify config_priors config_record",
        "oidc_metadata record_fhir_read smart hl7_message",
        "oidc record_fhir",
        "connections one_node record_sources case_narrative",
        "config db spool association dicomweb engines gate gate_association priors_archive case_priors",
        "db_accounts db_feedback db_notices db_record db_tokens pieces row_errors",
        (
            "audit study_state leases storage case dimse config_template config_docs migrations migrations.*"
            " archive_dimse archive_web completeness"
        ),
        "clock_guard",
        (
            "lifecycle backlog breaker recipients retention gate_record commitment_scp commitment_scu"
            " audit_message audit_chain accounts"
        ),
        "audit_xml sessions tokens notify_messages watch priors_move priors_web",
        "priors_dimse",
        "notify_channels notify_queue",
        "account_admin cli_options",
        "audit_fhir",
        "audit_export",
        "audit_syslog",
        "audit_list",
        "audit_review",
        "quick_rows",
        "jobs outbox reception notices",
        "priors_own case_of_job damage",
        "priors_search",
        "recorder",
        "receiving recovery",
        "summaries",
        "feedback agreement drift model_use",
        "returned",
        "clinical_facts",
        "record_of_study mllp",
        "listener intake delivery dead_letters timeline",
        "reconcile missed refusals doctor_database backup_rows priors",
        "worker",
        "missed_cli",
        "backup schedule queries preflight doctor notify_cli",
        "doctor_peers doctor_queue doctor_services notify",
        "study_search",
        "held partners examination config_sources versions",
        "overview study_detail operator_actions kept_files",
        "destination_actions alarms readiness latency",
        "metrics",
        "web web.*",
        (
            "serve analyze accounts_cli tokens_cli audit_cli backup_cli dead_letters_cli"
            " evaluate_cli validate_cli doctor_cli guidelines_cli report_template_cli init_cli retention_cli"
        ),
        "demo",
        "cli",
    ),
}

#: Narrower than the layers: all that these modules may import of this repository.
ONLY: dict[str, str] = {
    "inference.phantom*": "inference.phantom* inference.types inference.uids inference.errors",
    "inference.change": "",
    "pacs_node.states": "",
    "pacs_node.connections": "",
    "pacs_node.db": "pacs_node.connections pacs_node.states",
    "pacs_node.audit": "pacs_node.db",
    "pacs_node.accounts": "pacs_node pacs_node.audit pacs_node.db_accounts pacs_node.errors",
    "pacs_node.tokens": "pacs_node pacs_node.accounts pacs_node.audit pacs_node.db pacs_node.db_accounts "
    "pacs_node.db_tokens",
    "pacs_node.sessions": "pacs_node pacs_node.accounts pacs_node.audit pacs_node.db pacs_node.db_accounts",
    "pacs_node.leases": "pacs_node.clock pacs_node.db pacs_node.errors pacs_node.states",
    "pacs_node.study_state": "pacs_node.db pacs_node.states",
    "pacs_node.lifecycle": "pacs_node.audit pacs_node.db pacs_node.errors pacs_node.states "
    "pacs_node.study_state",
    "pacs_node.reception": "inference.decode inference.uids pacs_node.audit pacs_node.dataset_head "
    "pacs_node.db pacs_node.errors pacs_node.lifecycle pacs_node.pieces pacs_node.quick_rows pacs_node.spool "
    "pacs_node.states "
    "pacs_node.study_state",
    "pacs_node.quick_rows": "pacs_node.db pacs_node.states",
    "pacs_node.gate": "pacs_node pacs_node.gate_pdu pacs_node.gate_visitor pacs_node.tls",
    "pacs_node.gate_visitor": "pacs_node pacs_node.gate_pdu",
    "pacs_node.gate_association": "inference.decode pacs_node pacs_node.gate_message pacs_node.gate_pdu "
    "pacs_node.gate_wire",
    "pacs_node.recorder": "pacs_node pacs_node.clock pacs_node.connections pacs_node.db "
    "pacs_node.errors pacs_node.reception pacs_node.row_errors pacs_node.spool",
    "pacs_node.recovery": "pacs_node pacs_node.errors pacs_node.reception pacs_node.recorder pacs_node.spool",
    "pacs_node.row_errors": "pacs_node.connections pacs_node.errors",
    "pacs_node.receiving": "inference.uids pacs_node pacs_node.audit pacs_node.db pacs_node.errors "
    "pacs_node.gate_association pacs_node.gate_record pacs_node.gate_visitor pacs_node.notices "
    "pacs_node.reception "
    "pacs_node.recorder pacs_node.spool",
    "pacs_node.listener": "inference.decode pacs_node pacs_node.backlog pacs_node.clock pacs_node.commitment "
    "pacs_node.damage pacs_node.config pacs_node.notices pacs_node.receiving pacs_node.recorder "
    "pacs_node.recovery pacs_node.row_errors "
    "pacs_node.db pacs_node.errors pacs_node.gate pacs_node.gate_* pacs_node.spool "
    "pacs_node.storage pacs_node.tls",
    "pacs_node.case": "inference.* dicom_sr.* pacs_node pacs_node.case_narrative pacs_node.case_priors "
    "pacs_node.reader "
    "pacs_node.request pacs_node.spool pacs_node.states",
    "pacs_node.confinement": "",
    "pacs_node.file_meta": "dicom_sr.part10 pacs_node",
    "pacs_node.returned_files": "dicom_sr.codes dicom_sr.header inference.decode inference.errors "
    "inference.headers inference.uids",
    "pacs_node.reader_process": "inference.errors inference.load pacs_node pacs_node.confinement "
    "pacs_node.reader_tasks",
    "pacs_node.breaker": "pacs_node pacs_node.audit pacs_node.db pacs_node.destinations",
    "pacs_node.outbox": "pacs_node pacs_node.breaker pacs_node.clock pacs_node.config pacs_node.db "
    "pacs_node.destinations pacs_node.errors pacs_node.leases pacs_node.lifecycle pacs_node.states",
    "pacs_node.delivery": "dicom_sr.profiles "
    "pacs_node.association pacs_node.breaker pacs_node.commitment_scu pacs_node.config pacs_node.db "
    "pacs_node.destinations pacs_node.dicomweb pacs_node.dimse pacs_node.errors pacs_node.jobs "
    "pacs_node.lifecycle pacs_node.outbox pacs_node.states pacs_node.storage pacs_node.tls pacs_node",
    "pacs_node.web*": "inference.certainty inference.errors "
    "pacs_node.alarms pacs_node.latency pacs_node.readiness "
    "pacs_node.config_sources pacs_node.dead_letters "
    "pacs_node.destination_actions pacs_node.doctor_findings pacs_node.examination pacs_node.held "
    "pacs_node.partners pacs_node.refusals pacs_node.versions pacs_node pacs_node.web* "
    "pacs_node.account_admin pacs_node.accounts pacs_node.audit pacs_node.audit_* pacs_node.breaker "
    "pacs_node.clock pacs_node.config pacs_node.config_listener pacs_node.db pacs_node.db_accounts "
    "pacs_node.db_tokens pacs_node.errors pacs_node.kept_files pacs_node.logs pacs_node.metrics "
    "pacs_node.missed pacs_node.operator_actions pacs_node.overview pacs_node.tokens inference.inventory "
    "pacs_node.oidc* pacs_node.present pacs_node.queries pacs_node.sessions "
    "pacs_node.agreement pacs_node.db_feedback pacs_node.drift pacs_node.feedback pacs_node.model_use "
    "inference.registry inference.uids "
    "pacs_node.states pacs_node.storage pacs_node.study_detail "
    "pacs_node.study_search pacs_node.study_state pacs_node.timeline pacs_node.tls "
    "dicom_sr.context",
}

#: Who alone imports these, inside the repository and outside.
IMPORTERS: dict[str, str] = {
    "inference.analyse": "pacs_node.case pacs_node.case_priors inference.evaluate* inference.train*",
    "inference.phantom": "inference.phantom* inference.evaluate* inference.train* pacs_node.demo",
    "dicom_sr.capture": "pacs_node.case",
    "dicom_sr.pdf": "pacs_node.case",
    "dicom_sr.report": "pacs_node.case",
    "dicom_sr.seg": "pacs_node.case",
    "dicom_sr.verify": "dicom_sr.capture dicom_sr.pdf pacs_node.case",
    "pacs_node.case": "pacs_node.analyze",
    "pacs_node.cli": "",
    "sam2": "inference.sam2_model inference.published",
    "open_clip": "inference.openclip_model",
    "matplotlib": "dicom_sr.pages dicom_sr.paper inference.evaluate.plots",
    "sqlalchemy": "pacs_node.*",
    "pynetdicom": "pacs_node.*",
    "starlette": "pacs_node.web*",
    "fastapi": "pacs_node.web.api*",
    "uvicorn": "pacs_node.web*",
    "argon2": "pacs_node.accounts",
    "jwt": "pacs_node.oidc* pacs_node.smart",
    "hl7": "pacs_node.hl7_message",
    "torch": "inference.* pacs_node.engines",
}

#: Importing these must not load torch: they run in processes that compute nothing.
LIGHT = (
    "dicom_sr.*",
    "inference.registry",
    "inference.load",
    "inference.record*",
    "pacs_node.listener",
    "pacs_node.receiving",
    "pacs_node.recorder",
    "pacs_node.intake",
    "pacs_node.schedule",
    "pacs_node.worker",
    "pacs_node.delivery",
    "pacs_node.serve",
    "pacs_node.cli",
    "pacs_node.web.app",
)


def _name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _sources(root: Path = REPOSITORY) -> dict[str, Path]:
    return {
        _name(path, root): path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))
    }


def _imported(source: str, module: str, known: set[str]) -> Iterator[str]:
    """Full names of what a source text imports; a submodule counts as itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports are not used here"
            base = node.module or ""
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in known else base


SOURCES = _sources()
GRAPH = {
    name: set(_imported(path.read_text(), name, set(SOURCES))) - {name} for name, path in SOURCES.items()
}


def _inside(name: str) -> bool:
    return name.partition(".")[0] in PACKAGES


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split())


def _is_or_is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _layer(name: str) -> int | None:
    """Layer of a module; -1 for a package's own ``__init__``, None where the table doesn't know it."""
    package, _, rest = name.partition(".")
    if not rest:
        return -1
    return next((number for number, row in enumerate(LAYERS[package]) if _matches(rest, row)), None)


def _unit(name: str) -> str:
    """The subpackage that a module belongs to, such as ``pacs_node.web``, or the module itself."""
    package, _, rest = name.partition(".")
    folder = f"{package}.{rest.split('.')[0]}"
    return folder if rest and f"{rest.split('.')[0]}.*" in " ".join(LAYERS[package]).split() else name


def broken_layers(graph: dict[str, set[str]]) -> list[str]:
    """Imports that the layers don't allow."""
    broken = []
    for name, imports in sorted(graph.items()):
        for other in sorted(filter(_inside, imports)):
            mine, theirs = name.split(".")[0], other.split(".")[0]
            if mine != theirs:
                allowed = any(_is_or_is_in(other, package) for package in PACKAGES[mine])
            else:
                own, its = _layer(name), _layer(other)
                allowed = own is not None and its is not None and (its < own or _unit(name) == _unit(other))
            if not allowed:
                broken.append(f"{name} imports {other}")
    return broken


def broken_limits(graph: dict[str, set[str]]) -> list[str]:
    """Imports against `ONLY` and `IMPORTERS`."""
    broken = []
    for name, imports in sorted(graph.items()):
        for other in sorted(imports):
            limits = [allowed for pattern, allowed in ONLY.items() if fnmatchcase(name, pattern)]
            if _inside(other) and any(not _matches(other, allowed) for allowed in limits):
                broken.append(f"{name} imports {other}")
            for package, importers in IMPORTERS.items():
                if _is_or_is_in(other, package) and not _matches(name, importers):
                    broken.append(f"{name} imports {other}, which only {importers or 'nobody'} may")
    return broken


def test_every_module_has_its_layer() -> None:
    unknown = [name for name in SOURCES if _layer(name) is None]
    assert unknown == [], "put it into LAYERS"


def test_every_name_in_the_layers_exists() -> None:
    named = {
        f"{package}.{name.removesuffix('.*')}"
        for package, rows in LAYERS.items()
        for row in rows
        for name in row.split()
    }
    assert named <= set(SOURCES)


def test_modules_import_from_the_layers_above_them_in_the_table_only() -> None:
    assert broken_layers(GRAPH) == []


def test_modules_import_no_more_than_they_may() -> None:
    assert broken_limits(GRAPH) == []


def test_no_cycle() -> None:
    inside = {name: set(filter(_inside, imports)) for name, imports in GRAPH.items()}
    # a module needs the packages that it lies in, they must not need it
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("inference.load", "pacs_node.config"),
        ("dicom_sr.seg", "pacs_node.states"),
        ("dicom_sr.seg", "inference.load"),
        ("pacs_node.db", "pacs_node.jobs"),
        ("pacs_node.intake", "pacs_node.worker"),
        ("pacs_node.states", "pacs_node.cli"),
    ],
)
def test_the_layers_would_notice(name: str, other: str) -> None:
    assert broken_layers({name: {other}}) == [f"{name} imports {other}"]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("pacs_node.listener", "pacs_node.jobs"),
        ("pacs_node.web.app", "pacs_node.worker"),
        ("pacs_node.intake", "dicom_sr.report"),
        ("inference.cade", "inference.phantom.build"),
        ("inference.cade", "sam2.build_sam"),
        ("inference.cade", "open_clip"),
        ("dicom_sr.seg", "torch"),
        ("pacs_node.serve", "pacs_node.cli"),
    ],
)
def test_the_limits_would_notice(name: str, other: str) -> None:
    assert broken_limits({name: {other}}) != []


def test_imports_are_seen_wherever_they_stand() -> None:
    source = "import a.b as c\nfrom dicom_sr import seg\nfrom x import y\n"
    source += "def f():\n    from inference.types import Z\n"
    assert set(_imported(source, "m", set(SOURCES))) == {"a.b", "dicom_sr.seg", "x", "inference.types"}


_PROBE = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    if "torch" in sys.modules:
        sys.exit(f"{name} loads torch")
"""


def _import_in_a_fresh_process(names: list[str]) -> str:
    answer = subprocess.run(
        [sys.executable, "-c", _PROBE, *names],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return answer.stderr.strip()


def test_what_computes_nothing_loads_no_torch() -> None:
    names = [name for pattern in LIGHT for name in SOURCES if fnmatchcase(name, pattern)]
    assert [pattern for pattern in LIGHT if not any(fnmatchcase(name, pattern) for name in SOURCES)] == []
    assert _import_in_a_fresh_process(names) == ""


def test_what_computes_does_load_torch() -> None:
    """The control: the probe sees torch where it is loaded."""
    assert _import_in_a_fresh_process(["inference.analyse"]) == "inference.analyse loads torch"
