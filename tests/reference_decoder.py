"""Decoding without the code under test, for every test that asks whether a DICOM file holds what it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import generate_frames


def decoded(dataset: pydicom.Dataset) -> np.ndarray[Any, Any]:
    """Check a file with a decoder that is not the one under test: imagecodecs' for what pydicom cannot read here."""
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
        codecs: dict[str, Callable[[bytes], Any]] = {
            uid.JPEG2000Lossless: imagecodecs.jpeg2k_decode,
            uid.JPEG2000: imagecodecs.jpeg2k_decode,
            uid.JPEGLosslessSV1: imagecodecs.ljpeg_decode,
            uid.JPEGLSLossless: imagecodecs.jpegls_decode,
            uid.HTJ2KLossless: lambda frame: imagecodecs.htj2k_decode(frame),  # noqa: PLW0108  not there for Python 3.10
        }
        codec = codecs.get(dataset.file_meta.TransferSyntaxUID)
        return np.asarray(codec(frame)) if codec else dataset.pixel_array
    return np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns)
