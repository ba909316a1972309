"""DICOM file to Dataset, and pixel data to stored values. Whatever goes wrong is a DECODE refusal.

Decoders: pydicom itself (native, RLE), OpenJPEG (JPEG 2000, HTJ2K), CharLS (JPEG-LS), and libjpeg-turbo
through imagecodecs (JPEG baseline, extended 12 bit, lossless), which pydicom has no plugin for. Neither gdcm
nor a GPL decoder is used.

Hostile input is bounded: deflated files are inflated up to `MAX_INFLATED_BYTES`, and a compressed frame
whose own header names another size than Rows and Columns is refused before its decoder allocates anything.
libjpeg-turbo fills the rest of a truncated frame with grey and says nothing, so a frame without its end
marker is refused here.
"""

from __future__ import annotations

import base64
import struct
import threading
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.errors import InvalidDicomError
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_file_meta_info
from pydicom.filewriter import write_file_meta_info
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from inference.decode_probes import PROBES
from inference.errors import ReasonCode, UnsuitableSeriesError
from inference.headers import MALFORMED_VALUE, number, text

DECODABLE_TRANSFER_SYNTAXES: tuple[str, ...] = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEGLSLossless,
    JPEGLosslessSV1,
    JPEGLossless,
    RLELossless,
    JPEG2000,
    HTJ2K,
    JPEGLSNearLossless,
    JPEGExtended12Bit,
    JPEGBaseline8Bit,
)
"""In order of preference for a listener: uncompressed, lossless, lossy. `self_test` proves them."""

MAX_FILE_BYTES = 2**31 - 1
MAX_INFLATED_BYTES = 2**30
MAX_FRAME_PIXELS = 2**26

_JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
_MARKED = (*_JPEG, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes)
_PLUGIN = "imagecodecs"
_plugin_lock = threading.Lock()

# Any of these comes from pydicom or a codec for a damaged or hostile file. Not a blanket `Exception`:
# KeyboardInterrupt aside, a Warning turned into an error by the caller's filter must stay visible.
MALFORMED_FILE = (
    *MALFORMED_VALUE,
    AssertionError,
    BufferError,
    EOFError,
    InvalidDicomError,
    MemoryError,
    OSError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def read_file(path: Path, *, pixels: bool) -> Dataset:
    """Read a DICOM file (PS3.10), deflated ones within `MAX_INFLATED_BYTES`.

    Parameters
    ----------
    path
        The file.
    pixels
        False stops before Pixel Data.

    Raises
    ------
    UnsuitableSeriesError
        NOT_AN_IMAGE for a file that isn't DICOM, DECODE for one that can't be read.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _refusal(f"A file is larger than {MAX_FILE_BYTES} bytes")
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                raise UnsuitableSeriesError(
                    ReasonCode.NOT_AN_IMAGE, "A file isn't a DICOM file (no prefix DICM)."
                )
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            return _read_deflated(path, meta, pixels=pixels)
        ds: Dataset = dcmread(path, stop_before_pixels=not pixels)
    except MALFORMED_FILE as error:
        raise _refusal(f"A file can't be read as DICOM ({type(error).__name__})") from error
    return ds


def decode_frames(ds: Dataset) -> Iterator[NDArray[Any]]:
    """Decode the pixel data of a monochrome image, frame by frame.

    Parameters
    ----------
    ds
        As read by `read_file`, with file meta and Pixel Data.

    Yields
    ------
    ndarray
        Stored values (before rescale), shape (rows, columns), signed or unsigned integer of 8 or 16 bits as
        Pixel Representation says. Bits Stored and High Bit are honoured (PS3.5 8.1.1).

    Raises
    ------
    UnsuitableSeriesError
        DECODE, for whatever the decoder can't do.
    """
    syntax = transfer_syntax(ds)
    count = _check_image(ds, syntax)
    options: dict[str, Any] = {"raw": True, "allow_excess_frames": False, "correct_unused_bits": False}
    if syntax in _JPEG:
        options["decoding_plugin"] = _PLUGIN
        _register_plugin()
    shape = (int(ds.Rows), int(ds.Columns))
    done = 0
    try:
        if syntax in _MARKED:
            _check_codestreams(ds, syntax, count, shape)
        for frame, _ in get_decoder(syntax).iter_array(ds, **options):
            if frame.shape != shape:
                raise _refusal(f"A decoded frame is {frame.shape}, not {shape}")
            done += 1
            yield _stored_values(frame, ds, syntax)
    except MALFORMED_FILE as error:
        raise _refusal(f"The pixel data ({syntax.name}) can't be decoded ({type(error).__name__})") from error
    if done != count:
        raise _refusal(f"The pixel data holds {done} frames, the header names {count}")


def transfer_syntax(ds: Dataset) -> UID:
    """Transfer syntax of the file, empty where the file doesn't say."""
    return UID(text(getattr(ds, "file_meta", Dataset()), "TransferSyntaxUID"))


def self_test() -> dict[str, str]:
    """Decode one known 16 x 16 image in every syntax of `DECODABLE_TRANSFER_SYNTAXES`, through a whole file.

    Compressed frames come from `inference.decode_probes`, made by other software; native and deflated ones
    are written here by pydicom. Lossless syntaxes must give exactly the known values, lossy ones within 16 of
    2300 (8 bit: within 2 of 144). Not proved here: selection values of JPEG Lossless other than 1 and 6 (a
    test proves all seven with DCMTK), and progression orders of HTJ2K other than RPCL.

    Returns
    -------
    dict
        Transfer syntax UID to a sentence, only for those that failed: empty where all is well.
    """
    failed = {}
    for uid in DECODABLE_TRANSFER_SYNTAXES:
        try:
            (frame,) = decode_frames(_parse(BytesIO(_probe_file(UID(uid)))))
        except (UnsuitableSeriesError, *MALFORMED_FILE) as error:
            failed[uid] = f"{UID(uid).name} doesn't decode here ({error})."
            continue
        eight = uid == JPEGBaseline8Bit
        lossy = uid in (JPEG2000, HTJ2K, JPEGLSNearLossless, JPEGExtended12Bit, JPEGBaseline8Bit)
        off = int(np.abs(frame.astype(np.int32) - _ramp(8 if eight else 12)).max())
        if off > (0 if not lossy else 2 if eight else 16):
            failed[uid] = f"{UID(uid).name} decodes to wrong values here (by up to {off})."
    return failed


def _parse(file: BytesIO) -> Dataset:
    """Like `read_file`, for a small file in memory."""
    ds: Dataset = dcmread(file)
    return ds


def _read_deflated(path: Path, meta: FileMetaDataset, *, pixels: bool) -> Dataset:
    """Inflate within the limit, then read as explicit little endian (PS3.5 A.5)."""
    start = 132 + 12 + int(meta.FileMetaInformationGroupLength)
    with path.open("rb") as file:
        file.seek(start)
        inflated = _inflate(file, MAX_INFLATED_BYTES)
    plain = FileMetaDataset(meta)
    plain.TransferSyntaxUID = ExplicitVRLittleEndian
    whole = DicomBytesIO()
    whole.write(bytes(128) + b"DICM")
    write_file_meta_info(whole, plain, enforce_standard=False)
    whole.write(inflated)
    del inflated
    whole.seek(0)
    ds: Dataset = dcmread(whole, stop_before_pixels=not pixels)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return ds


def _inflate(file: BinaryIO, limit: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    parts, size = [], 0
    while not inflater.eof:
        raw = inflater.unconsumed_tail or file.read(2**20)
        if not raw:
            raise _refusal("A deflated file ends too early")
        part = inflater.decompress(raw, min(2**24, limit - size + 1))
        size += len(part)
        if size > limit:
            raise _refusal(f"A deflated file inflates to more than {limit} bytes")
        parts.append(part)
    return b"".join(parts)


def _check_image(ds: Dataset, syntax: UID) -> int:
    """Refuse what isn't one monochrome image of 8 or 16 bits; return the number of frames."""
    if syntax not in DECODABLE_TRANSFER_SYNTAXES:
        name = syntax.name if syntax else "none named"
        raise _refusal(f"The transfer syntax isn't supported ({name})")
    if "PixelData" not in ds:
        raise _refusal("An image has no pixel data")
    rows, columns, count = (number(ds, k) for k in ("Rows", "Columns", "NumberOfFrames"))
    allocated, stored, high = (number(ds, k) for k in ("BitsAllocated", "BitsStored", "HighBit"))
    if number(ds, "SamplesPerPixel") != 1:
        raise _refusal("The image isn't monochrome")
    if not rows or not columns or rows * columns > MAX_FRAME_PIXELS:
        raise _refusal("The image has no size, or more than 2**26 pixels")
    if allocated not in (8, 16) or stored is None or not 1 <= stored <= allocated:
        raise _refusal(f"The image has {allocated or 0:g} bits allocated and {stored or 0:g} stored")
    if high is not None and not stored - 1 <= high < allocated:
        raise _refusal(f"The high bit is {high:g} for {stored:g} bits stored")
    return int(count or 1)


def _check_codestreams(ds: Dataset, syntax: UID, count: int, shape: tuple[int, int]) -> None:
    for frame in generate_frames(ds.PixelData, number_of_frames=count):
        if not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
            raise _refusal(f"A compressed frame ({syntax.name}) is truncated")
        size = _jpeg2000_size(frame) if syntax in JPEG2000TransferSyntaxes else _jpeg_size(frame)
        if size != (*shape, 1):
            raise _refusal(f"A compressed frame says rows, columns, samples {size}, the header {(*shape, 1)}")


def _jpeg2000_size(frame: bytes) -> tuple[int, int, int]:
    """Rows, columns, components of a JPEG 2000 codestream (ISO 15444-1 A.5.1, SIZ)."""
    at = frame.index(b"\xff\x4f\xff\x51", 0, 256) + 4
    right, down, left, up = struct.unpack_from(">4I", frame, at + 4)
    (components,) = struct.unpack_from(">H", frame, at + 36)
    return down - up, right - left, components


def _jpeg_size(frame: bytes) -> tuple[int, int, int]:
    """Rows, columns, components of a JPEG or JPEG-LS stream: its first start of frame (ITU-T T.81 B.2.2)."""
    at = 2
    while True:
        marker, length = struct.unpack_from(">HH", frame, at)
        if marker >> 8 != 0xFF:
            raise ValueError("no JPEG marker where one must be")
        if marker == 0xFFFF:
            at += 1
        elif marker == 0xFFF7 or (0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC)):
            _, rows, columns, components = struct.unpack_from(">BHHB", frame, at + 4)
            return rows, columns, components
        else:
            at += 2 + length


def _stored_values(frame: NDArray[Any], ds: Dataset, syntax: UID) -> NDArray[Any]:
    """Cut the stored bits out of the allocated ones and extend their sign."""
    if syntax in JPEG2000TransferSyntaxes or syntax in JPEGLSTransferSyntaxes:
        return frame  # pydicom has done it with the precision that the codestream names
    allocated = 8 * frame.dtype.itemsize
    stored = min(int(ds.BitsStored), allocated)
    high = int(ds.get("HighBit") or stored - 1) if syntax not in _JPEG else stored - 1
    left = max(allocated - 1 - high, 0)
    return np.asarray(np.right_shift(np.left_shift(frame, left), allocated - stored))


def _register_plugin() -> None:
    with _plugin_lock:
        for uid in _JPEG:
            decoder = get_decoder(uid)
            if _PLUGIN not in decoder.available_plugins:
                decoder.add_plugin(_PLUGIN, (__name__, "decode_jpeg"))


DECODER_DEPENDENCIES = {UID(uid): ("imagecodecs",) for uid in _JPEG}
"""Asked for by pydicom's plugin interface."""


def is_available(uid: str) -> bool:
    """Whether `decode_jpeg` can decode `uid` here; asked by pydicom's plugin interface."""
    return uid in _JPEG and bool(imagecodecs.JPEG8.available)


def decode_jpeg(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode one JPEG frame of 2 to 16 bits with libjpeg-turbo; called by pydicom as a decoding plugin.

    Parameters
    ----------
    frame
        A whole JPEG stream, processes 1, 2, 4 or 14.
    runner
        Learns how many bits the decoded samples take.

    Returns
    -------
    bytes
        Samples, little endian.
    """
    samples = imagecodecs.jpeg8_decode(frame)
    runner.set_option("bits_allocated", 8 * samples.dtype.itemsize)
    return bytes(samples.astype(samples.dtype.newbyteorder("<"), copy=False).tobytes())


def _ramp(bits: int) -> NDArray[np.int32]:
    y, x = np.mgrid[0:16, 0:16]
    ramp = (500 + 100 * x + 20 * y).astype(np.int32)
    return np.asarray(ramp if bits == 12 else ramp // 16)


def _probe_file(syntax: UID) -> bytes:
    """Write a whole file in `syntax` that shows `_ramp`."""
    bits = 8 if syntax == JPEGBaseline8Bit else 12
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, "2.25.1"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = 16
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16 if bits == 12 else 8, bits, bits - 1
    ds.PixelRepresentation = 0
    if probe := PROBES.get(HTJ2KLossless if syntax == HTJ2KLosslessRPCL else syntax):
        ds.PixelData = encapsulate([base64.b85decode(probe)])
    else:
        ds.PixelData = _ramp(12).astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
    ds["PixelData"].VR = "OB" if syntax.is_encapsulated else "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    file = BytesIO()
    dcmwrite(file, ds, enforce_file_format=True)
    return file.getvalue()


def _refusal(what: str) -> UnsuitableSeriesError:
    return UnsuitableSeriesError(ReasonCode.DECODE, f"{what}.")
