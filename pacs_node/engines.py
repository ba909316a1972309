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
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import ParamSpec, TypeVar

from pacs_node import confinement, logs

logger = logging.getLogger(__name__)

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


class ProcessEngine(Executor):
    """One child process that lives from job to job; one that dies or hangs is replaced.

    Parameters
    ----------
    threads
        For the numeric libraries of the child; 0 leaves the choice to them.
    writable
        The folders that the child may change, besides that for temporary files; None for no limit.
    """

    confined = True

    def __init__(self, threads: int = 0, writable: Sequence[Path] | None = None) -> None:
        self._threads = threads
        self._writable = writable
        self._pool: ProcessPoolExecutor | None = None
        self._pid: int | None = None

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
        if self._pool is None:
            # spawn: a fork would share the database connections and the locks of our threads
            self._pool = ProcessPoolExecutor(
                max_workers=1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_prepare_child,
                initargs=(self._threads, self._writable),
            )
            self._pid = self._pool.submit(os.getpid).result()
        return self._pool

    def kill(self) -> None:
        """Kill the child and what it is doing; the next `submit` starts another."""
        pool, pid, self._pool, self._pid = self._pool, self._pid, None, None
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the child after what it is doing."""
        if self._pool is not None:
            self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)
            self._pool, self._pid = None, None


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
