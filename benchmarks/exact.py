"""Whether lossless decoding is bit-exact: pydicom's own test files at full size, against pydicom's pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from mammoray.config import DecodeConfig
from mammoray.decode import decode
from mammoray.errors import DecodeError

LOSSY = (".50", ".51", ".81", ".91", ".203")
"""Ends of the lossy transfer syntaxes: decoders may round differently there, by :data:`ROUNDING` at most."""
ROUNDING = 1


@dataclass(slots=True)
class Exactness:
    """File names by what was found."""

    exact: list[str] = field(default_factory=list)
    rounded: list[str] = field(default_factory=list)
    """Lossy ones that differ, by one stored value at most."""
    refused: list[str] = field(default_factory=list)
    """Those that mammoray says it does not read: colour, several frames, 1 or 32 bits."""
    different: list[str] = field(default_factory=list)


def compare(folder: Path | None = None) -> Exactness:
    """Decode every file of ``folder`` (by default pydicom's test files) that pydicom can read, in both ways."""
    folder = folder or Path(pydicom.__file__).parent / "data" / "test_files"
    result = Exactness()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            dataset = pydicom.dcmread(path)
            stored = dataset.pixel_array
        except Exception:  # not a DICOM, no pixels, or one of the broken files
            continue
        _compare_file(path, str(path.relative_to(folder)), dataset, stored, result)
    return result


def _compare_file(path: Path, name: str, dataset: Any, stored: npt.NDArray[Any], result: Exactness) -> None:
    try:
        found = _stored_values(path, dataset)
    except DecodeError as error:
        result.refused.append(f"{name}: {error.expected} expected, found {error.found}")
        return
    wanted = stored.astype(np.int64)
    if "PixelPaddingValue" in dataset:  # which is shown black, whatever its value
        wanted = np.where(wanted == int(dataset.PixelPaddingValue), found, wanted)
    worst = int(np.abs(found - wanted).max())
    lossy = str(dataset.file_meta.TransferSyntaxUID).endswith(LOSSY)
    kind = result.exact if worst == 0 else result.rounded if lossy and worst <= ROUNDING else result.different
    kind.append(name if worst == 0 else f"{name}: by {worst}")


def _stored_values(path: Path, dataset: Any) -> npt.NDArray[np.int64]:
    """Stored values out of a decode of the whole range into a frame of the image's own size.

    65,535 steps hold the values of 16 bits, and a rescale is linear, so that nothing is lost on the way.
    """
    config = DecodeConfig(crop="none", orient="none", window="none", depth=16)
    for side, pixels in (("height", dataset.Rows), ("width", dataset.Columns)):
        object.__setattr__(config, side, int(pixels))  # A network wants 32 pixels; some of these files have 16.
    bits, signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation", 0))
    levels = np.rint(decode(path, config).pixels.astype(np.float64) * (2**bits - 1) / 65535).astype(np.int64)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        levels = 2**bits - 1 - levels
    return np.asarray(levels - signed * 2 ** (bits - 1))
