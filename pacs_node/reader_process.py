"""The process that opens files for `pacs_node.reader`: it forks a child for each task and throws it away.

Everything is imported before the first fork, so a child costs milliseconds. The parent of the children never
sees a byte of a file. A child has no network, may not write, start a program or send a signal; its memory,
time and files are limited.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from inference.errors import UnsuitableSeriesError
from inference.load import LARGEST_VOLUME
from pacs_node import confinement
from pacs_node.reader_tasks import TASKS

MEMORY_BYTES = 1 << 30
"""Address space of a child; for pixels, twice the largest file more."""
CPU_SECONDS = 3600

_ENDED, _FAILED = 0, 1


def main() -> None:
    """Serve the socket that is standard input until its other end is closed."""
    confinement.forbid_privileges()
    confinement.forbid_network()
    channel = socket.socket(fileno=sys.stdin.fileno())
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    gc.collect()
    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(channel, 1, 3)
        if not message:
            return
        child = os.fork()
        if not child:
            _be_thrown_away(channel, *files)
        for file in files:
            os.close(file)
        _watch(child, channel)


def _watch(child: int, channel: socket.socket) -> None:
    """Tell how the child ended; end with it if nobody wants to know any more."""
    ended = os.pidfd_open(child)
    # whoever asked says nothing before the answer, so this can only be the end
    ready, _, _ = select.select([ended, channel.fileno()], [], [])
    os.close(ended)
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    channel.send(str(os.waitstatus_to_exitcode(status)).encode("ascii"))


def _be_thrown_away(channel: socket.socket, request: int, answer: int, voxels: int) -> None:
    """Do one task and end; never returns."""
    status = _FAILED
    try:
        confinement.die_with_parent(signal.SIGKILL)
        task = json.loads(_content(request))
        paths = [Path(path) for path in task["paths"]]
        extra = {"voxels": voxels} if task["name"] == "decode" else {}
        _confine(paths, decodes=task["name"] in {"decode", "compare", "masks"})

        def progress() -> None:
            channel.send(b".")

        progress()
        written = json.dumps(_done(task, paths, progress, extra)).encode("ascii")
        status = _ENDED if os.write(answer, written) == len(written) else _FAILED
    finally:
        os._exit(status)


def _done(task: dict[str, Any], paths: list[Path], progress: Any, extra: dict[str, int]) -> dict[str, Any]:
    try:
        return {"ok": TASKS[task["name"]](paths, progress, **task["options"], **extra)}
    except UnsuitableSeriesError as error:
        return {"refusal": [error.code.value, error.sentence]}
    except MemoryError:
        return {"memory": True}
    except Exception as error:  # noqa: BLE001 - whoever asked must learn of whatever it is
        place = traceback.extract_tb(error.__traceback__)[-1]
        return {"failed": f"{type(error).__name__}, {Path(place.filename).name}:{place.lineno}"}


def _confine(paths: list[Path], *, decodes: bool) -> None:
    largest = max((path.stat().st_size for path in paths if path.exists()), default=0)
    confinement.limit(
        AS=MEMORY_BYTES + 2 * largest * decodes,
        CPU=CPU_SECONDS,
        FSIZE=4 * LARGEST_VOLUME,
        NOFILE=64,
    )
    confinement.forbid_everything()
    confinement.forbid_writing()


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


if __name__ == "__main__":
    main()
