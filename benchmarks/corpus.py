"""Full-size synthetic mammograms for the benchmarks: phantoms with the noise of a detector, in any transfer syntax.

What decides how long a file takes to decode is its size and its noise. Lossless JPEG 2000 files of RSNA take 3.3 to 5.5
bits a pixel, background of 41 to 57 % included; :func:`describe` prints what these take.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom import uid

from mammoray.machines import FILM, SITES, Encoding, make_dicom, quantise
from mammoray.phantom import FloatImage, Phantom, Tone, anatomy, expose, render

J2K, JLL, RAW = str(uid.JPEG2000Lossless), str(uid.JPEGLosslessSV1), str(uid.ExplicitVRLittleEndian)
LABELS: dict[str, str] = {
    J2K: ".90 JPEG 2000 lossless",
    JLL: ".70 JPEG Lossless SV1",
    RAW: "uncompressed",
    str(uid.JPEG2000): ".91 JPEG 2000 lossy",
    str(uid.HTJ2KLossless): ".201 HTJ2K lossless",
    str(uid.JPEGLossless): ".57 JPEG Lossless",
    str(uid.JPEGExtended12Bit): ".51 JPEG Extended, 12 bits",
    str(uid.JPEGLSLossless): ".80 JPEG-LS lossless",
    str(uid.RLELossless): "RLE",
}
"""Transfer syntaxes of the corpus, and how tables call them; all but the first three only of one file a family."""


@dataclass(frozen=True, slots=True)
class Source:
    """One image, before it is written in a transfer syntax."""

    family: str
    shape: tuple[int, int]
    encoding: Encoding
    tone: Tone
    view: str
    density: str
    seed: int

    @property
    def name(self) -> str:
        """Stem of its files."""
        return f"{self.family.split(',')[0].replace(' ', '-')}_{self.shape[0]}x{self.shape[1]}_{self.seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A file of the corpus."""

    path: Path
    family: str
    shape: tuple[int, int]
    syntax: str

    @property
    def image(self) -> str:
        """Name of the image, which its files in other syntaxes share."""
        return self.path.stem.rsplit("_", 1)[0]


_MACHINES = {
    "12 bits, LINEAR": (SITES[2]["21"].encoding, Tone(gamma=1.0, knee=0.4, noise=0.0065)),
    "16 bits, MONOCHROME1, SIGMOID": (SITES[2]["29"].encoding, Tone(gamma=0.95, sharpen=0.7, noise=0.0009)),
    "14 bits, MONOCHROME1, SIGMOID": (SITES[1]["216"].encoding, Tone(gamma=1.0, sharpen=0.5, noise=0.003)),
    "film 12 bits, MONOCHROME1, grey background": (
        FILM["scanner2"].encoding,
        Tone(gamma=1.3, noise=0.003, air=0.08, line=1.0, marker=1.0),
    ),
}
# Seeds of which background is 44 to 55 % of the image. The first of a family is written in all transfer syntaxes.
_IMAGES = (
    ("12 bits, LINEAR", (2776, 2082), "MLO", "B", 3),
    ("12 bits, LINEAR", (2600, 2000), "CC", "C", 0),
    ("12 bits, LINEAR", (3062, 2394), "CC", "C", 21),
    ("12 bits, LINEAR", (4096, 3328), "MLO", "D", 2),
    ("16 bits, MONOCHROME1, SIGMOID", (3328, 2560), "CC", "C", 19),
    ("16 bits, MONOCHROME1, SIGMOID", (5355, 4915), "MLO", "D", 1),
    ("14 bits, MONOCHROME1, SIGMOID", (2294, 1914), "MLO", "D", 11),
    ("14 bits, MONOCHROME1, SIGMOID", (4096, 3328), "CC", "B", 9),
    ("film 12 bits, MONOCHROME1, grey background", (3001, 2103), "CC", "B", 24),
    ("film 12 bits, MONOCHROME1, grey background", (4664, 3064), "MLO", "C", 16),
)


def sources(divisor: int = 1) -> list[Source]:
    """The images of the corpus; their sides over ``divisor`` for a quick look."""
    found = []
    for family, (height, width), view, density, seed in _IMAGES:
        encoding, tone = _MACHINES[family]
        shape = (height // divisor, width // divisor)
        found.append(Source(family, shape, encoding, tone, view, density, seed))
    return found


def shown(phantom: Phantom, tone: Tone, label: str, rng: np.random.Generator) -> FloatImage:
    """Expose with noise that neighbours share, as a detector's and a film's grain is, instead of white; 0 stays 0."""
    clean = expose(phantom, replace(tone, noise=0.0), label, rng)
    grain = cv2.GaussianBlur(rng.standard_normal(clean.shape, dtype=np.float32), (0, 0), 0.6)
    grain *= tone.noise / float(grain.std())
    noisy = np.clip(clean + grain * (0.5 + clean), 0.02, 0.98)
    return np.where(clean > 0, noisy, 0).astype(np.float32)


def write(folder: Path, images: Sequence[Source], processes: int = 2) -> list[Sample]:
    """Write what is not there yet: all images as .90, .70 and uncompressed, the first of a family in the others too."""
    folder.mkdir(parents=True, exist_ok=True)
    first = {source.family: source.name for source in reversed(images)}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        tasks = {
            source.name: pool.submit(_write_image, folder, source, source.name == first[source.family])
            for source in sorted(images, key=lambda source: -source.shape[0])  # the longest first
        }
        return [sample for source in images for sample in tasks[source.name].result()]


def _write_image(folder: Path, source: Source, in_all: bool) -> list[Sample]:
    cv2.setNumThreads(1)
    fits = [s for s in LABELS if s in (J2K, JLL, RAW) or in_all]
    if source.encoding.bits_stored > 12 and in_all:
        fits.remove(str(uid.JPEGExtended12Bit))
    paths = {syntax: folder / f"{source.name}_{syntax.rsplit('.', 2)[-1]}.dcm" for syntax in fits}
    if not all(path.exists() for path in paths.values()):
        rng = np.random.default_rng(source.seed)
        phantom = render(anatomy(source.density, rng), "L", source.view, source.shape, rng)
        stored = quantise(shown(phantom, source.tone, f"L {source.view}", rng), source.encoding)
        for syntax, path in paths.items():
            encoding = replace(source.encoding, transfer_syntax=syntax)
            draft = path.with_suffix(".partial")
            draft.write_bytes(make_dicom(stored, encoding, view=source.view, key=(source.name, 0)))
            draft.replace(path)
    make = partial(Sample, family=source.family, shape=source.shape)
    return [make(path=path, syntax=syntax) for syntax, path in paths.items()]


def own(folder: Path) -> list[Sample]:
    """The DICOM files of a folder that hold an image which pydicom can read."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            dataset = pydicom.dcmread(path)
            shape = dataset.pixel_array.shape
        except Exception as error:
            print(f"left out: {path.name}: {type(error).__name__}")
            continue
        if len(shape) == 2:
            syntax = str(dataset.file_meta.TransferSyntaxUID)
            found.append(Sample(path=path, family=path.stem, shape=shape, syntax=syntax))
    return found


def describe(samples: Iterable[Sample]) -> list[list[str]]:
    """One row a JPEG 2000 file: family, size, bits a pixel of the file, share of the commonest value."""
    rows = []
    for sample in (s for s in samples if s.syntax == J2K):
        stored = pydicom.dcmread(sample.path).pixel_array
        constant = float(np.bincount(stored.ravel()).max()) / stored.size
        bits = 8 * sample.path.stat().st_size / stored.size
        rows.append([sample.family, f"{sample.shape[0]} x {sample.shape[1]}", f"{bits:.2f}", f"{constant:.0%}"])
    return rows
