"""``pacs-node models``: which models there are, whether they are intact, how a site gets published ones."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from enum import IntEnum
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from inference.catalogue import find
from inference.download import Fault, PullError
from inference.errors import ModelUnavailableError
from inference.inventory import Model, State, card_tables, inventory, package_cards
from inference.pull import Pulled, pull, take
from inference.registry import DEFAULT_PROFILE, load_pipeline


class Exit(IntEnum):
    """Exit status of the verbs; 2 is wrong usage."""

    GOOD = 0
    MISSING = 3
    WRONG_FILE = 4
    NETWORK = 5
    DISK = 6
    BUSY = 7


_FAULTS = {
    Fault.HASH_UNKNOWN: Exit.MISSING,
    Fault.MISSING: Exit.MISSING,
    Fault.WRONG_FILE: Exit.WRONG_FILE,
    Fault.NETWORK: Exit.NETWORK,
    Fault.DISK: Exit.DISK,
    Fault.BUSY: Exit.BUSY,
}

_STATUS = """
\b
Exit status:
  0  good
  2  wrong usage
  3  something is missing: a file, or a sha256 that only you can give
  4  a file is not the right one, is damaged, or was refused
  5  network
  6  disk
  7  another process is at it
"""

_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("pacs-node-models"),
    show_default=True,
    envvar="PACS_NODE_MODELS",
    show_envvar=True,
    help="The models folder.",
)


def _stop(status: Exit, sentence: str) -> NoReturn:
    click.echo(f"Error: {sentence}", err=True)
    sys.exit(status)


@click.group(epilog="Research use only, not for primary diagnosis.")
def models() -> None:
    """List, verify, fetch and convert models.

    Reference models are in the package. The published checkpoints of the profile "full" are fetched by pull,
    or brought along in a folder, and made into safetensors by convert; the node itself reads nothing else.
    """


@models.command("list", epilog=_STATUS)
@_folder
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_command(folder: Path, *, as_json: bool) -> None:
    """List all models: of the package, of the models folder, and what can be fetched besides.

    Whether a file is there is looked at, not whether it is the right one: see verify.
    """
    try:
        found = inventory(folder)
    except ModelUnavailableError as error:
        _stop(Exit.WRONG_FILE, str(error))
    if as_json:
        click.echo(json.dumps([asdict(model) for model in found], indent=2))
        return
    for model in found:
        _show(model)
    click.echo("Research use only, not for primary diagnosis.")


def _show(model: Model) -> None:
    """One model in a few lines; whole hashes, so that they can be copied."""
    click.echo(f"{model.name}: {model.state}")
    click.echo(f"  {model.title}; task {model.task}; profile {model.profile}; licence {model.licence}")
    if model.file is not None:
        size = "size unknown" if model.size is None else f"{model.size / 1e6:.1f} MB"
        click.echo(f"  {model.file}, {size}, sha256 {model.sha256 or 'unknown'}")
    if not model.performance:
        click.echo("  performance: nothing was measured here")
    for line in model.performance:
        click.echo(f"  performance: {line}")
    click.echo("")


@models.command(epilog=_STATUS)
@_folder
@click.argument("names", nargs=-1, metavar="[NAME]...")
def verify(folder: Path, names: tuple[str, ...]) -> None:
    """Hash the weights of models again and load them; all that have a card, or those named."""
    tables = []
    try:
        for place in (package_cards(), folder):
            if place.is_dir():
                tables += [(name, table, place) for name, table in card_tables(place)]
    except ModelUnavailableError as error:
        _stop(Exit.WRONG_FILE, str(error))
    known = {name.removesuffix(".toml") for name, _, _ in tables}
    unknown = sorted(set(names) - known)
    if unknown:
        _stop(Exit.MISSING, f"no card: {', '.join(unknown)}; cards: {', '.join(sorted(known))}")
    from inference.full import verify_card  # noqa: PLC0415 - loads torch; the other verbs don't need it

    states = {model.name: model.state for model in inventory(folder)}
    status = Exit.GOOD
    for name, table, place in tables:
        short = name.removesuffix(".toml")
        if names and short not in names:
            continue
        try:
            click.echo(f"{short}: ok, {verify_card(name, table, place)}")
        except ModelUnavailableError as error:
            status = max(status, Exit.MISSING if states[short] == State.MISSING else Exit.WRONG_FILE)
            click.echo(f"{short}: FAILED, {error}")
    if not names:
        status = max(status, _load_profile())
    sys.exit(status)


def _load_profile() -> Exit:
    """Fill the networks of the profile that a node runs by default: right hashes could still not fit."""
    from inference.stack import load_stack  # noqa: PLC0415 - loads torch; the other verbs don't need it

    try:
        load_stack(load_pipeline())
    except ModelUnavailableError as error:
        click.echo(f"profile {DEFAULT_PROFILE}: FAILED, {error}")
        return Exit.WRONG_FILE
    click.echo(f"profile {DEFAULT_PROFILE}: ok, its weights fit its networks")
    return Exit.GOOD


@models.command("pull", epilog=_STATUS)
@_folder
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--sha256", default=None, help="That the file must have, where the catalogue knows none.")
@click.option(
    "--trust-on-first-use",
    is_flag=True,
    help="Where nobody knows the sha256, take what comes and hold later files against it.",
)
@click.option("--url", default=None, help="A mirror instead of the publisher.")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, exists=True),
    default=None,
    help="A folder with the published files, or one of them: no network is used.",
)
def pull_command(
    folder: Path,
    names: tuple[str, ...],
    *,
    sha256: str | None,
    trust_on_first_use: bool,
    url: str | None,
    source: Path | None,
) -> None:
    """Fetch published checkpoints into the models folder.

    A broken download goes on where it stopped. Nothing is unpacked or executed; a file whose sha256 is not
    the expected one never gets its name. Proxies: HTTPS_PROXY and NO_PROXY of the environment.
    """
    if source is not None and url is not None:
        raise click.UsageError("--from and --url exclude each other")
    if len(names) > 1 and (sha256 or url or (source is not None and source.is_file())):
        raise click.UsageError("--sha256, --url and --from FILE are of one model: name one")
    for name in names:
        try:
            checkpoint = find(name)
        except ModelUnavailableError as error:
            raise click.UsageError(str(error)) from None
        try:
            with _progress() as bar:
                task = bar.add_task(checkpoint.file, total=checkpoint.size)

                def tell(so_far: int, total: int | None) -> None:
                    bar.update(task, completed=so_far, total=total)  # noqa: B023 - called within this turn

                if source is None:
                    done = pull(
                        checkpoint,
                        folder,
                        sha256=sha256,
                        trust_first=trust_on_first_use,
                        url=url,
                        progress=tell,
                    )
                else:
                    done = take(
                        checkpoint,
                        source,
                        folder,
                        sha256=sha256,
                        trust_first=trust_on_first_use,
                        progress=tell,
                    )
        except PullError as error:
            _stop(_FAULTS[error.fault], str(error))
        except OSError as error:
            _stop(Exit.DISK, f"{error.filename or folder}: {error.strerror}")
        _tell(name, done, folder)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _tell(name: str, done: Pulled, folder: Path) -> None:
    click.echo(f"{name}: {folder / done.file}, {done.size} bytes, sha256 {done.sha256} ({done.trust})")
    click.echo(f"next: pacs-node models convert --folder {folder} {name}")


@models.command(epilog=_STATUS)
@_folder
@click.argument("name")
@click.option(
    "--file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=None,
    help="The published file; by default the pulled one.",
)
@click.option("--sha256", default=None, help="That the file must have, where the catalogue knows none.")
def convert(folder: Path, name: str, file: Path | None, sha256: str | None) -> None:
    """Make a published checkpoint into safetensors and a model card, offline.

    Foreign files are read as tensors only; what would execute anything is refused. Keys and shapes must be
    those of the published network.
    """
    try:
        checkpoint = find(name)
    except ModelUnavailableError as error:
        raise click.UsageError(str(error)) from None
    if file is None and not (folder / checkpoint.file).is_file():
        _stop(Exit.MISSING, f"{folder / checkpoint.file} is not there: pull {name} first, or give --file")
    from inference.convert import convert as convert_checkpoint  # noqa: PLC0415 - loads torch

    try:
        done = convert_checkpoint(checkpoint, folder, file=file, sha256=sha256)
    except (ModelUnavailableError, PullError) as error:
        _stop(Exit.WRONG_FILE, str(error))
    except OSError as error:
        _stop(Exit.DISK, f"{error.filename or folder}: {error.strerror}")
    click.echo(f"{name}: {done.weights}, {done.size} bytes, sha256 {done.sha256}")
    click.echo(
        f"card: {done.card}; float16 moved no weight by more than {done.largest_rounding:.1e} of the "
        "greatest of its tensor"
    )
