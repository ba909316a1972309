"""The settings, each declared once: type, default, limits and the sentence that explains it.

``pacs-node init`` writes its commented file from these declarations, so the file, the checks and
``docs/configuration.md`` can't differ.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args
from urllib.parse import unquote, urlsplit

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from dicom_sr.profiles import PROFILES
from inference.registry import DEFAULT_PROFILE
from pacs_node.config_archive import ArchiveSettings
from pacs_node.config_audit import AuditSettings
from pacs_node.config_drift import DriftSettings
from pacs_node.config_listener import (
    AETitle,
    BacklogSettings,
    Caller,
    Days,
    Hours,
    ListenerSettings,
    Port,
    Seconds,
    Section,
    is_loopback,
)
from pacs_node.config_notify import NotifySettings
from pacs_node.config_priors import PriorsSettings
from pacs_node.config_record import MllpSettings, RecordSettings
from pacs_node.config_storage import SQLITE_FILE, StorageSettings, without_secret
from pacs_node.config_web import OidcSettings, WebSettings
from pacs_node.errors import ConfigurationError
from pacs_node.tls import TlsFiles

#: of the other modules of settings, besides all that is declared here
__all__ = ["ArchiveSettings", "Caller", "ListenerSettings", "StorageSettings", "WebSettings"]

SectionT = TypeVar("SectionT", bound=Section)

NAME = r"^[a-z0-9][a-z0-9_-]{0,31}$"
"""Of a destination."""


class CompletenessSettings(Section):
    """When a series counts as complete; DICOM has no message for it."""

    settle_seconds: Seconds = Field(
        10.0,
        description="Silence after which a series without gaps, its associations released, is closed.",
    )
    quiet_seconds: Seconds = Field(
        60.0, description="Any other series closes after this silence; refusals wait for it too."
    )

    @model_validator(mode="after")
    def _quiet_is_longer(self) -> CompletenessSettings:
        if self.quiet_seconds < self.settle_seconds:
            raise ValueError(f"quiet_seconds must be at least settle_seconds ({self.settle_seconds:g})")
        return self


class PipelineSettings(Section):
    """What analyses the series."""

    profile: str = Field(
        DEFAULT_PROFILE,
        description="Model cards to use: reference (networks), classical (none, so no malignancy), full.",
    )
    models: str = Field(
        "pacs-node-models",
        description="Folder of pacs-node models, relative to this file; only the profile full reads it.",
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where the computation runs.")
    examinations: Literal["by-header", "screening", "other"] = Field(
        "by-header",
        description="Whether all studies that come are lung cancer screening, or none (other): Lung-RADS "
        "holds for screening only. by-header asks the images' procedure codes and descriptions.",
    )
    without_prior: Literal["open", "baseline"] = Field(
        "open",
        description="What a screening CT of which no earlier CT is known counts as. open: Lung-RADS is not "
        "determined, and what it would be is said; baseline: the first one, so it has its category.",
    )
    engine: Literal["process", "in-process"] = Field(
        "process", description="process: in a child that may die without harm; in-process: for debugging."
    )
    timeout_seconds: Seconds = Field(
        1800.0, description="An analysis that takes longer is stopped and counts as failed."
    )
    max_attempts: int = Field(
        3,
        ge=1,
        le=20,
        description="Failed attempts before a study ends as failed with a report that says so.",
    )
    threads: int = Field(0, ge=0, le=256, description="Threads for computation; 0 lets the libraries choose.")
    wording: str = Field(
        "", description="TOML table with the report's sentences in another language; empty for English."
    )
    report_template: str = Field(
        "",
        description="TOML template of the draft narrative (docs/report.md); empty for the built-in one.",
    )


class _DestinationBase(Section):
    name: str = Field(pattern=NAME, description="Short name, used in commands and the page.")
    profile: Literal["standard", "ohif", "slicer", "weasis", "legacy"] = Field(
        "standard",
        description="What the receiver shows: which objects go there and how they are encoded "
        "(docs/profiles.md).",
    )
    send: tuple[Literal["seg", "sr", "sc", "pdf"], ...] | None = Field(
        None,
        strict=False,
        description="Objects that go there; absent means the profile's, [] none: the archive, only asked.",
    )
    segmentation: Literal["binary", "labelmap"] | None = Field(
        None, description="Encoding of the SEG; absent means the profile's."
    )
    empty_frames: bool | None = Field(
        None,
        description="Whether the SEG has frames without a voxel too; absent means the profile's.",
    )
    report: Literal["comprehensive-3d", "enhanced"] | None = Field(
        None, description="SOP class of the SR; absent means the profile's."
    )
    not_analysed: Literal["ct", "all", "none"] = Field(
        "ct",
        description="Which studies' reports that they were not analysed go there: those with CT images, all, "
        "or none. The others are kept here, and stand on the page.",
    )

    @property
    def forms(self) -> tuple[str, ...]:
        """What goes there, each object in its form; see `dicom_sr.profiles`."""
        chosen = {
            "objects": self.send,
            "segmentation": self.segmentation,
            "empty_frames": self.empty_frames,
            "report": self.report,
        }
        changes: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        return replace(PROFILES[self.profile], **changes).forms


class DicomDestination(_DestinationBase):
    """A peer that receives results by C-STORE."""

    kind: Literal["dicom"] = Field("dicom", description="C-STORE.")
    host: str = Field(min_length=1, description="Host name or address.")
    port: Port = Field(description="TCP port.")
    ae_title: AETitle = Field(description="Called AE title.")
    calling_ae_title: AETitle | None = Field(
        None, description="Ours towards this peer; absent means the listener's."
    )
    verify: Literal["c-find", "commitment", "none"] = Field(
        "c-find", description="How arrival is proved; commitment: storage commitment, to be reported back."
    )
    reports_as: AETitle | None = Field(
        None, description="AE title under which it reports storage commitment; absent means ae_title."
    )
    tls_ca_file: str | None = Field(
        None,
        description="Speak TLS and trust these (PEM): authorities, or the peer's own certificate; "
        "absent means no TLS.",
    )
    tls_certificate_file: str | None = Field(
        None, description="Our certificate (PEM); absent means the listener's."
    )
    tls_key_file: str | None = Field(None, description="Its private key (PEM, no password).")
    tls_server_name: str | None = Field(
        None, description="Name or address in the peer's certificate; absent means the host."
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> DicomDestination:
        own = (self.tls_certificate_file, self.tls_key_file)
        if self.tls_ca_file is None and any((*own, self.tls_server_name)):
            raise ValueError("TLS needs tls_ca_file")
        if any(own) and not all(own):
            raise ValueError("tls_certificate_file and tls_key_file belong together")
        return self


class DicomWebDestination(_DestinationBase):
    """A peer that receives results by STOW-RS."""

    kind: Literal["dicomweb"] = Field(description="STOW-RS.")
    url: str = Field(pattern=r"^https?://", description="DICOMweb root, e.g. https://pacs.example/dicom-web.")
    user: str | None = Field(None, description="For HTTP basic authentication.")
    password_file: str | None = Field(
        None, description="File that holds the password; no secret stands in this file."
    )
    ca_file: str | None = Field(
        None, description="Certificate authority to trust; absent means the system's."
    )
    verify: Literal["qido", "none"] = Field("qido", description="How arrival is proved.")


DestinationSettings = Annotated[DicomDestination | DicomWebDestination, Field(discriminator="kind")]


class DeliverySettings(Section):
    """How results are sent again when a peer is away."""

    retry_first_seconds: Seconds = Field(
        30.0, description="Longest wait before the first repetition; doubles each time, with jitter."
    )
    retry_longest_seconds: Seconds = Field(3600.0, description="Longest wait between repetitions.")
    give_up_hours: Hours = Field(
        72.0, description="After this time a delivery ends as failed and waits for an operator."
    )
    commitment_hours: Hours = Field(
        2.0,
        description="A destination that was asked for storage commitment and has not reported by then has "
        "not kept the results: they are sent again.",
    )
    timeout_seconds: Seconds = Field(
        30.0, description="A peer that makes no progress for this long is abandoned."
    )


class RetentionSettings(Section):
    """What is removed when. Nothing undelivered or unverified is ever removed."""

    images_days: Days = Field(
        30.0,
        description="Received images of finished studies; 0 keeps them for ever. What storage commitment "
        "promised to senders ends with it.",
    )
    results_days: Days = Field(0.0, description="Delivered results; 0 keeps them for ever.")
    unverified_days: Days = Field(
        0.0,
        description='Days after which what went to a destination with verify = "none" counts as delivered; '
        "0: never, so nothing of its studies is removed.",
    )


class Settings(Section):
    """The whole configuration."""

    listener: ListenerSettings = Field(default_factory=ListenerSettings)
    callers: tuple[Caller, ...] = Field((), strict=False)
    completeness: CompletenessSettings = Field(default_factory=CompletenessSettings)
    archive: ArchiveSettings = Field(default_factory=ArchiveSettings)
    pipeline: PipelineSettings = Field(default_factory=PipelineSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    destinations: tuple[DestinationSettings, ...] = Field((), strict=False)
    delivery: DeliverySettings = Field(default_factory=DeliverySettings)
    web: WebSettings = Field(default_factory=WebSettings)
    oidc: OidcSettings = Field(default_factory=OidcSettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    backlog: BacklogSettings = Field(default_factory=BacklogSettings)
    audit: AuditSettings = Field(default_factory=AuditSettings)
    drift: DriftSettings = Field(default_factory=DriftSettings)
    notify: NotifySettings = Field(default_factory=NotifySettings)
    record: RecordSettings = Field(default_factory=RecordSettings)
    mllp: MllpSettings = Field(default_factory=MllpSettings)
    priors: PriorsSettings = Field(default_factory=PriorsSettings)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Settings:
        names = [destination.name for destination in self.destinations]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"destinations: the name {twice[0]!r} is used twice; each needs its own")
        return self

    @model_validator(mode="after")
    def _archive_is_a_destination(self) -> Settings:
        name = self.archive.destination
        names = [destination.name for destination in self.destinations]
        if name and name not in names:
            raise ValueError(
                f"archive.destination = {name!r}: no destination of this name; known: "
                f"{', '.join(names) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _priors_can_be_fetched(self) -> Settings:
        how = self.priors.retrieve
        if how == "off":
            return self
        kind = "dicomweb" if how == "wado-rs" else "dicom"
        if kind not in {one.kind for one in self.destinations if one.name == self.archive.destination}:
            raise ValueError(
                f"priors.retrieve = {how!r}: needs archive.destination, a destination of kind {kind}"
            )
        if how != "c-move":
            return self
        if self.priors.move_ae_title == self.listener.ae_title:
            raise ValueError("priors.move_ae_title must be another one than listener.ae_title")
        protected = self.listener.allow_plaintext or self.listener.tls_files() is not None
        if not is_loopback(self.priors.move_host) and not protected:
            raise ValueError(
                f"priors.move_host {self.priors.move_host!r} is reachable from outside and the listener "
                "has no TLS: set that up, or listener.allow_plaintext = true if the network is protected"
            )
        return self

    @model_validator(mode="after")
    def _nobody_is_idle(self) -> Settings:
        for item in self.destinations:
            if item.send == () and item.name != self.archive.destination:
                raise ValueError(
                    f"destinations: {item.name} gets nothing (send = []), and it isn't archive.destination"
                )
        return self

    @model_validator(mode="after")
    def _own_certificate_is_there(self) -> Settings:
        for item in self.destinations:
            if isinstance(item, DicomDestination) and item.tls_ca_file and not self.client_tls_files(item):
                raise ValueError(
                    f"destinations: {item.name} needs tls_certificate_file and tls_key_file: "
                    "the listener has none"
                )
        return self

    @property
    def unproved(self) -> tuple[str, ...]:
        """Names of the destinations that are never asked whether they have a result."""
        return tuple(item.name for item in self.destinations if item.verify == "none")

    def client_tls_files(self, item: DicomDestination) -> TlsFiles | None:
        """Return the files for TLS towards a destination, None where it has or needs none."""
        certificate = item.tls_certificate_file or self.listener.tls_certificate_file
        key = item.tls_key_file or self.listener.tls_key_file
        if item.tls_ca_file is None or not certificate or not key:
            return None
        return TlsFiles(certificate, key, item.tls_ca_file)


def load_settings(path: Path) -> Settings:
    """Read and check a configuration file.

    Parameters
    ----------
    path
        TOML file. Relative paths in it are taken relative to its folder.

    Raises
    ------
    ConfigurationError
        With one line for each problem: key, value, and what would be right.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file; `pacs-node init` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: can't be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: not valid TOML: {error}") from None
    return parse_settings(raw, base=path.parent, source=str(path))


def parse_settings(raw: dict[str, Any], *, base: Path, source: str = "configuration") -> Settings:
    """Check settings that were read from TOML; see `load_settings`."""
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        lines = [f"{source}: {_explain(detail)}" for detail in error.errors()]
        raise ConfigurationError("\n".join(lines)) from None
    return _with_absolute_paths(settings, base)


def _with(section: SectionT, **values: Any) -> SectionT:
    """The section with other values; what the file set and what is a default stays known of it."""
    made = type(section).model_construct(section.model_fields_set, **(dict(section) | values))
    return cast(SectionT, made)


def _with_absolute_paths(settings: Settings, base: Path) -> Settings:
    def absolute(path: str | None) -> str | None:
        return path and str((base / path).absolute())

    def with_files(section: SectionT, *keys: str) -> SectionT:
        return _with(section, **{key: absolute(getattr(section, key)) for key in keys})

    storage = with_files(settings.storage, "directory", "database_password_file")
    if storage.database_url.startswith(SQLITE_FILE):
        file = absolute(storage.database_url.removeprefix(SQLITE_FILE))
        storage = _with(storage, database_url=f"{SQLITE_FILE}{file}")
    destinations = tuple(
        with_files(item, "password_file", "ca_file")
        if isinstance(item, DicomWebDestination)
        else with_files(item, "tls_ca_file", "tls_certificate_file", "tls_key_file")
        for item in settings.destinations
    )
    listener = with_files(settings.listener, "tls_certificate_file", "tls_key_file", "tls_client_ca_file")
    web = with_files(settings.web, "tls_certificate_file", "tls_key_file", "metrics_token_file")
    oidc = with_files(settings.oidc, "client_secret_file", "ca_file")
    files = ("webhook_secret_file", "webhook_ca_file", "mail_ca_file", "mail_password_file")
    notify = with_files(settings.notify, *files)
    record = with_files(settings.record, "fhir_ca_file", "fhir_token_file", "smart_key_file")
    mllp = with_files(settings.mllp, "tls_certificate_file", "tls_key_file", "tls_client_ca_file")
    pipeline = with_files(settings.pipeline, "wording", "models", "report_template")
    audit = with_files(settings.audit, "syslog_ca_file", "syslog_certificate_file", "syslog_key_file")
    heads = str((Path(storage.directory) / audit.heads_file).absolute())
    audit = _with(audit, heads_file=heads)
    return settings.model_copy(
        update={
            "storage": storage,
            "destinations": destinations,
            "listener": listener,
            "web": web,
            "oidc": oidc,
            "pipeline": pipeline,
            "audit": audit,
            "notify": notify,
            "record": record,
            "mllp": mllp,
        }
    )


def _explain(detail: ErrorDetails) -> str:
    """One problem as `key = value: what would be right`."""
    location = [part for part in detail["loc"] if part not in {"dicom", "dicomweb"}]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    message = _said(detail)
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _keys_beside(location), n=1)
        hint = (
            f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(_keys_beside(location))}"
        )
        return f"{key}: unknown key{hint}"
    if detail["type"] == "missing":
        return f"{key}: is required and missing"
    value = detail["input"]
    shown = "" if isinstance(value, dict) else f" = {without_secret(repr(value))}"
    return f"{key or 'settings'}{shown}: {message}"


def _said(detail: ErrorDetails) -> str:
    """What would be right, where pydantic says it for programmers only."""
    context = detail.get("ctx") or {}
    if detail["type"] == "tuple_type" and isinstance(detail["input"], dict):
        return f"write [[{detail['loc'][0]}]], with double brackets, before each of them"
    if detail["type"] == "union_tag_not_found":
        return 'kind is missing: write kind = "dicom" or kind = "dicomweb"'
    if detail["type"] == "string_pattern_mismatch" and context.get("pattern") == NAME:
        return "a name has lower case letters, digits, - and _, 32 at most"
    message = detail["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _keys_beside(location: list[str | int]) -> list[str]:
    """Names that would be valid where an unknown key stands."""
    if len(location) == 1:
        return list(Settings.model_fields)
    section = str(location[0])
    models: dict[str, list[type[BaseModel]]] = {
        "callers": [Caller],
        "destinations": list(get_args(get_args(DestinationSettings)[0])),
    }
    field = Settings.model_fields.get(section)
    if section not in models and field is not None and isinstance(field.annotation, type):
        models[section] = [field.annotation]
    return sorted({name for model in models.get(section, []) for name in model.model_fields})


def parse_destination(url: str, number: int = 1) -> DicomDestination | DicomWebDestination:
    """Read a destination written as one word on the command line.

    Parameters
    ----------
    url
        ``dicom://AE@host:port`` or the ``http(s)://`` root of a DICOMweb server.
    number
        Makes the name: ``destination1`` ...

    Raises
    ------
    ConfigurationError
        Neither form, or a value that the settings refuse.
    """
    name = f"destination{number}"
    parts = urlsplit(url)
    try:
        if parts.scheme in {"http", "https"}:
            return DicomWebDestination(kind="dicomweb", name=name, url=url)
        if parts.scheme == "dicom" and parts.username and parts.hostname and parts.port:
            return DicomDestination(
                name=name, host=parts.hostname, port=parts.port, ae_title=unquote(parts.username)
            )
    except ValidationError as error:
        problems = "; ".join(_explain(detail) for detail in error.errors())
        raise ConfigurationError(f"{url}: {problems}") from None
    except ValueError as error:
        raise ConfigurationError(f"{url}: {error}") from None
    raise ConfigurationError(f"{url}: write dicom://AE@host:port or https://host/dicom-web")
