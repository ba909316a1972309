"""``pacs-node init``: the first configuration of a node."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from pacs_node.config import NAME, Caller, DicomDestination, DicomWebDestination, parse_destination
from pacs_node.config_listener import ListenerSettings, is_loopback, out_of_reach
from pacs_node.config_template import render_settings
from pacs_node.errors import ConfigurationError


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("pacs-node.toml"),
    show_default=True,
)
@click.option(
    "--caller",
    "callers",
    multiple=True,
    metavar="AE@ADDRESS",
    help="A sender to admit, e.g. PACS@10.1.2.3; repeatable.",
)
@click.option(
    "--destination",
    "destinations",
    multiple=True,
    metavar="URL",
    help="Where results go: dicom://AE@host:port or https://host/dicom-web; repeatable.",
)
@click.option(
    "--listen", metavar="ADDRESS", help="Where the listener is reached; 0.0.0.0: on every interface."
)
@click.option(
    "--allow-plaintext", is_flag=True, help="Patient data may cross the network unencrypted, without TLS."
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def init(
    output: Path,
    callers: tuple[str, ...],
    destinations: tuple[str, ...],
    listen: str | None,
    *,
    allow_plaintext: bool,
    force: bool,
) -> None:
    """Write a commented configuration file.

    The first destination is also the archive that is asked how many images a series has, and what never came.
    """
    if output.exists() and not force:
        raise click.ClickException(f"{output} exists; --force overwrites it")
    admitted, places = [_caller(text) for text in callers], _destinations(destinations)
    listener: dict[str, object] = {"host": listen} if listen else {}
    if allow_plaintext:
        listener["allow_plaintext"] = True
    archive = {"destination": places[0].name} if places else {}
    text = render_settings(
        callers=admitted, destinations=places, overrides={"listener": listener, "archive": archive}
    )
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{output} can't be written ({error.strerror})") from None
    click.echo(f"wrote {output}")
    for sentence in _next(
        admitted, places, listen or ListenerSettings().host, allow_plaintext=allow_plaintext
    ):
        click.echo(sentence)


def _next(
    callers: Sequence[Caller],
    places: Sequence[DicomDestination | DicomWebDestination],
    host: str,
    *,
    allow_plaintext: bool,
) -> Iterator[str]:
    """What the file doesn't say yet, or what it says that nobody asked for."""
    if not callers:
        yield "nobody may send yet: add a [[callers]] table, or see --caller"
    for sentence in out_of_reach(host, callers):
        yield f"{sentence}: see --listen and --allow-plaintext"
    if not is_loopback(host) and not allow_plaintext:
        yield "before it can start: set the three keys listener.tls_..., or listener.allow_plaintext"
    if places:
        yield f"{places[0].name} is asked how many images a series has and what never came: see [archive]"
    else:
        yield "results go nowhere yet: add a [[destinations]] table, or see --destination"
    yield "nobody can log in to the page yet: pacs-node users add NAME --role administrator"


def _caller(text: str) -> Caller:
    ae_title, _, address = text.partition("@")
    try:
        return Caller(ae_title=ae_title, address=address)
    except ValueError:
        raise ConfigurationError(
            f"--caller {text}: write AE@ADDRESS, e.g. PACS@10.1.2.3 or PACS@10.1.2.0/24"
        ) from None


def _destinations(urls: Sequence[str]) -> list[DicomDestination | DicomWebDestination]:
    """Named by their AE titles, or numbered where that is no name or is taken."""
    places: list[DicomDestination | DicomWebDestination] = []
    for number, url in enumerate(urls, 1):
        place = parse_destination(url, number)
        title = place.ae_title.lower() if isinstance(place, DicomDestination) else ""
        if re.match(NAME, title) and title not in {one.name for one in places}:
            place = place.model_copy(update={"name": title})
        places.append(place)
    return places
