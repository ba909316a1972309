"""Write a volume as a MetaImage, as LUNA16 has them."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from inference.types import Volume


def write_metaimage(
    volume: Volume,
    path: Path,
    *,
    compressed: bool = False,
    local: bool = False,
    msb: bool = False,
    turned: bool = False,
    element: str = "MET_SHORT",
) -> Path:
    """Write header and voxels; `turned` runs both axes of the slices backwards, as some LUNA16 scans do."""
    array, affine = volume.array, volume.affine_index_to_lps
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    origin = affine[:3, 3]
    if turned:
        array = array[:, ::-1, ::-1]
        origin = volume.index_to_lps((0.0, array.shape[1] - 1.0, array.shape[2] - 1.0))
        directions = directions * [1, -1, -1]
    kind = {"MET_SHORT": "i2", "MET_FLOAT": "f4", "MET_USHORT": "u2"}[element]
    data = array.astype((">" if msb else "<") + kind).tobytes()
    data = zlib.compress(data) if compressed else data
    raw = path.with_suffix(".zraw" if compressed else ".raw")
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": str(msb),
        "CompressedData": str(compressed),
        "TransformMatrix": " ".join(f"{v + 0.0:g}" for v in directions[:, ::-1].T.ravel()),
        "Offset": " ".join(f"{v:.6f}" for v in origin),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",
        "ElementSpacing": " ".join(f"{v:.6f}" for v in volume.spacing_mm[::-1]),
        "DimSize": " ".join(str(n) for n in array.shape[::-1]),
        "ElementType": element,
        "ElementDataFile": "LOCAL" if local else raw.name,
    }
    header = "".join(f"{key} = {value}\n" for key, value in fields.items()).encode("ascii")
    path.write_bytes(header + data if local else header)
    if not local:
        raw.write_bytes(data)
    return path
