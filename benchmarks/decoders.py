"""Decoders against each other: CPU time of one codestream to stored values, without header, window or resize."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from corpus import LABELS, Sample
from PIL import Image
from pydicom import uid
from pydicom.encaps import get_frame
from speed import seconds

from mammoray import ljpeg

Decoder = Callable[[bytes, pydicom.Dataset], Any]


def _imagecodecs(name: str) -> Decoder:
    return lambda frame, dataset: getattr(imagecodecs, name)(frame)


def _plugin(name: str) -> Decoder:
    """A decoder of pydicom's, with what it costs to get to it; ``name`` as pydicom calls it, "" for its default."""

    def run(frame: bytes, dataset: pydicom.Dataset) -> Any:
        dataset.pixel_array_options(use_pdh=False, **({"decoding_plugin": name} if name else {}))
        dataset._pixel_array = dataset._pixel_id = None  # pydicom keeps the last result
        return dataset.pixel_array

    return run


def _pillow(frame: bytes, dataset: pydicom.Dataset) -> Any:
    shift = 16 - int(dataset.BitsStored) if int(dataset.BitsStored) > 8 else 0  # It widens 9 to 15 bits to 16.
    return np.asarray(Image.open(BytesIO(frame))) >> shift


def _rle_planes(frame: bytes, dataset: pydicom.Dataset) -> Any:
    """PackBits for each byte plane (PS3.5 G.5), the planes interleaved by NumPy."""
    count, *starts = np.frombuffer(frame, "<u4", 16).tolist()
    ends = [*starts[1:count], len(frame)]
    size = dataset.Rows * dataset.Columns
    out = np.empty((size, count), np.uint8)
    for plane, (start, end) in enumerate(zip(starts[:count], ends, strict=True)):
        # The lower byte is the last plane. Segments may end in a byte of padding.
        out[:, count - 1 - plane] = np.frombuffer(imagecodecs.packbits_decode(frame[start:end]), np.uint8, size)
    return out.view(f"<u{count}").reshape(dataset.Rows, dataset.Columns)


def _rle_whole(frame: bytes, dataset: pydicom.Dataset) -> Any:
    dtype = np.dtype(f"<u{dataset.BitsAllocated // 8}")
    decoded = imagecodecs.dicomrle_decode(frame, dtype)
    return np.frombuffer(decoded, dtype).reshape(dataset.Rows, dataset.Columns)


def _own(frame: bytes, dataset: pydicom.Dataset) -> Any:
    return ljpeg.decode(np.frombuffer(frame, np.uint8))


def _view(frame: bytes, dataset: pydicom.Dataset) -> Any:
    return np.frombuffer(frame, f"<u{dataset.BitsAllocated // 8}").reshape(dataset.Rows, dataset.Columns).copy()


_JPEG2000: dict[str, Decoder] = {
    "imagecodecs jpeg2k": _imagecodecs("jpeg2k_decode"), "Pillow": _pillow,
    "pydicom, pillow": _plugin("pillow"), "pydicom, gdcm": _plugin("gdcm"),
}  # fmt: skip
_LOSSLESS: dict[str, Decoder] = {
    "imagecodecs jpeg8": _imagecodecs("jpeg8_decode"), "imagecodecs ljpeg": _imagecodecs("ljpeg_decode"),
    "imagecodecs jpegsof3": _imagecodecs("jpegsof3_decode"), "pydicom, gdcm": _plugin("gdcm"),
}  # fmt: skip
DECODERS: dict[str, dict[str, Decoder]] = {
    uid.JPEG2000Lossless: _JPEG2000,
    uid.JPEG2000: _JPEG2000,
    uid.HTJ2KLossless: {"imagecodecs htj2k": _imagecodecs("htj2k_decode"), "pydicom": _plugin("")},
    uid.JPEGLosslessSV1: {"mammoray ljpeg": _own, **_LOSSLESS},
    uid.JPEGLossless: _LOSSLESS,
    uid.JPEGExtended12Bit: {"imagecodecs jpeg8": _imagecodecs("jpeg8_decode"), "pydicom, gdcm": _plugin("gdcm")},
    uid.JPEGLSLossless: {"imagecodecs jpegls": _imagecodecs("jpegls_decode"), "pydicom, gdcm": _plugin("gdcm")},
    uid.RLELossless: {
        "imagecodecs dicomrle": _rle_whole, "imagecodecs packbits": _rle_planes,
        "pydicom": _plugin(""),
    },
    uid.ExplicitVRLittleEndian: {"NumPy, with a copy": _view, "pydicom": _plugin("")},
}  # fmt: skip
"""What can read each transfer syntax here; ``pydicom, x`` is its plugin."""
_LOSSY = (uid.JPEG2000, uid.JPEGExtended12Bit)


def compare(samples: Sequence[Sample], rounds: int) -> list[list[str]]:
    """Rows (syntax, decoder, CPU ms a megapixel, what came out); fastest first, the files' median."""
    rows = []
    for syntax, decoders in DECODERS.items():
        files = [s for s in samples if s.syntax == syntax]
        results = {name: _time(decoder, files, rounds) for name, decoder in decoders.items()} if files else {}
        for name, (time_ms, verdict) in sorted(results.items(), key=lambda item: item[1][0]):
            rows.append([LABELS[syntax], name, f"{time_ms:.1f}" if np.isfinite(time_ms) else "-", verdict])
    return rows


def _time(decoder: Decoder, files: Sequence[Sample], rounds: int) -> tuple[float, str]:
    times, verdicts = [], set()
    for sample in files:
        dataset = pydicom.dcmread(sample.path)
        frame = _frame(dataset)
        try:
            runs = [seconds(lambda frame=frame, dataset=dataset: decoder(frame, dataset)) for _ in range(rounds)]
        except Exception as error:  # Every decoder has its own errors.
            verdicts.add(type(error).__name__)
            continue
        times.append(1000 * statistics.median(spent for spent, _ in runs) / (frame_size(dataset) / 1e6))
        verdicts.add(_verdict(sample, np.asarray(runs[-1][1])))
    return (statistics.median(times) if times else float("inf")), ", ".join(sorted(verdicts))


def frame_size(dataset: pydicom.Dataset) -> int:
    """Pixels of the image."""
    return int(dataset.Rows) * int(dataset.Columns)


def _frame(dataset: pydicom.Dataset) -> bytes:
    syntax = dataset.file_meta.TransferSyntaxUID
    return get_frame(dataset.PixelData, 0, number_of_frames=1) if syntax.is_encapsulated else bytes(dataset.PixelData)


def _verdict(sample: Sample, found: Any) -> str:
    """Whether ``found`` is what the uncompressed file of the same image holds."""
    raw = pydicom.dcmread(sample.path.with_name(f"{sample.image}_1.dcm"))
    stored = np.frombuffer(raw.PixelData, "<u2").reshape(raw.Rows, raw.Columns)
    if found.shape != stored.shape:
        return "wrong shape"
    worst = int(np.abs(found.astype(np.int32) - stored).max())
    return "exact" if worst == 0 else f"within {worst}" if sample.syntax in _LOSSY else f"wrong by {worst}"
