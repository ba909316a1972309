"""The study that is looked at: a synthetic chest of known truth, or a given CT, analysed by the node."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from conformance.viewer.study import Study, read_study
from inference.phantom import (
    Attachment,
    Margin,
    NoduleSpec,
    Phantom,
    make_phantom,
    write_phantom,
)
from inference.types import Attenuation

_SHAPE, _SPACING_MM = (90, 256, 256), (3.0, 1.35, 1.35)
_NODULES = (
    NoduleSpec(18.0, margin=Margin.SPICULATED),
    NoduleSpec(15.0, Attenuation.PART_SOLID),
    NoduleSpec(14.0, margin=Margin.LOBULATED),
    NoduleSpec(12.0, attachment=Attachment.JUXTAPLEURAL),
    NoduleSpec(10.0),
)
_SEED = 4
_DRAWN_FROM_MM = 9.0


class AnalysisFailedError(Exception):
    """The node made no SEG and SR; the text has the end of what it said."""


@dataclass(frozen=True)
class Source:
    """Files of a study: CT images, and the node's results on them."""

    ct: tuple[Path, ...]
    seg: Path
    sr: Path

    def read(self) -> Study:
        """What ought to be seen."""
        return read_study(self.ct, self.seg, self.sr)


def viewer_phantom() -> Phantom:
    """A chest with nodules on both sides; nothing in it is symmetric."""
    return make_phantom(_SEED, _SHAPE, _SPACING_MM, _NODULES)


def analyse(ct: Path, out: Path, *, options: Sequence[str] = ()) -> Source:
    """Let the node analyse a folder; it may have several series, of which the node takes one.

    Parameters
    ----------
    options
        More words for ``pacs-node analyze``.

    Raises
    ------
    AnalysisFailedError
        It failed, or found nothing.
    """
    command = [sys.executable, "-m", "pacs_node.cli", "analyze", str(ct), "--out", str(out), *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own verb
    seg, sr = out / "seg.dcm", out / "sr.dcm"
    if ran.returncode != 0 or not seg.exists() or not sr.exists():
        raise AnalysisFailedError(
            f"pacs-node analyze ended with {ran.returncode}: {ran.stdout[-800:]}{ran.stderr[-800:]}"
        )
    return Source(analysed_images(ct, seg), seg, sr)


def analysed_images(ct: Path, seg: Path) -> tuple[Path, ...]:
    """Images of the series that a SEG refers to, among the files of a folder and its folders."""
    series = dcmread(seg, stop_before_pixels=True).ReferencedSeriesSequence[0].SeriesInstanceUID
    found = []
    for path in sorted(path for path in ct.rglob("*") if path.is_file()):
        try:
            header = dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
        except InvalidDicomError:
            continue
        if header.get("SeriesInstanceUID") == series:
            found.append(path)
    return tuple(found)


def analyse_phantom(phantom: Phantom, directory: Path, *, options: Sequence[str] = ()) -> Source:
    """Write the phantom into a folder and let the node analyse it."""
    write_phantom(phantom, directory / "ct")
    return analyse(directory / "ct", directory / "result", options=options)


def compare_with_drawing(study: Study, phantom: Phantom) -> int:
    """Give each nodule of a study what was drawn there; the number of nodules that got any.

    Small drawn nodules and the thin ends of large ones are left out.
    """
    matched = 0
    voxels = {nodule.label: nodule.diameter_mm for nodule in phantom.nodules}
    for nodule in study.nodules:
        labels = [phantom.truth[study.index(uid)][mask] for uid, mask in nodule.masks.items()]
        label = int(np.bincount(np.concatenate(labels)).argmax())
        if voxels.get(label, 0.0) < _DRAWN_FROM_MM:
            continue
        drawn = phantom.truth == label
        areas = drawn.sum(axis=(1, 2))
        for number in np.nonzero(areas > 0.5 * areas.max())[0]:
            nodule.drawn[study.slices[number].sop_uid] = drawn[number]
        matched += 1
    return matched
