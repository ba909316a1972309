"""Log lines: one JSON object each, nothing that breaks a line, nothing of a patient."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from pacs_node.logs import JsonFormatter
from tests.ct_factory import make_ct_series, write_series


def line(message: str, *args: Any, level: int = logging.INFO, **extra: Any) -> str:
    logger = logging.getLogger("test")
    record = logger.makeRecord("pacs_node.x", level, "x.py", 1, message, args, None, extra=extra)
    return JsonFormatter().format(record)


def test_a_line_has_time_level_part_and_extras() -> None:
    parsed = json.loads(line("job %s", 7, attempt=2, state="queued"))
    assert parsed["message"] == "job 7"
    assert (parsed["level"], parsed["logger"], parsed["attempt"]) == ("info", "pacs_node.x", "2")
    assert parsed["part"] == "MainProcess"
    assert parsed["at"].endswith("+00:00")


@given(st.text(), st.text())
def test_any_text_stays_on_one_line_of_printable_ascii(message: str, value: str) -> None:
    text = line("%s", message, value=value)
    assert text.isascii()
    assert text.isprintable()
    parsed = json.loads(text)
    assert (parsed["message"], parsed["value"]) == (message, value)


@pytest.mark.parametrize("bad", ["\n", "\r", "\x00", "\x1b[31m", "\x7f", "\x85", "\u2028"])
def test_control_characters_are_escaped(bad: str) -> None:
    text = line("association refused", calling_ae=f"EVIL{bad}forged")
    assert bad not in text
    assert json.loads(text)["calling_ae"] == f"EVIL{bad}forged"


def fail() -> None:
    raise ValueError("PatientName 'CANARY^PATIENT' is not valid")


def test_an_exception_is_type_and_place_never_its_text() -> None:
    try:
        fail()
    except ValueError:
        record = logging.getLogger("test").makeRecord(
            "x", logging.ERROR, "x.py", 1, "instance could not be stored", (), sys.exc_info()
        )
    text = JsonFormatter().format(record)
    parsed = json.loads(text)
    assert parsed["exception"] == "ValueError"
    assert parsed["frames"].count("test_logs.py:") == 2
    assert "CANARY" not in text


SCRIPT = """
import logging, threading, warnings
from pacs_node import logs
logs.configure()
logs.configure()
warnings.warn("Invalid value for VR PN: 'CANARY^PATIENT'")
for name in ("pydicom", "pynetdicom", "pynetdicom.events", "highdicom.sr", "urllib3.pool", "dicomweb_client"):
    logging.getLogger(name).error("CANARY^PATIENT")
logging.getLogger("apscheduler.scheduler").warning("Execution of job skipped")
logging.getLogger("pacs_node.worker").info("seen")
def die():
    raise ValueError("CANARY^PATIENT")
thread = threading.Thread(target=die)
thread.start()
thread.join()
die()
"""


def test_libraries_warnings_and_uncaught_errors_say_nothing_of_patients() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "CANARY" not in done.stderr + done.stdout
    lines = [json.loads(text) for text in done.stderr.splitlines()]
    assert [entry["message"] for entry in lines] == ["seen", "uncaught", "uncaught"]
    assert {entry.get("exception") for entry in lines} == {None, "ValueError"}


@pytest.mark.filterwarnings("ignore:(Invalid value for VR UI|The value length):UserWarning")
def test_analyze_prints_no_warning_of_a_library(tmp_path: Path) -> None:
    series = make_ct_series(2, matrix=8)
    for ds in series:
        ds.StudyInstanceUID, ds.AccessionNumber = UID("1.2.840.0113.01"), "CANARY" * 5
    write_series(series, tmp_path / "in")
    command = [sys.executable, "-m", "pacs_node.cli", "analyze", str(tmp_path / "in")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 3
    assert "TOO_FEW_SLICES" in done.stdout
    assert done.stderr == ""
