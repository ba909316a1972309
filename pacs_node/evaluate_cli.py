"""``pacs-node evaluate``: score the models on public formats or on a manifest of one's own."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from inference.errors import InferenceError
from inference.registry import DEFAULT_PROFILE
from pacs_node import logs

if TYPE_CHECKING:
    from inference.evaluate.report import Options, Report
    from inference.registry import Pipeline

# Whatever is imported inside the functions below loads torch, scikit-learn or matplotlib.

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)
_NEW_FOLDER = click.Path(path_type=Path, file_okay=False)
_SPLITS = ("all", "train", "val", "test", "hidden")


class _Evaluations(click.Group):
    """Verbs whose expected failures are one line, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except (InferenceError, ValueError) as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'a file'}: {error.strerror or error}") from None


@click.group(cls=_Evaluations)
def evaluate() -> None:
    """Measure the models: report.json, report.md and plots with 95 % intervals.

    Formats and definitions: docs/evaluation.md.
    """


@dataclass(frozen=True, slots=True)
class _Asked:
    """What every verb takes."""

    out: Path
    profile: str
    device: str
    resamples: int | None
    seed: int | None


def _common(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that every verb takes; it gets them as its first argument."""

    @wraps(command)
    def run(
        *, out: Path, profile: str, device: str, resamples: int | None, seed: int | None, **own: Any
    ) -> None:
        command(_Asked(out, profile, device, resamples, seed), **own)

    for option in (
        click.option("--seed", type=int, default=None, help="Of the bootstrap and of all that is drawn."),
        click.option("--resamples", type=click.IntRange(0), default=None, help="Of the bootstrap."),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
        click.option("--profile", default=DEFAULT_PROFILE, show_default=True, help="Model cards to use."),
        click.option(
            "--out", type=_NEW_FOLDER, required=True, help="Folder for the report; made if missing."
        ),
    ):
        run = option(run)
    return run


def _measure(asked: _Asked, measure: Callable[[Options], Report]) -> None:
    """Run an evaluation with a bar on the console, write its report and say what came out."""
    from inference.evaluate.metrics import RESAMPLES, SEED  # noqa: PLC0415 - see above
    from inference.evaluate.report import Options, write  # noqa: PLC0415 - see above

    logs.silence_libraries()
    asked.out.mkdir(parents=True, exist_ok=True)
    console = Console(soft_wrap=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("reading", total=None)
        report = measure(
            Options(
                out=asked.out,
                command=shlex.join(["pacs-node", *sys.argv[1:]]),
                device=asked.device,
                resamples=RESAMPLES if asked.resamples is None else asked.resamples,
                seed=SEED if asked.seed is None else asked.seed,
                progress=lambda what, done, total: progress.update(
                    task, description=what, completed=done, total=total
                ),
            )
        )
    in_json, in_words = write(report, asked.out)
    for target in report.targets:
        word = {True: "met", False: "not met", None: "not defined"}[target.met]
        limit = f"{target.relation} {target.limit:g}"
        console.print(f"{target.name}: {target.text()}, target {limit}: {word}", markup=False)
    console.print("Research use only, not for primary diagnosis.")
    console.print(f"{in_words}\n{in_json}", markup=False)


def _pipeline(profile: str) -> Pipeline:
    from inference.registry import load_pipeline  # noqa: PLC0415 - see above

    return load_pipeline(profile)


_STRIPS = (
    click.option("--table", type=_FILE, required=True, help="slices_nodules.csv"),
    click.option("--masks", type=_FILE, required=True, help="slices_masks.npz"),
    click.option("--images", type=_FILE, required=True, help="slices_images.tar"),
)


def _strips(command: Callable[..., None]) -> Callable[..., None]:
    """The three files of a collection of nodule strips."""
    for option in _STRIPS:
        command = option(command)
    return command


@evaluate.command("lidc-crops")
@_strips
@click.option(
    "--split", type=click.Choice(_SPLITS), default="all", show_default=True, help="By patient number."
)
@click.option(
    "--limit", type=click.IntRange(1), default=None, help="At most so many nodules, drawn by the seed."
)
@_common
def lidc_crops(
    asked: _Asked, *, images: Path, masks: Path, table: Path, split: str, limit: int | None
) -> None:
    """Segmentation by text, malignancy and sentence pairs on LIDC-IDRI nodule strips."""
    from inference.evaluate.crop_models import load_crop_models  # noqa: PLC0415 - see above
    from inference.evaluate.lidc_run import Collection, evaluate  # noqa: PLC0415 - see above

    models = load_crop_models(asked.profile, asked.device)
    collection = Collection(images, masks, table, split, limit)
    _measure(asked, lambda options: evaluate(collection, models, options))


@evaluate.command("cases")
@click.option("--manifest", type=_FILE, required=True, help="JSON or CSV: series and their lesions.")
@_common
def cases(asked: _Asked, *, manifest: Path) -> None:
    """Run the whole pipeline on DICOM series with known lesions: found, false positives, time, memory."""
    from inference.evaluate.cases import evaluate  # noqa: PLC0415 - see above

    _measure(asked, lambda options: evaluate(manifest, options, profile=asked.profile))


@evaluate.command("luna16")
@click.option("--images", type=_FOLDER, required=True, help="Folder with the .mhd files, e.g. of one subset.")
@click.option("--annotations", type=_FILE, required=True, help="annotations.csv")
@click.option("--excluded", type=_FILE, default=None, help="annotations_excluded.csv")
@click.option("--series", type=_FILE, default=None, help="seriesuids.csv; by default all that are found.")
@_common
def luna16(
    asked: _Asked, *, images: Path, annotations: Path, excluded: Path | None, series: Path | None
) -> None:
    """FROC by the rules of LUNA16 on MetaImage scans."""
    from inference.evaluate.luna16 import Luna16, evaluate  # noqa: PLC0415 - see above
    from inference.evaluate.scan_marks import marker  # noqa: PLC0415 - see above

    pipeline = _pipeline(asked.profile)
    mark = marker(pipeline, device=asked.device)
    data = Luna16(images, annotations, excluded, series)
    _measure(asked, lambda options: evaluate(data, pipeline, mark, options))


@evaluate.command("phantom")
@click.option("--cases", "count", type=click.IntRange(1), default=20, show_default=True)
@click.option("--first-seed", type=int, default=1000, show_default=True)
@_common
def phantom(asked: _Asked, *, count: int, first_seed: int) -> None:
    """Detection and size on synthetic chests with nodules of known truth."""
    from inference.evaluate.phantom import evaluate  # noqa: PLC0415 - see above

    pipeline = _pipeline(asked.profile)
    _measure(asked, lambda options: evaluate(pipeline, options, cases=count, first_seed=first_seed))


@evaluate.command("inserted")
@_strips
@click.option(
    "--split", type=click.Choice(_SPLITS), default="test", show_default=True, help="Of the nodules."
)
@click.option("--manifest", type=_FILE, default=None, help="Backgrounds: the series of a manifest of cases.")
@click.option(
    "--phantoms", type=click.IntRange(0), default=0, show_default=True, help="Backgrounds: phantoms."
)
@click.option("--cases", "count", type=click.IntRange(1), default=30, show_default=True)
@_common
def inserted(
    asked: _Asked,
    *,
    images: Path,
    masks: Path,
    table: Path,
    split: str,
    manifest: Path | None,
    phantoms: int,
    count: int,
) -> None:
    """FROC on LIDC-IDRI nodules inserted into other chests."""
    from inference.evaluate import froc  # noqa: PLC0415 - see above
    from inference.evaluate.lidc_run import Collection  # noqa: PLC0415 - see above

    if manifest is None and not phantoms:
        raise click.UsageError("name backgrounds: --manifest or --phantoms")
    pipeline = _pipeline(asked.profile)
    strips = Collection(images, masks, table, split)
    backgrounds = froc.Backgrounds(manifest, phantoms)
    _measure(asked, lambda options: froc.evaluate_strips(strips, backgrounds, count, pipeline, options))


@evaluate.command("priors")
@click.option("--phantoms", type=click.IntRange(0), default=10, show_default=True, help="Pairs of phantoms.")
@click.option("--first-seed", type=int, default=3000, show_default=True)
@click.option("--inserted", "count", type=click.IntRange(0), default=0, help="Pairs with pasted nodules.")
@click.option("--manifest", type=_FILE, default=None, help="Backgrounds: the series of a manifest of cases.")
@click.option("--table", type=_FILE, default=None, help="slices_nodules.csv")
@click.option("--masks", type=_FILE, default=None, help="slices_masks.npz")
@click.option("--images", type=_FILE, default=None, help="slices_images.tar")
@click.option(
    "--split", type=click.Choice(_SPLITS), default="test", show_default=True, help="Of the nodules."
)
@click.option("--truth-only", is_flag=True, help="Judge the comparison alone, with the true masks.")
@_common
def priors(
    asked: _Asked,
    *,
    phantoms: int,
    first_seed: int,
    count: int,
    manifest: Path | None,
    table: Path | None,
    masks: Path | None,
    images: Path | None,
    split: str,
    truth_only: bool,
) -> None:
    """Matching, change of volume and registration on pairs of examinations of known truth."""
    from inference.evaluate.froc import Backgrounds  # noqa: PLC0415 - see above
    from inference.evaluate.lidc_run import Collection  # noqa: PLC0415 - see above
    from inference.evaluate.priors import Strips, evaluate_pairs  # noqa: PLC0415 - see above

    strips = None
    if count:
        if manifest is None or table is None or masks is None or images is None:
            raise click.UsageError("pasted nodules take --manifest, --table, --masks and --images")
        strips = Strips(Collection(images, masks, table, split), Backgrounds(manifest), count)
    if not phantoms and strips is None:
        raise click.UsageError("nothing to compare: --phantoms or --inserted")
    pipeline = None if truth_only else _pipeline(asked.profile)
    seeds = range(first_seed, first_seed + phantoms)
    _measure(asked, lambda options: evaluate_pairs(seeds, strips, pipeline, options))


@evaluate.command("example-cases")
@click.option("--data", type=_FOLDER, required=True, help="Folder with ct/ and lidc/.")
@click.option("--out", type=_NEW_FOLDER, required=True)
def example_cases(*, data: Path, out: Path) -> None:
    """Unpack three public series and write a manifest of what is known of their lesions."""
    from inference.evaluate.example_cases import write_example  # noqa: PLC0415 - see above

    logs.silence_libraries()
    out.mkdir(parents=True, exist_ok=True)
    click.echo(write_example(data, out))
