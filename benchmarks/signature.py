"""Whether a decoded image tells its transfer syntax.

Where the syntax goes with the site, a network could read the site from it. Two measures: how sharp the same pixels come
out of different syntaxes, and how often a logistic regression can tell which one it was.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations
from multiprocessing import get_context
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from baseline import breast, frame_of
from corpus import J2K, JLL, RAW, Sample, shown
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from speed import framed, seconds

from mammoray.decode import decode
from mammoray.machines import SITES, Encoding, make_dicom, quantise
from mammoray.phantom import Tone, anatomy, render

SYNTAXES = {".90": J2K, ".70": JLL, "uncompressed": RAW}
CONTROL = "careless .90"
"""The low-pass samples of JPEG 2000 taken for box averages and resized: what a classifier has to be able to tell."""
CROPS = 5
"""Images cut from one phantom; they stay in one fold."""
Image = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sharpness:
    """Laplacian energy of the same pixels in each syntax over that of the uncompressed file, and CPU ms a decode."""

    target: int
    energy: dict[str, list[float]]
    milliseconds: dict[str, float]

    def median(self, name: str) -> float:
        """Of one syntax, over the files."""
        return statistics.median(self.energy[name])

    @property
    def apart(self) -> float:
        """How far the medians of two syntaxes are apart at most."""
        medians = [self.median(name) for name in self.energy]
        return max(medians) / min(medians) - 1

    @property
    def apart_worst(self) -> float:
        """The same of the file in which it is largest."""
        return max(max(ratios) / min(ratios) - 1 for ratios in zip(*self.energy.values(), strict=True))


def energy(image: Image, mask: npt.NDArray[np.bool_]) -> float:
    """Mean square of the Laplacian inside of ``mask``, away from the skin (where the mask leaves anything there)."""
    inner = cv2.erode(mask.astype(np.uint8), np.ones((7, 7), np.uint8), borderValue=0) > 0
    return float((cv2.Laplacian(image, cv2.CV_32F)[inner if inner.any() else mask] ** 2).mean())


def sharpness(samples: Sequence[Sample], target: int, **settings: Any) -> Sharpness:
    """Decode each image of the corpus from the three syntaxes of :data:`SYNTAXES`."""
    by_name: dict[str, dict[str, Sample]] = {}
    for sample in samples:
        by_name.setdefault(sample.image, {})[sample.syntax] = sample
    energies: dict[str, list[float]] = {name: [] for name in SYNTAXES}
    spent: dict[str, list[float]] = {name: [] for name in SYNTAXES}
    config = framed(target, "none", **settings)
    for files in by_name.values():
        found = {}
        for name, syntax in SYNTAXES.items():
            time_s, decoded = seconds(lambda path=files[syntax].path: decode(path, config))
            spent[name].append(time_s)
            found[name] = decoded.pixels[frame_of(decoded)[2]].astype(np.float32) / 65535
        mask = breast(found["uncompressed"])
        whole = energy(found["uncompressed"], mask)
        for name, image in found.items():
            energies[name].append(energy(image, mask) / whole)
    return Sharpness(target, energies, {name: 1000 * statistics.median(times) for name, times in spent.items()})


def tell(images: int, target: int, side: int, processes: int = 2, **settings: Any) -> dict[tuple[str, str], float]:
    """Accuracy of telling two syntaxes apart, by pair, in five folds grouped by phantom; 0.5 is chance.

    ``images`` images of ``side`` rows, each in each syntax, are decoded to ``target``. They come from one machine,
    where a syntax is easiest to tell. The classifier sees :func:`features` and the principal components of the pixels.
    """
    phantoms = max(5, images // CROPS)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        tasks = [pool.submit(_one_phantom, seed, target, side, settings) for seed in range(phantoms)]
        found = [task.result() for task in tasks]
    groups = np.repeat(np.arange(phantoms), CROPS)
    by_name = {name: np.concatenate([images[name] for images in found]) for name in found[0]}
    pairs = [*combinations(SYNTAXES, 2), (CONTROL, "uncompressed")]
    return {pair: _accuracy(by_name[pair[0]], by_name[pair[1]], groups) for pair in pairs}


def _one_phantom(seed: int, target: int, side: int, settings: dict[str, Any]) -> dict[str, Image]:
    """Pixels of :data:`CROPS` cuts of a phantom, (CROPS, target, target), decoded from each syntax."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng([seed, 7])
    encoding = SITES[2]["21"].encoding
    shape = (side * 5 // 4, side)
    phantom = render(anatomy("ABCD"[seed % 4], rng), "L", ("CC", "MLO")[seed // 4 % 2], shape, rng)
    stored = quantise(shown(phantom, Tone(noise=0.006, marker=0.0), "", rng), encoding)
    config = framed(target, "none", **settings)
    found: dict[str, list[Any]] = {name: [] for name in (*SYNTAXES, CONTROL)}
    for _ in range(CROPS):
        top, left = int(rng.integers(0, shape[0] - side)), int(rng.integers(0, side // 4))
        cut = np.ascontiguousarray(stored[top : top + side, left : left + side * 3 // 4])
        for name, syntax in SYNTAXES.items():
            content = make_dicom(cut, replace(encoding, transfer_syntax=syntax))
            found[name].append(decode(content, config).pixels.astype(np.float32) / 65535)
        found[CONTROL].append(_careless(cut, encoding, target, settings))
    return {name: np.stack(images) for name, images in found.items()}


def _careless(stored: npt.NDArray[np.uint16], encoding: Encoding, target: int, settings: dict[str, Any]) -> Image:
    low = stored.astype(np.float32)
    taps = np.array([-1, 2, 6, 2, -1], np.float32) / 8  # low-pass of the 5/3 wavelet, ITU-T T.800 F.4.8.1
    while max(low.shape) >= 2 * target:
        low = cv2.sepFilter2D(low, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101)[::2, ::2]
    small = np.clip(np.rint(low), 0, 2**encoding.bits_stored - 1).astype(np.uint16)
    content = make_dicom(small, replace(encoding, transfer_syntax=RAW))
    return decode(content, framed(target, "none", **settings)).pixels.astype(np.float32) / 65535


def features(image: Image) -> npt.NDArray[np.float64]:
    """Log spectrum of the breast's fine structure, away from the skin, by frequency; and its Laplacian energy, log."""
    height, width = image.shape
    mask = breast(image)
    inner = cv2.erode(mask.astype(np.uint8), np.ones((9, 9), np.uint8), borderValue=0).astype(np.float32)
    weight = inner * cv2.GaussianBlur(inner, (0, 0), 2)  # falls to nothing at the skin, which would fill the spectrum
    fine = (image - cv2.GaussianBlur(image, (0, 0), 3)) * weight
    power = np.abs(np.fft.rfft2(fine)) ** 2 / max(float((weight**2).sum()), 1.0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    bins = np.minimum((frequency * 40).astype(int), 27)
    spectrum = np.bincount(bins.ravel(), power.ravel(), 28) / np.bincount(bins.ravel(), minlength=28)
    return np.log(np.array([*spectrum[1:], energy(image, mask)]) + 1e-12)


def _accuracy(first: Image, second: Image, groups: npt.NDArray[Any]) -> float:
    pixels = np.concatenate([first, second])
    measured = np.stack([features(image) for image in pixels])
    labels = np.repeat([0, 1], len(first))
    # Principal components know no labels, so that those of all images give nothing away between folds.
    components = PCA(n_components=min(20, len(first) // 2), random_state=0)
    reduced = components.fit_transform(pixels[:, ::2, ::2].reshape(len(pixels), -1))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=100.0, max_iter=5000))
    scores = cross_val_score(
        model, np.hstack([measured, reduced]), labels, groups=np.tile(groups, 2), cv=GroupKFold(5), scoring="accuracy"
    )
    return float(scores.mean())
