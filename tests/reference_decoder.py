"""Decoding without the code under test, for every test that asks whether a DICOM file holds what it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import generate_frames


def codestream(dataset: pydicom.Dataset) -> bytes:
    """The one frame of an encapsulated image."""
    return bytes(next(generate_frames(dataset.PixelData, number_of_frames=1)))


def decoded(dataset: pydicom.Dataset) -> np.ndarray[Any, Any]:
    """Stored values by a decoder that is not the one under test: imagecodecs' for what pydicom cannot read here."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        kind = "i" if dataset.PixelRepresentation else "u"
        dtype = f"{'<' if syntax.is_little_endian else '>'}{kind}{dataset.BitsAllocated // 8}"
        size = dataset.Rows * dataset.Columns
        return np.frombuffer(dataset.PixelData, dtype, size).reshape(dataset.Rows, dataset.Columns)
    codecs: dict[str, Callable[[bytes], Any]] = {
        uid.JPEGBaseline8Bit: imagecodecs.jpeg8_decode,
        uid.JPEGExtended12Bit: imagecodecs.jpeg8_decode,
        uid.JPEG2000Lossless: imagecodecs.jpeg2k_decode,
        uid.JPEG2000: imagecodecs.jpeg2k_decode,
        uid.JPEGLossless: imagecodecs.jpegsof3_decode,
        uid.JPEGLosslessSV1: imagecodecs.ljpeg_decode,
        uid.JPEGLSLossless: imagecodecs.jpegls_decode,
        uid.JPEGLSNearLossless: imagecodecs.jpegls_decode,
        **dict.fromkeys(
            (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K),
            lambda frame: imagecodecs.htj2k_decode(frame),  # noqa: PLW0108  not there for Python 3.10
        ),
    }
    codec = codecs.get(syntax)
    stored = np.asarray(codec(codestream(dataset))) if codec else dataset.pixel_array
    if not dataset.PixelRepresentation or stored.dtype.kind == "i":
        return stored
    bits = int(dataset.BitsStored)  # A codec without a sign hands over two's complement of the bits stored.
    return np.asarray((stored.astype(np.int32) ^ 1 << bits - 1) - (1 << bits - 1))
