"""dciodvfy and dcentvfy of dicom3tools, dsrdump of DCMTK, PixelMed's SR validator, dicom-validator."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pacs_node.validators.subjects import CT, LABELMAP, OTHER, PDF, SC, SEG, SR, Subject
from pacs_node.validators.tool import Tool, find_program, lines_of, needs_program, run_program

PIXELMED_JAR = Path("/usr/share/java/pixelmed.jar")

#: Without the properties Java 17 refuses the validator's own stylesheet (JAXP0801003). The memory that it
#: takes grows steeply with the number of measurement groups: 6.5 GB and no end for a report of forty nodules.
_JAVA_LIMITS = ("-Xmx3g", *(f"-Djdk.xml.xpath{name}Limit=0" for name in ("ExprOp", "TotalOp", "ExprGrp")))
_PIXELMED_ENDS = "Root Template Validation Complete"
_PIXELMED_SAYS_ALWAYS = re.compile(rf"^(Found .*|{_PIXELMED_ENDS}|IOD validation complete)$")
#: dciodvfy first names the IOD that it took the object for.
_NAME_OF_IOD = re.compile(r"^[A-Za-z0-9]+$")
#: dicom-validator's own headings and progress.
_IOD_VALIDATOR_SAYS_ALWAYS = re.compile(
    r"^(Validating DICOM file|SOP class is|Using DICOM edition|Errors|=+$|Module \"|Tag .*:$|\(.*\):$)"
)


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


def _edition_missing() -> str | None:
    if find_spec("dicom_validator") is None or find_program("validate_iods") is None:
        return "no program validate_iods"
    if not any(edition_directory().glob("*/docbook/part03.xml")):
        return f"no edition of the standard in {edition_directory()}"
    return None


def _validate_iods(subjects: Sequence[Subject]) -> list[str]:
    done = run_program(
        "validate_iods", "--standard-path", edition_directory(), "--edition", "local", subjects[0].path
    )
    said = [line for line in lines_of(done.stdout, done.stderr) if not _IOD_VALIDATOR_SAYS_ALWAYS.match(line)]
    return said or _status(done.returncode)


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
    Tool(
        "dicom-validator",
        "modules and attributes by the DocBook of PS3.3",
        "pip: dicom-validator; its edition of the standard: conformance/README.md",
        (SEG, LABELMAP, SR, SC, PDF, CT),
        _edition_missing,
        _validate_iods,
    ),
)
