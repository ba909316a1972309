"""Every listed transfer syntax decodes; everything else ends in a DECODE refusal."""

from __future__ import annotations

import io
import random
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from inference import decode
from inference.decode import (
    DECODABLE_TRANSFER_SYNTAXES,
    decode_frames,
    read_file,
    self_test,
)
from inference.decode_probes import PROBES
from inference.errors import ReasonCode, UnsuitableSeriesError
from tests.ct_factory import LOSSLESS, LOSSY, NATIVE, make_ct_series, make_enhanced_ct, write_series


def write_one(ds: Dataset, tmp_path: Path) -> Path:
    return write_series([ds], tmp_path)[0]


def stored(path: Path) -> np.ndarray[Any, Any]:
    (frame,) = decode_frames(read_file(path, pixels=True))
    return frame


def refusal(path: Path) -> UnsuitableSeriesError:
    with pytest.raises(UnsuitableSeriesError) as caught:
        list(decode_frames(read_file(path, pixels=True)))
    return caught.value


def plain_values(**change: Any) -> np.ndarray[Any, Any]:
    ds = make_ct_series(1, **change)[0]
    kind = "<i2" if ds.PixelRepresentation else "<u2"
    return np.frombuffer(ds.PixelData, kind).reshape(ds.Rows, ds.Columns)


def test_every_listed_syntax_decodes_here() -> None:
    assert self_test() == {}
    assert len(DECODABLE_TRANSFER_SYNTAXES) == len(set(DECODABLE_TRANSFER_SYNTAXES)) == 16


def test_self_test_notices_a_decoder_that_gives_wrong_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROBES, RLELossless, PROBES[JPEGLSLossless])
    monkeypatch.setitem(PROBES, JPEGLossless, PROBES[JPEG2000Lossless])
    failed = self_test()
    assert set(failed) == {RLELossless, JPEGLossless}
    monkeypatch.setattr(decode, "_ramp", lambda _bits: np.zeros((16, 16), np.int32))
    assert "wrong values" in self_test()[JPEGLosslessSV1]


@pytest.mark.parametrize("syntax", [*NATIVE, *LOSSLESS])
@pytest.mark.parametrize(("signed", "bits"), [(True, 16), (False, 12), (True, 13)])
def test_lossless_syntaxes_give_the_stored_values(
    syntax: str, signed: bool, bits: int, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"signed": signed, "bits_stored": bits, "intercept": 0.0 if signed else -1024.0}
    path = write_one(make_ct_series(1, transfer_syntax=syntax, **how)[0], tmp_path)
    np.testing.assert_array_equal(stored(path), plain_values(**how))


@pytest.mark.parametrize("syntax", LOSSY)
def test_lossy_syntaxes_are_near(syntax: str, tmp_path: Path) -> None:
    how: dict[str, Any] = {"signed": False, "bits_stored": 12}
    path = write_one(make_ct_series(1, transfer_syntax=syntax, **how)[0], tmp_path)
    off = np.abs(stored(path).astype(int) - plain_values(**how))
    assert 0 < off.max() < 60
    assert off.mean() < 5


@pytest.mark.parametrize(
    ("allocated", "bits", "high", "signed", "raw", "value"),
    [
        (16, 12, 11, 0, 0xF123, 0x123),  # an overlay in the unused bits
        (16, 12, 15, 0, 0x1234, 0x123),  # values in the upper bits
        (16, 12, 11, 1, 0x0FFF, -1),
        (16, 12, 15, 1, 0xFFF0, -1),
        (16, 16, 15, 1, 0xFC18, -1000),
        (16, 16, 15, 0, 0xFC18, 64536),
        (8, 8, 7, 0, 0xC8, 200),
        (8, 6, 5, 0, 0xC8, 8),
    ],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_stored_bits_are_cut_out_and_sign_extended(
    syntax: str, allocated: int, bits: int, high: int, signed: int, raw: int, value: int, tmp_path: Path
) -> None:
    ds = make_ct_series(1, matrix=4)[0]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = allocated, bits, high, signed
    ds.PixelData = np.full((4, 4), raw, f"<u{allocated // 8}").tobytes()
    if syntax == RLELossless:
        ds.compress(syntax, generate_instance_uid=False)
    frame = stored(write_one(ds, tmp_path))
    assert frame.shape == (4, 4)
    assert set(frame.ravel().tolist()) == {value}


def test_multiframe_comes_frame_by_frame(tmp_path: Path) -> None:
    singles = make_ct_series(5)
    path = write_one(make_enhanced_ct(singles), tmp_path)
    frames = list(decode_frames(read_file(path, pixels=True)))
    assert len(frames) == 5
    for frame, single in zip(frames, singles, strict=True):
        assert frame.tobytes() == single.PixelData


@pytest.mark.parametrize("syntax", [*LOSSLESS, *LOSSY])
@pytest.mark.parametrize("keep", [0.5, 0.98])
def test_truncated_frames_are_refused_not_filled_with_grey(syntax: str, keep: float, tmp_path: Path) -> None:
    ds = make_ct_series(1, transfer_syntax=syntax)[0]
    (frame,) = generate_frames(ds.PixelData, number_of_frames=1)
    ds.PixelData = encapsulate([frame[: int(len(frame) * keep)]])
    reason = refusal(write_one(ds, tmp_path))
    assert reason.code == ReasonCode.DECODE
    assert "PHANTOM" not in reason.sentence.upper()


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1, JPEGExtended12Bit])
def test_frame_of_another_size_than_the_header_is_refused(syntax: str, tmp_path: Path) -> None:
    ds = make_ct_series(1, transfer_syntax=syntax, matrix=128)[0]
    ds.Rows = 64
    reason = refusal(write_one(ds, tmp_path))
    assert (reason.code, "(128, 128, 1)" in reason.sentence) == (ReasonCode.DECODE, True), reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"BitsAllocated": 32}, "32 bits allocated"),
        ({"BitsStored": 17}, "17 stored"),
        ({"HighBit": 3}, "high bit"),
        ({"SamplesPerPixel": 3}, "monochrome"),
        ({"Rows": 0}, "size"),
        ({"Rows": 65535, "Columns": 65535}, "size"),
        ({"Rows": 128}, "can't be decoded"),
        ({"NumberOfFrames": 2}, "can't be decoded"),
        ({"PixelRepresentation": None}, "can't be decoded"),
        ({"PixelData": None}, "no pixel data"),
    ],
)
def test_headers_that_do_not_fit_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    ds = make_ct_series(1)[0]
    for keyword, value in change.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    reason = refusal(write_one(ds, tmp_path))
    assert (reason.code, words in reason.sentence) == (ReasonCode.DECODE, True), reason


def test_unlisted_transfer_syntax_is_refused_by_name(tmp_path: Path) -> None:
    ds = make_ct_series(1, transfer_syntax=JPEG2000Lossless)[0]
    ds.file_meta.TransferSyntaxUID = MPEG2MPML
    reason = refusal(write_one(ds, tmp_path))
    assert (reason.code, "MPEG2" in reason.sentence) == (ReasonCode.DECODE, True)


def deflated(inflated: bytes) -> bytes:
    """A deflated file whose data set is `inflated`."""
    ds = make_ct_series(1)[0]
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = io.BytesIO()
    dcmwrite(whole, ds, enforce_file_format=True)
    start = 132 + 12 + dcmread(io.BytesIO(whole.getvalue())).file_meta.FileMetaInformationGroupLength
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return whole.getvalue()[:start] + packer.compress(inflated) + packer.flush()


def test_deflate_bomb_is_stopped_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_INFLATED_BYTES", 2**20)
    bomb = tmp_path / "bomb.dcm"
    bomb.write_bytes(deflated(bytes(2**26)))
    assert bomb.stat().st_size < 2**17
    for pixels in (False, True):
        with pytest.raises(UnsuitableSeriesError, match="inflates to more than 1048576 bytes") as caught:
            read_file(bomb, pixels=pixels)
        assert caught.value.code == ReasonCode.DECODE


def test_truncated_deflate_is_refused(tmp_path: Path) -> None:
    whole = write_one(make_ct_series(1, transfer_syntax=DeflatedExplicitVRLittleEndian)[0], tmp_path)
    whole.write_bytes(whole.read_bytes()[:-200])
    assert "too early" in refusal(whole).sentence


def test_what_is_not_dicom_is_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / "readme.txt"
    for content in (b"", b"hello", bytes(200), random.Random(3).randbytes(5000)):
        path.write_bytes(content)
        assert refusal(path).code == ReasonCode.NOT_AN_IMAGE
    assert refusal(tmp_path / "missing.dcm").code == ReasonCode.DECODE
    assert refusal(tmp_path).code == ReasonCode.DECODE


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("syntax", [*NATIVE, *LOSSLESS, *LOSSY])
def test_mutated_files_end_in_frames_or_a_refusal(syntax: str, tmp_path: Path) -> None:
    whole = write_one(make_ct_series(1, transfer_syntax=syntax)[0], tmp_path).read_bytes()
    dice, path, codes = random.Random(syntax), tmp_path / "mutated.dcm", set()
    for _ in range(40):
        content = bytearray(whole[: dice.randrange(132, len(whole))] if dice.random() < 0.3 else whole)
        for _ in range(dice.choice([1, 3, 20])):
            content[dice.randrange(132, len(content))] = dice.randrange(256)
        path.write_bytes(content)
        try:
            ds = read_file(path, pixels=True)
            codes.add(str({frame.shape for frame in decode_frames(ds)}))
        except UnsuitableSeriesError as reason:
            codes.add(reason.code)
    assert ReasonCode.DECODE in codes


@pytest.mark.peer("dcmcjpeg")
@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize(("signed", "bits"), [(False, 12), (True, 16)])
def test_every_predictor_of_jpeg_lossless_by_dcmtk(
    predictor: int, signed: bool, bits: int, tmp_path: Path
) -> None:
    plain = write_one(make_ct_series(1, signed=signed, bits_stored=bits)[0], tmp_path)
    packed = tmp_path / "packed.dcm"
    command = ["dcmcjpeg", "+el", "+sv", str(predictor), str(plain), str(packed)]
    subprocess.run(command, check=True, timeout=60)
    assert read_file(packed, pixels=False).file_meta.TransferSyntaxUID == JPEGLossless
    np.testing.assert_array_equal(stored(packed), stored(plain))


@pytest.mark.shared_data
def test_one_real_ct_in_fifteen_syntaxes(shared_data: Path) -> None:
    """Same image from another toolkit's encoders: lossless equal, lossy near in HU, two syntaxes refused."""
    folder = shared_data / "dicom" / "cornerstone3D" / "testImages"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder.name} in the collection")
    plain = stored(folder / "CTImage.dcm").astype(float) - 1024
    # Worst and mean difference in HU of the lossy ones; 8 bit baseline has steps of 32 HU.
    lossy = {"4.91": (5, 1), "4.81": (1, 1), "4.51": (40, 5), "4.50": (70, 25)}
    seen = set()
    for path in sorted(folder.glob("*.dcm")):
        name = path.name.removesuffix(".dcm").rpartition("1.2.840.10008.1.2")[2].lstrip(".")
        if name in ("4.53", "4.55"):
            assert "isn't supported" in refusal(path).sentence
            continue
        ds = read_file(path, pixels=True)
        (frame,) = decode_frames(ds)
        off = np.abs(frame * float(ds.RescaleSlope) + float(ds.RescaleIntercept) - plain)
        worst, mean = lossy.get(name, (0, 0))
        assert (off.max() <= worst, off.mean() <= mean) == (True, True), (name, off.max(), off.mean())
        seen.add(str(ds.file_meta.TransferSyntaxUID))
    assert len(seen) == 13
    assert seen <= set(DECODABLE_TRANSFER_SYNTAXES)
