"""Strips of LIDC-IDRI nodules: the three files, the split by patient, readers and consensus."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.datasets.lidc_crops import RATINGS, Split, read_crops, split_of


def _write(folder: Path, *, drop_mask: bool = False, drop_strip: bool = False) -> tuple[Path, Path, Path]:
    strip = np.zeros((2, 96, 96), np.uint8)
    strip[0, 40:50, 40:50] = 200
    bits = np.zeros((2, 96, 96), np.uint8)
    bits[:, 44:48, 44:48] = 0b001
    bits[0, 44:48, 44:46] |= 0b100
    images, masks, table = folder / "i.tar", folder / "m.npz", folder / "n.csv"
    content = io.BytesIO()
    Image.fromarray(strip.reshape(-1, 96)).save(content, "PNG")
    with tarfile.open(images, "w") as archive:
        member = tarfile.TarInfo("LIDC-IDRI-0010_00.png" if not drop_strip else "LIDC-IDRI-0099_00.png")
        member.size = len(content.getvalue())
        archive.addfile(member, io.BytesIO(content.getvalue()))
    keep = slice(0, 1 if drop_mask else 2)
    # written in reverse: the reader must go by the columns, not by the order
    np.savez(
        masks,
        patient=np.array(["LIDC-IDRI-0010"] * 2)[keep],
        nodule=np.zeros(2, np.int16)[keep],
        slice=np.array([1, 0], np.int16)[keep],
        mask_bits=bits[::-1][keep],
    )
    row = {"patient": "LIDC-IDRI-0010", "nodule": "0", "slices": "2", "raters_with_mask": "2"}
    row |= {"match_cost": "0.1", "n_annotations": "2", "pixel_spacing": "0.7", "slice_thickness": "2.5"}
    row |= {f"{name}_median": "3.0" for name in RATINGS}
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, row)
        writer.writeheader()
        writer.writerow(row)
    return images, masks, table


def test_a_collection_is_read(tmp_path: Path) -> None:
    (crop,) = read_crops(*_write(tmp_path))
    assert crop.name == "LIDC-IDRI-0010_00"
    assert crop.image.shape == crop.mask_bits.shape == (2, 96, 96)
    assert crop.image[0, 45, 45] == 200
    assert crop.image[1].max() == 0
    assert crop.readers == 2
    assert crop.spacing_mm == (2.5, 0.7, 0.7)
    assert crop.is_trusted
    assert crop.ratings["malignancy"] == 3.0


def test_the_consensus_is_what_half_of_the_readers_drew(tmp_path: Path) -> None:
    (crop,) = read_crops(*_write(tmp_path))
    assert crop.reader_masks().shape == (2, 2, 96, 96)
    agreement = crop.agreement()
    assert agreement[0, 45, 45] == 1.0
    assert agreement[0, 45, 47] == 0.5
    assert int(crop.consensus().sum()) == 32


@pytest.mark.parametrize("fault", ["drop_mask", "drop_strip"])
def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, fault: str) -> None:
    with pytest.raises(ValueError, match="LIDC-IDRI-0010_00"):
        read_crops(*_write(tmp_path, **{fault: True}))


@pytest.mark.parametrize(
    ("number", "split"),
    [
        (3, Split.HIDDEN),
        (8, Split.HIDDEN),
        (10, Split.TEST),
        (5, Split.VAL),
        (1, Split.TRAIN),
        (1012, Split.TRAIN),
    ],
)
def test_the_split_goes_by_patient(number: int, split: Split) -> None:
    assert split_of(f"LIDC-IDRI-{number:04d}") is split
