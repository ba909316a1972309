"""MetaImage (``.mhd`` with ``.raw`` or ``.zraw``, ``.mha``) to a `Volume`: what LUNA16 comes in.

A small reader of our own for uncompressed and zlib-compressed three-dimensional scalars, after the format's
documentation (itk.org/Wiki/ITK/MetaIO/Documentation). Coordinates are ITK's, which are DICOM's LPS; the rows
of ``TransformMatrix`` are the directions of the axes.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.types import SourceFrame, Volume

LEAST_HU = -1024
"""Values below, such as the -3024 outside the field of view, become air."""

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_LARGEST_VOXELS = 2**30
_LONGEST_HEADER = 1 << 16
_OBLIQUE = 0.05


class MetaImageError(ValueError):
    """The file isn't a MetaImage that this reader knows; the text says why."""


def read_metaimage(path: Path) -> Volume:
    """Read a CT.

    Parameters
    ----------
    path
        The ``.mhd`` or ``.mha`` file.

    Returns
    -------
    Volume
        HU, int16 (float32 for a float file), axial, rows along +x, columns along +y: axes that run the other
        way are turned. The series UID is the name of the file, as in LUNA16.

    Raises
    ------
    MetaImageError
        Not a three-dimensional scalar MetaImage, of another type, truncated, or not axial.
    OSError
        A file can't be read.
    """
    array, affine = read_array(path)
    # an unsigned type has no room for the least value
    array, affine = _axial(array.astype(np.int64) if array.dtype.kind == "u" else array, affine, path)
    if array.dtype.kind == "f":
        hu = np.maximum(array, LEAST_HU).astype(np.float32)
    else:
        hu = np.clip(array, LEAST_HU, np.iinfo(np.int16).max).astype(np.int16)
    name = path.stem
    frames = tuple(SourceFrame("", f"{name}.{number + 1}") for number in range(len(array)))
    return Volume(np.ascontiguousarray(hu), affine, name, name, name, frames)


def read_array(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels as stored, shape (z, y, x), and the affine from array index (z, y, x, 1) to LPS mm."""
    header, rest = _header(path)
    shape = _numbers(header, "DimSize", path, 3).astype(int)[::-1]
    if (shape < 1).any() or int(np.prod(shape, dtype=np.int64)) > _LARGEST_VOXELS:
        raise MetaImageError(f"{path.name}: DimSize {header['DimSize']} is no volume")
    kind = _TYPES.get(header.get("ElementType", ""))
    if kind is None or int(header.get("ElementNumberOfChannels", "1")) != 1:
        raise MetaImageError(
            f"{path.name}: ElementType {header.get('ElementType')} isn't known, or no scalar"
        )
    msb = _flag(header, "BinaryDataByteOrderMSB") or _flag(header, "ElementByteOrderMSB")
    dtype = np.dtype((">" if msb else "<") + kind)
    data = _voxels(header, path, rest, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    array = np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))
    return array, _affine(header, path)


def _header(path: Path) -> tuple[dict[str, str], bytes]:
    """Fields of the header, and what follows it (only ``.mha`` has something)."""
    content = path.read_bytes() if path.suffix.lower() == ".mha" else path.read_bytes()[:_LONGEST_HEADER]
    fields: dict[str, str] = {}
    position = 0
    while position < len(content) and "ElementDataFile" not in fields:
        end = content.find(b"\n", position)
        end = len(content) if end < 0 else end
        try:
            line = content[position:end].decode("ascii")
        except UnicodeDecodeError:
            break
        key, separator, value = line.partition("=")
        if not separator and line.strip():
            break
        fields[key.strip()] = value.strip()
        position = end + 1
    if "ElementDataFile" not in fields or fields.get("NDims") != "3":
        raise MetaImageError(f"{path.name} is no three-dimensional MetaImage")
    return fields, content[position:]


def _voxels(header: Mapping[str, str], path: Path, rest: bytes, size: int) -> bytes:
    """The voxels' bytes, unpacked."""
    name = header["ElementDataFile"]
    if name == "LOCAL":
        data = rest
    elif Path(name).name != name or name == "LIST" or "%" in name:
        raise MetaImageError(f"{path.name}: the voxels must be in one file beside it, not in {name}")
    else:
        data = (path.parent / name).read_bytes()
    if _flag(header, "CompressedData"):
        unpacker = zlib.decompressobj()
        try:
            data = unpacker.decompress(data, size)
        except zlib.error as error:
            raise MetaImageError(f"{path.name}: the compressed voxels are damaged: {error}") from None
    else:
        skip = int(header.get("HeaderSize", "0"))
        data = data[-size:] if skip == -1 else data[skip : skip + size]
    if len(data) != size:
        raise MetaImageError(f"{path.name}: {len(data)} bytes of voxels, not {size}")
    return data


def _affine(header: Mapping[str, str], path: Path) -> NDArray[np.float64]:
    key = next((k for k in ("TransformMatrix", "Rotation", "Orientation") if k in header), None)
    directions = np.eye(3) if key is None else _numbers(header, key, path, 9).reshape(3, 3)
    place = next((k for k in ("Offset", "Position", "Origin") if k in header), None)
    affine = np.eye(4)
    # array axes are (z, y, x), the file's x first; a row of the matrix is the direction of one axis
    affine[:3, :3] = (directions.T * _numbers(header, "ElementSpacing", path, 3))[:, ::-1]
    affine[:3, 3] = np.zeros(3) if place is None else _numbers(header, place, path, 3)
    if abs(np.linalg.det(affine)) < 1e-9:
        raise MetaImageError(f"{path.name}: spacing or directions are degenerate")
    return affine


def _numbers(header: Mapping[str, str], key: str, path: Path, count: int) -> NDArray[np.float64]:
    try:
        values = np.array([float(word) for word in header.get(key, "").split()])
    except ValueError:
        values = np.zeros(0)
    if len(values) != count or not np.isfinite(values).all():
        raise MetaImageError(f"{path.name}: {key} isn't {count} numbers")
    return values


def _flag(header: Mapping[str, str], key: str) -> bool:
    return header.get(key, "").lower() in {"true", "1", "t", "y"}


def _axial(
    array: NDArray[Any], affine: NDArray[np.float64], path: Path
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Turn in-plane axes that run along -x or -y."""
    step = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if (np.abs(np.abs(step) - np.eye(3)[:, ::-1]) > _OBLIQUE).any():
        raise MetaImageError(f"{path.name}: the slices aren't axial")
    affine = affine.copy()
    for axis, row in ((1, 1), (2, 0)):
        if step[row, axis] < 0:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
    return array, affine
