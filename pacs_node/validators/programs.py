"""dciodvfy and dcentvfy of dicom3tools, dsrdump of DCMTK, PixelMed's SR validator, dicom-validator."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pacs_node.validators.subjects import CT, OTHER, PDF, SC, SEG, SR, Subject
from pacs_node.validators.tool import Tool, find_program, lines_of, needs_program, run_program

PIXELMED_JAR = Path("/usr/share/java/pixelmed.jar")

#: Without the properties Java 17 refuses the validator's own stylesheet (JAXP0801003). The memory that it
#: takes grows steeply with the number of measurement groups: 6.5 GB and no end for a report of forty nodules.
_JAVA_LIMITS = ("-Xmx3g", *(f"-Djdk.xml.xpath{name}Limit=0" for name in ("ExprOp", "TotalOp", "ExprGrp")))
_PIXELMED_ENDS = "Root Template Validation Complete"
_PIXELMED_SAYS_ALWAYS = re.compile(rf"^(Found .*|{_PIXELMED_ENDS}|IOD validation complete)$")
#: dciodvfy first names the IOD that it took the object for.
_NAME_OF_IOD = re.compile(r"^[A-Za-z0-9]+$")
#: dicom-validator's own progress, and the headings that say where a message belongs.
_IOD_VALIDATOR_SAYS_ALWAYS = re.compile(
    r"^(Validating DICOM file|SOP class is|Using DICOM edition|Errors$|=+$)"
)
_MODULE = re.compile(r"^Module \"(.*)\":$")
_PLACE = re.compile(r"^(\([0-9A-F]{4},[0-9A-F]{4}\) \(.*\)[ /]*)+.*:$")


def _dciodvfy(subjects: Sequence[Subject]) -> list[str]:
    done = run_program("dciodvfy", subjects[0].path)
    said = [line for line in lines_of(done.stdout, done.stderr) if not _NAME_OF_IOD.match(line)]
    return said or _status(done.returncode)


def _dcentvfy(subjects: Sequence[Subject]) -> list[str]:
    done = run_program("dcentvfy", *(subject.path for subject in subjects))
    return lines_of(done.stdout, done.stderr) or _status(done.returncode)


def _dsrdump(subjects: Sequence[Subject]) -> list[str]:
    done = run_program("dsrdump", subjects[0].path)
    said = lines_of(done.stderr)
    if not done.stdout.strip():
        said.append("dsrdump printed no document")
    return said + _status(done.returncode)


def _pixelmed(subjects: Sequence[Subject]) -> list[str]:
    done = run_program(
        "java", *_JAVA_LIMITS, "-cp", PIXELMED_JAR, "com.pixelmed.validate.DicomSRValidator", subjects[0].path
    )
    said = lines_of(done.stdout, done.stderr)
    if _PIXELMED_ENDS not in said:
        said.append("the validator did not come to its end")
    return [line for line in said if not _PIXELMED_SAYS_ALWAYS.match(line)]


def _pixelmed_missing() -> str | None:
    if find_program("java") is None:
        return "no program java"
    return None if PIXELMED_JAR.exists() else f"no {PIXELMED_JAR}"


def _status(returncode: int) -> list[str]:
    return [f"exit status {returncode}"] if returncode else []


def edition_directory() -> Path:
    """Where dicom-validator itself keeps the editions of the standard that it downloaded."""
    return Path.home() / "dicom-validator"


def _newest_edition(directory: Path) -> Path | None:
    return max((path.parents[1] for path in directory.glob("*/docbook/part03.xml")), default=None)


def iod_validator(directory: Path | None = None) -> Tool:
    """dicom-validator on an edition of the standard.

    Parameters
    ----------
    directory
        Holds one folder for each edition, with the DocBook files of PS3.3, PS3.4 and PS3.6 in ``docbook``;
        the newest is used. By default where the tool itself keeps them.
    """

    def missing() -> str | None:
        if find_program("validate_iods") is None:
            return "no program validate_iods"
        place = directory or edition_directory()
        return None if _newest_edition(place) else f"no edition of the standard in {place}"

    def check(subjects: Sequence[Subject]) -> list[str]:
        edition = _newest_edition(directory or edition_directory())
        if edition is None:
            return ["the edition of the standard is gone"]
        # The tool asks NEMA's server for a list of editions that is old or missing: here it finds one.
        with TemporaryDirectory(prefix="edition-") as folder:
            (Path(folder) / edition.name).symlink_to(edition.resolve())
            (Path(folder) / "editions.json").write_text(json.dumps([edition.name]), encoding="utf-8")
            done = run_program(
                "validate_iods", "--standard-path", folder, "--edition", "local", subjects[0].path
            )
        lines = lines_of(done.stdout, done.stderr)
        said = list(_with_their_places(line for line in lines if not _IOD_VALIDATOR_SAYS_ALWAYS.match(line)))
        return said or _status(done.returncode)

    return Tool(
        "dicom-validator",
        "modules and attributes by the tables of PS3.3",
        "pip: dicom-validator; an edition of the standard: conformance/README.md",
        (SEG, SR, SC, PDF, CT),
        missing,
        check,
    )


def _with_their_places(lines: Iterable[str]) -> Iterator[str]:
    """Put the module and the sequence before each message; they stand on lines of their own."""
    module = place = ""
    for line in lines:
        if heading := _MODULE.match(line):
            module, place = heading[1], ""
        elif _PLACE.match(line):
            place = line
        else:
            yield ": ".join(part.rstrip(":") for part in (module, place, line) if part)


TOOLS = (
    Tool(
        "dciodvfy",
        "modules, attributes and values of the IOD",
        "Debian: dicom3tools",
        (SEG, SR, SC, PDF, CT, OTHER),
        needs_program("dciodvfy"),
        _dciodvfy,
    ),
    Tool(
        "dcentvfy",
        "patient, study, series equal in all objects",
        "Debian: dicom3tools",
        (SEG, SR, SC, PDF, CT, OTHER),
        needs_program("dcentvfy"),
        _dcentvfy,
        together=True,
    ),
    Tool(
        "dsrdump",
        "the content tree of a report, by DCMTK",
        "Debian: dcmtk",
        (SR,),
        needs_program("dsrdump"),
        _dsrdump,
    ),
    Tool(
        "PixelMed",
        "templates and context groups of a report",
        "Debian: libpixelmed-java default-jre-headless",
        (SR,),
        _pixelmed_missing,
        _pixelmed,
    ),
    iod_validator(),
)
