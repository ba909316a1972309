"""``python -m tests.fuzz``: each target for some time, then damaged pixel data in the reader's child.

With atheris (``pip install -e '.[fuzz]'``) the targets are fuzzed with coverage, without it by mutation only.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

from tests.fuzz.mutate import mutations

logger = logging.getLogger("tests.fuzz")

NAMES = ("identity", "request", "association", "negotiation", "file")
_GUIDED_BY = ["pydicom", "pacs_node", "inference.decode", "inference.headers", "inference.load"]


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=720, help="for each target")
    parser.add_argument("--decoders", type=int, default=20_000, help="damaged images")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the mutations")
    parser.add_argument("--target", action="append", choices=NAMES)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.simplefilter("ignore")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    guided = importlib.util.find_spec("atheris") is not None
    logger.info("seed %d, %s", chosen.seed, "atheris" if guided else "mutation only (no atheris)")
    failed = False
    for name in chosen.target or NAMES:
        # a process each: a crash is an end that can be seen
        target = _guided if guided else _mutated
        process = multiprocessing.get_context("spawn").Process(
            target=target, args=(name, chosen.seconds, chosen.seed)
        )
        process.start()
        process.join()
        failed |= process.exitcode != 0
        logger.info("%s: exit status %s", name, process.exitcode)
    ends = importlib.import_module("tests.fuzz.decoders").run_decoders(chosen.decoders, chosen.seed)
    logger.info("decoders: %s", ends)
    sys.exit(failed)


def _quietly() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.simplefilter("ignore")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def _mutated(name: str, seconds: float, seed: int) -> None:
    _quietly()
    targets = importlib.import_module("tests.fuzz.targets")
    end, count = time.monotonic() + seconds, 0
    for data in mutations(targets.seeds(name), seed):
        try:
            targets.TARGETS[name](data)
        except Exception:
            Path(f"fuzz-{name}.bin").write_bytes(data)
            raise
        count += 1
        if time.monotonic() > end:
            break
    logger.info("%s: %d inputs", name, count)


def _guided(name: str, seconds: float, seed: int) -> None:
    _quietly()
    atheris = importlib.import_module("atheris")
    # only what is imported here is watched: so nothing of it may have been imported before
    with atheris.instrument_imports(include=_GUIDED_BY):
        targets = importlib.import_module("tests.fuzz.targets")
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    for number, data in enumerate(targets.seeds(name)):
        (folder / f"seed-{number}").write_bytes(data)
    options = [f"-max_total_time={seconds:.0f}", f"-seed={seed % 2**31}", "-timeout=30", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", os.fspath(folder)], targets.TARGETS[name])
    atheris.Fuzz()
