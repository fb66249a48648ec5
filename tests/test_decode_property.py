"""Decoding against pydicom's own full path, over all that a file can say about its pixels."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import encaps, pixels, uid

from mammoray import machines
from mammoray.config import DecodeConfig
from mammoray.decode import Decoded, decode
from mammoray.encoders import jpeg2000
from mammoray.machines import Encoding, Window
from mammoray.plain import replace
from tests.reference_decoder import decoded

Image = npt.NDArray[Any]
LOSSLESS = sorted(set(machines.CODECS) - set(machines.LOSSY))
READ_BY_PYDICOM = {  # Without plugins that are no dependency.
    uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian, uid.RLELossless, uid.JPEG2000Lossless,
}  # fmt: skip
EXACT = 1.5 / 65535
"""Of an image of 16 bits: its own rounding, and that of single precision."""


def smooth(shape: tuple[int, int], bits: int, signed: bool, seed: int, sigma: float = 4) -> Image:
    """Stored values that use the whole range of the bits."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random(shape), (0, 0), sigma)
    unit = (noise - noise.min()) / (noise.max() - noise.min())
    values = np.rint(unit * (2**bits - 1)).astype(np.int32)
    return np.asarray(values - 2 ** (bits - 1), np.int16) if signed else np.asarray(values, np.uint16)


def lut(entries: int, first: int, bits: int, gamma: float, order: str = "<") -> pydicom.Sequence:
    item = pydicom.Dataset()
    item.LUTDescriptor = [entries % 65536, first, bits]
    curve = np.linspace(0, 1, entries) ** gamma
    item.LUTData = np.rint(curve * (2**bits - 1)).astype(f"{order}u2").tobytes()
    item.ModalityLUTType = "US"
    return pydicom.Sequence([item])


@dataclass(frozen=True, kw_only=True)
class Case:
    """One file: what its header says, and its stored values."""

    syntax: str
    bits: int
    allocated: int
    signed: bool
    photometric: str
    modality: str
    voi: str
    shape: tuple[int, int]
    seed: int

    @property
    def attributes(self) -> dict[str, Any]:
        low = -(2 ** (self.bits - 1)) if self.signed else 0
        slope, intercept = {"rescale": (0.5, 100), "negative": (-1, 2**self.bits - 1)}.get(self.modality, (1, 0))
        found: dict[str, Any] = {"RescaleSlope": slope, "RescaleIntercept": intercept}
        order = ">" if self.syntax == uid.ExplicitVRBigEndian else "<"
        span, middle = 2**self.bits * abs(slope), (low + 2 ** (self.bits - 1)) * slope + intercept
        if self.modality == "lut":
            found = {"RescaleSlope": None, "RescaleIntercept": None, "RescaleType": None}
            found["ModalityLUTSequence"] = lut(2**self.bits, 0, 16, 0.7, order)
            span, middle = 65536, 32768
        if self.voi == "lut":
            found["VOILUTSequence"] = lut(int(span * 0.8), int(span * 0.1), 12, 1.6, order)
        elif self.voi != "none":
            function = {"several": "LINEAR"}.get(self.voi, self.voi)
            centers, widths = [middle * 1.1, middle, 1], [span * 0.6, span * 0.3, 2]
            found["VOILUTFunction"] = function
            found["WindowCenter"] = [round(c, 2) for c in centers] if self.voi == "several" else round(centers[0], 2)
            found["WindowWidth"] = [round(w, 2) for w in widths] if self.voi == "several" else round(widths[0], 2)
        return found

    def content(self) -> bytes:
        encoding = Encoding(
            transfer_syntax=self.syntax, photometric=self.photometric, bits_stored=self.bits,
            bits_allocated=self.allocated, window=None,
        )  # fmt: skip
        values = smooth(self.shape, self.bits, self.signed, self.seed)
        return machines.make_dicom(values, encoding, attributes=self.attributes)


@st.composite
def cases(draw: st.DrawFn, shapes: tuple[int, int] = (33, 90)) -> Case:
    syntax = draw(st.sampled_from(sorted(machines.CODECS)))
    most = {uid.JPEGBaseline8Bit: 8, uid.JPEGExtended12Bit: 12}.get(syntax, 16)
    bits = draw(st.integers(8, most))
    signed = syntax not in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless) and draw(st.booleans())
    modality = draw(st.sampled_from(["none", "rescale", "negative", *([] if signed else ["lut"])]))
    voi = ["none", "LINEAR", "LINEAR_EXACT", "SIGMOID", "several"]
    # pydicom takes the first input of a VOI LUT for unsigned.
    voi += ["lut"] if modality in ("none", "lut") and not signed else []
    return Case(
        syntax=syntax, bits=bits, allocated=draw(st.sampled_from([8, 16])) if bits == 8 else 16, signed=signed,
        photometric=draw(st.sampled_from(["MONOCHROME1", "MONOCHROME2"])), modality=modality,
        voi=draw(st.sampled_from(voi)), shape=(draw(st.integers(*shapes)), draw(st.integers(*shapes))),
        seed=draw(st.integers(0, 99)),
    )  # fmt: skip


def shown(content: bytes) -> Image:
    """What pydicom's full path shows, 0 to 1, at the image's own size."""
    dataset = pydicom.dcmread(BytesIO(content))
    syntax = dataset.file_meta.TransferSyntaxUID
    stored = dataset.pixel_array if syntax in READ_BY_PYDICOM else decoded(dataset)
    low, high = bounds(dataset)
    stored = np.clip(stored.astype(np.int32), low, high)
    values = pixels.apply_modality_lut(stored, dataset)
    ends = sorted(float(end) for end in pixels.apply_modality_lut(np.array([low, high]), dataset))
    if "ModalityLUTSequence" in dataset:
        ends = [0, 2.0 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1]
    if "VOILUTSequence" in dataset:
        values = pixels.apply_voi(values.astype(np.int32), dataset, index=0)
        ends = [0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1]
    elif "WindowCenter" in dataset:
        values = pixels.apply_windowing(values, dataset, index=0)
        if dataset.get("RescaleSlope", 1) < 0:
            ends.reverse()  # pydicom's range of the output runs from the shown value of the lowest stored one.
    unit = np.clip((values.astype(np.float64) - ends[0]) / (ends[1] - ends[0]), 0, 1)
    return np.asarray(1 - unit) if dataset.PhotometricInterpretation == "MONOCHROME1" else unit


def bounds(dataset: pydicom.Dataset) -> tuple[int, int]:
    low = -(1 << dataset.BitsStored - 1) if dataset.PixelRepresentation else 0
    return low, low + (1 << dataset.BitsStored) - 1


def to_size(size: tuple[int, int], **options: Any) -> DecodeConfig:
    """The whole image, stretched."""
    return DecodeConfig(
        height=size[0], width=size[1], crop="none", orient="none", resize="stretch", depth=16, **options
    )


@given(cases())
@settings(max_examples=400, deadline=None, derandomize=True)
def test_at_its_own_size_an_image_is_that_of_pydicoms_full_path(case: Case) -> None:
    content = case.content()
    error = np.abs(decode(content, to_size(case.shape)).pixels / 65535 - shown(content))
    assert error.max() <= EXACT


@given(cases(shapes=(70, 131)), st.floats(1.1, 4), st.floats(1.1, 4))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_smaller_image_is_the_area_average_of_pydicoms_full_path(case: Case, down: float, across: float) -> None:
    content = case.content()
    size = (max(32, int(case.shape[0] / down)), max(32, int(case.shape[1] / across)))
    expected = cv2.resize(shown(content).astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
    result = decode(content, to_size(size))
    error = np.abs(result.pixels / 65535 - expected)
    if result.geometry.level == 0:
        assert error.max() <= EXACT
    else:  # Another filter, and tables that are looked up after it.
        assert error.mean() <= 0.01 * 2**result.geometry.level


def breast(bits: int = 12, shape: tuple[int, int] = (301, 236)) -> Image:
    """Noisy tissue at the left, with specks of both ends of the range, whose low-pass leaves it."""
    rng = np.random.default_rng(bits)
    y, x = np.mgrid[: shape[0], : shape[1]]
    inside = ((y - shape[0] / 2) / (0.42 * shape[0])) ** 2 + (x / (0.7 * shape[1])) ** 2 < 1
    unit = np.where(inside, 0.7 - 0.3 * x / shape[1] + 0.03 * rng.standard_normal(shape), 0)
    unit[inside & (rng.random(shape) < 0.01)] = 1
    unit[inside & (rng.random(shape) < 0.01)] = 0
    return np.asarray(np.rint(np.clip(unit, 0, 1) * (2**bits - 1)), np.uint16)


VIEWS = {
    "whole": DecodeConfig(crop="none", orient="none", depth=16),
    "breast": DecodeConfig(depth=16),
    "percentile": DecodeConfig(crop="none", window="percentile", depth=16),
    "stretched": DecodeConfig(resize="stretch", window="none", depth=16),
}


@functools.cache
def encoded_alike(bits: int) -> list[bytes]:
    """The same image in every lossless syntax, and in every order of JPEG 2000."""
    files = [machines.make_dicom(breast(bits), Encoding(transfer_syntax=s, bits_stored=bits)) for s in LOSSLESS]
    for progression in ("LRCP", "RPCL", "PCRL"):
        for layers in ((), (20.0, 4.0)):
            stream = jpeg2000(breast(bits), bits, progression=progression, layers=layers, precincts=(64, 64))
            files.append(machines.make_dicom(breast(bits), Encoding(bits_stored=bits), codestream=stream))
    return files


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("size", [(301, 236), (190, 130), (150, 118), (75, 59), (32, 32)])
@pytest.mark.parametrize("view", VIEWS)
def test_all_lossless_syntaxes_give_the_same_bytes_at_every_size(view: str, size: tuple[int, int], bits: int) -> None:
    config = replace(VIEWS[view], height=size[0], width=size[1])
    first, *others = (decode(file, config) for file in encoded_alike(bits))
    assert first.pixels.std() > 1000
    for other in others:
        assert other.geometry == first.geometry
        np.testing.assert_array_equal(other.pixels, first.pixels)


def with_frames(content: bytes, copies: int) -> bytes:
    """A file of several frames: the one that it has, and negatives of it."""
    dataset = pydicom.dcmread(BytesIO(content))
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        frame = encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
        dataset.PixelData = encaps.encapsulate([frame, *[frame[:-2] + b"\0\0"] * (copies - 1)])
    else:
        dataset.PixelData += bytes(255 - byte for byte in dataset.PixelData) * (copies - 1)
    dataset.NumberOfFrames = copies
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("copies", [2, 5])
@pytest.mark.parametrize("syntax", sorted(machines.CODECS))
def test_the_first_of_several_frames_is_the_frame_itself(syntax: str, copies: int) -> None:
    bits = 8 if syntax == uid.JPEGBaseline8Bit else 12
    single = machines.make_dicom(breast(bits), Encoding(transfer_syntax=syntax, bits_stored=bits))
    config = DecodeConfig(height=96, width=80, frame="first")
    assert_same(decode(with_frames(single, copies), config), decode(single, config))


def assert_same(one: Decoded, other: Decoded) -> None:
    assert one.geometry == other.geometry
    np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_first_of_several_windows_is_the_one_that_is_used(function: str) -> None:
    one = Window(function=function, centers=(1500.0,), widths=(900.0,))
    several = Window(function=function, centers=(1500.0, 10.0), widths=(900.0, 20.0))
    files = [machines.make_dicom(breast(), Encoding(window=window)) for window in (one, several)]
    assert_same(*(decode(file, to_size((301, 236))) for file in files))
