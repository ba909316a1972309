"""Where an analysis runs: a `concurrent.futures.Executor`, so that Ray or a pool can take its place."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from threading import Thread, Timer
from typing import Any, ParamSpec, TypeVar

from pacs_node import confinement, logs

logger = logging.getLogger(__name__)

START_SECONDS = 300.0
"""The libraries for the models are read from a cold disk in less than a minute."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class InProcessEngine(Executor):
    """Runs the call at once in the caller's thread; for tests, the command line and debugging."""

    confined = False
    """Whether what runs in it gives away its rights, and opens received files in a child."""

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Run `fn` and return its finished future."""
        future: Future[_T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - an executor hands every error to whoever asks for the result
            future.set_exception(error)
        return future

    def kill(self) -> None:
        """Do nothing: what runs in this thread can't be killed."""


class _Children(SpawnContext):
    """Starts the processes of a pool and can kill them, also one that isn't ready yet.

    They are spawned: a fork would share the database connections and the locks of our threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self._started: list[SpawnProcess] = []

    def Process(  # type: ignore[override]  # noqa: N802 - a class there, called only
        self, *args: Any, **options: Any
    ) -> SpawnProcess:
        """Make a process."""
        process = SpawnProcess(*args, **options)
        self._started.append(process)
        return process

    def kill(self) -> None:
        """Kill those that run."""
        for process in self._started:
            # one that could not be started has no number
            if process.pid is not None:
                process.kill()


class ProcessEngine(Executor):
    """One child process that lives from job to job; one that dies or hangs is replaced.

    Parameters
    ----------
    threads
        For the numeric libraries of the child; 0 leaves the choice to them.
    writable
        The folders that the child may change, besides that for temporary files; None for no limit.
    start_seconds
        A child that isn't ready after this time is killed, and what was asked of it fails.
    """

    confined = True

    def __init__(
        self,
        threads: int = 0,
        writable: Sequence[Path] | None = None,
        start_seconds: float = START_SECONDS,
    ) -> None:
        self._threads = threads
        self._writable = writable
        self._start_seconds = start_seconds
        self._pool: ProcessPoolExecutor | None = None
        self._children = _Children()
        self._start_limit: Timer | None = None

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Run `fn` in the child; its arguments and result are pickled."""
        try:
            return self._ready_pool().submit(fn, *args, **kwargs)
        except BrokenProcessPool:
            # it died since the last job
            self.kill()
        try:
            return self._ready_pool().submit(fn, *args, **kwargs)
        except BrokenProcessPool as error:
            # it can't even start: whoever asks for the result learns it
            self.kill()
            failed: Future[_T] = Future()
            failed.set_exception(error)
            return failed

    def _ready_pool(self) -> ProcessPoolExecutor:
        """Return the pool; its child may still be starting, for which whoever submits doesn't wait."""
        if self._pool is None:
            self._children = children = _Children()
            self._pool = ProcessPoolExecutor(
                max_workers=1,
                mp_context=children,
                initializer=_prepare_child,
                initargs=(self._threads, self._writable),
            )
            ready = self._pool.submit(os.getpid)
            self._start_limit = Timer(self._start_seconds, self._end_start, [ready, children])
            self._start_limit.daemon = True
            self._start_limit.start()
        return self._pool

    def _end_start(self, ready: Future[int], children: _Children) -> None:
        if not ready.done():
            logger.error("the analysis process did not start", extra={"seconds": self._start_seconds})
            children.kill()

    def kill(self) -> None:
        """Kill the child and what it is doing; the next `submit` starts another."""
        pool, self._pool = self._pool, None
        if self._start_limit is not None:
            self._start_limit.cancel()
        self._children.kill()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the child after what it is doing."""
        if self._pool is not None:
            self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)
            self._pool = None


Engine = InProcessEngine | ProcessEngine


def _prepare_child(threads: int, writable: Sequence[Path] | None) -> None:
    logs.configure()
    # before there is another thread
    _give_up_rights(writable)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent()
    if threads:
        import torch  # noqa: PLC0415 - only the child that computes loads it

        torch.set_num_threads(threads)


def _give_up_rights(writable: Sequence[Path] | None) -> None:
    """No network, no new privileges; files are changed where results go only: no model, no image."""
    confinement.forbid_privileges()
    held = {"no_network": confinement.forbid_network()}
    if writable is not None:
        folders = [*writable, Path(tempfile.gettempdir()), Path("/dev")]
        held["no_other_files"] = confinement.forbid_writing(but=folders)
    logger.info("analysis process without rights", extra=held)


def exit_with_parent() -> None:
    """End this process as soon as its parent is gone: no orphan works on behind a killed node."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    Thread(target=watch, name="parent-watch", daemon=True).start()
