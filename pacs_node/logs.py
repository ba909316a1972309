"""Log lines as JSON: one line for each record, control characters escaped, no patient data."""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType

logger = logging.getLogger(__name__)

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonFormatter(logging.Formatter):
    """Formats a record and its ``extra`` fields as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "part": record.processName,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: str(value) for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            # type and place, never the text: it may quote the data set
            kind, _error, trace = record.exc_info
            frames = []
            while trace is not None:
                frames.append(f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}")
                trace = trace.tb_next
            line |= {"exception": kind.__name__ if kind else "", "frames": " ".join(frames)}
        # JSON escapes every control character but DEL
        return json.dumps(line, ensure_ascii=True).replace("\x7f", "\\u007f")


def silence_libraries() -> None:
    """Keep warnings and messages that quote what peers sent, patient names included, to ourselves."""
    logging.captureWarnings(capture=True)
    for name in (
        "py.warnings",
        "pynetdicom",
        "pydicom",
        "pydicom.pixels.decoders.base",
        "highdicom",
        "dicomweb_client",
        "urllib3",
    ):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def configure(level: int = logging.INFO) -> None:
    """Send the log of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    silence_libraries()
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda uncaught: _log_uncaught(
        uncaught.exc_type, uncaught.exc_value, uncaught.exc_traceback
    )
    # a tick that is left out because the one before still runs is no event
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # thirty lines for each font in a PDF
    logging.getLogger("fontTools").setLevel(logging.WARNING)


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    """Log what nobody caught as everything else: without its text."""
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    logger.critical("uncaught", exc_info=(kind, error or kind(), trace))
